"""Temporal momentum attention (TMA): how the frames of a clip share the keys and values of self-attention.

ZS² (arXiv 2407.21475) keeps each frame's queries and replaces its keys and values by running averages over frames,

    k̃⁰ = k⁰,    k̃ⁱ = μ·k̃ⁱ⁻¹ + (1−μ)·kⁱ,    and the same for v;

in matrix form k̃ = U·k, with U[i, 0] = μⁱ and U[i, j] = (1−μ)·μ^(i−j) for 1 ≤ j ≤ i. So frame 0 sees only itself: it is
the image that the model makes without any of this. The kinds, each a value of one flag:

    sa            self-attention: every frame sees itself                  (TMA at μ = 0)
    cfa           cross-frame attention: every frame sees frame 0          (TMA at μ = 1)
    tma           the recursion above
    tma-two-tap   the paper's second listing: k̃ⁱ = μ·kⁱ⁻¹ + (1−μ)·kⁱ     (at μ = 1 it sees the frame before)

Keys and values are linear in the hidden state h that they are projected from (no bias), so that k̃ = W_k·h̃ and
ṽ = W_v·h̃ with h̃ = U·h: blending h once does the work of blending both. That is all this file does; attention.py
projects h̃.

Chunks. The recursion is causal and its whole past is one state: the last frame's h̃. A clip can thus run in chunks of
frames, each given the state that the chunk before returned, and the result is that of one batch. The state of `tma` is
float32 whatever the model's dtype: over hundreds of frames half precision would drift. `tma-two-tap` needs the last
frame's h, `cfa` frame 0's, `sa` nothing.

Processes. The recursion is linear: of n frames, whose last h̃ from a zero state is z, it makes of a state s the state
μⁿ·s + z, and of frame k (from 0) its h̃ from zero plus μᵏ⁺¹·s. Two such maps in a row are a third,

    (m₁, z₁) then (m₂, z₂)  =  (m₁·m₂, m₂·z₁ + z₂),    (m, z) = (μⁿ, z),

and the product is associative: a scan. Processes r = 0, 1, … with n_r frames each, in order, compute their z_r at the
same time and tell each other; then each knows the state that it starts from,

    s₀ = the state of the chunk before,    s_{r+1} = μ^{n_r}·s_r + z_r,

and runs the recursion from there, which adds μᵏ⁺¹·s_r to its frames: the arithmetic of chunks, float32 and all. At the
start of a clip, where there is no s₀, z₀ is the last h̃ of the first process from h̃⁰ = h⁰, and s₁ = z₀.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.errors import InputError, choose
from zs2.models.config import ATTENTION_KINDS
from zs2.models.config import uses_mu as uses_mu


@dataclass(frozen=True)
class Momentum:
    """One kind of attention over frames, and its μ in [0, 1]. Raises: InputError for another kind or μ."""

    kind: str
    mu: float

    def __post_init__(self) -> None:
        choose("attention kind", self.kind, ATTENTION_KINDS)
        if not isinstance(self.mu, int | float) or not 0 <= self.mu <= 1:
            raise InputError(f"mu is {self.mu}: expected a number from 0 (self-attention) to 1 (cross-frame attention)")

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Blend hidden states over frames.

        Args:
            h: (b, n, c) with b = branches × frames, frames innermost; a branch is one side of the guidance.
            frames: frames in h.
            state: what the chunk of frames before returned; None for the first chunk.
        Returns:
            the hidden states to project to keys and values: (b, n, c), or (branches, n, c) where all frames share one;
            and the state (branches, n, c) for the next chunk (None for `sa`, which has no past).
        """
        if self.kind == "sa":
            return h, None
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        if self.kind == "cfa":
            first = h[:, 0].clone() if state is None else state  # a view would keep the whole chunk in memory
            return first, first
        if self.kind == "tma-two-tap":
            before = torch.cat([h[:, :1] if state is None else state[:, None], h[:, :-1]], dim=1)
            return torch.lerp(h, before, self.mu).flatten(0, 1), h[:, -1].clone()
        blended = torch.empty_like(h)
        for i, now in enumerate(self._states(h, state)):
            blended[:, i] = state = now
        return blended.flatten(0, 1), state

    def _states(self, h: Tensor, state: Tensor | None) -> Iterator[Tensor]:
        """The recursion: h̃ of each frame of h (branches, f, n, c), (branches, n, c) in float32."""
        for i in range(h.shape[1]):
            frame = h[:, i].float()
            state = frame if state is None else torch.lerp(frame, state, self.mu)
            yield state

    def share(self, h: Tensor, frames: int, *, first: bool) -> Tensor | None:
        """What a process tells the others of its frames h (b, n, c): for `tma` z, else the frame that they need.

        first: whether these frames begin the clip. Returns: (branches, n, c), the same shape in all processes; None for
        `sa`, which has nothing to tell.
        """
        if self.kind == "sa":
            return None
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        if self.kind == "cfa":
            return h[:, 0].contiguous()
        if self.kind == "tma-two-tap":
            return h[:, -1].contiguous()
        states = self._states(h, None if first else torch.zeros_like(h[:, 0], dtype=torch.float32))
        return deque(states, maxlen=1).pop().contiguous()

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The state that each process starts from, and after them the one that the next chunk of frames starts from.

        Args:
            shares: what each told. counts: its frames, at least one for the first; one with 0 told nothing that counts.
            state: what the chunk of frames before ended with; None for the first.
        """
        if self.kind == "cfa":
            return [state, *[shares[0] if state is None else state] * len(shares)]
        starts = [state]
        for share, count in zip(shares, counts, strict=True):
            if count:
                state = share if state is None or self.kind == "tma-two-tap" else self.mu**count * state + share
            starts.append(state)
        return starts


# (momentum, h, frames, state of the chunk before) → the state that this process starts from, and the next chunk's.
Exchange = Callable[[Momentum, Tensor, int, Tensor | None], tuple[Tensor | None, Tensor | None]]
