"""Temporal momentum attention (TMA): how the frames of a clip share the keys and values of self-attention.

ZS² (arXiv 2407.21475) keeps each frame's queries and replaces its keys and values by running averages over frames,

    k̃⁰ = k⁰,    k̃ⁱ = μ·k̃ⁱ⁻¹ + (1−μ)·kⁱ,    and the same for v;

in matrix form k̃ = U·k, with U[i, 0] = μⁱ and U[i, j] = (1−μ)·μ^(i−j) for 1 ≤ j ≤ i. So frame 0 sees only itself: it is
the image that the model makes without any of this. The kinds, each a class here and a row of ATTENTION_KINDS in
method.py:

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

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zs2.method import ATTENTION_KINDS, PARAMETERS
from zs2.system.registry import load


class Momentum(ABC):
    """A kind of attention over frames: how hidden states are blended before they are projected to keys and values.

    A subclass is a frozen dataclass whose fields are the kind's parameters. Blending never mixes branches or tokens.
    """

    state_frames: ClassVar[int] = 1  # hidden states that a state consists of; 0 for a kind without a past
    state_dtype: ClassVar[torch.dtype | None] = None  # of a state; None: as the hidden states
    first_share_counts: ClassVar[bool] = False  # of processes, whether `starts` needs only the first one's share

    @abstractmethod
    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Blend hidden states over frames.

        Args:
            h: (b, n, c) with b = branches × frames, frames innermost; a branch is one side of the guidance.
            frames: frames in h.
            state: what the chunk of frames before returned; None for the first chunk.
        Returns:
            the hidden states to project to keys and values: (b, m, c), or (branches, m, c) where all frames share one;
            and the state (branches, …) for the next chunk, which keeps no memory of h (None without a past).
        """

    @abstractmethod
    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor | None:
        """What a process tells the others of its frames h (b, n, c) of a chunk that they share.

        Args:
            state: what the chunk before ended with. first: whether these frames are the chunk's first ones.
        Returns: a contiguous tensor of the same shape in all processes; None where nothing needs to be told, in all of
            them: then every process starts from `state`, and so does the next chunk.
        """

    @abstractmethod
    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The state that each process starts from, and after them the one that the next chunk of frames starts from.

        Args:
            shares: what each told. counts: its frames, at least one for the first; one with 0 told nothing that counts.
            state: what the chunk of frames before ended with; None for the first.
        """


@dataclass(frozen=True)
class SelfAttention(Momentum):
    """`sa`: every frame sees itself."""

    state_frames: ClassVar[int] = 0

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, None]:
        """h as it is."""
        return h, None

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> None:
        """Nothing."""

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """Nothing."""
        return [None] * (len(counts) + 1)


@dataclass(frozen=True)
class CrossFrame(Momentum):
    """`cfa`: every frame sees frame 0. The state is frame 0's hidden state, which all frames share."""

    first_share_counts: ClassVar[bool] = True

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (branches, n, c)"""
        first = h.unflatten(0, (-1, frames))[:, 0].clone() if state is None else state  # a view would keep the chunk
        return first, first

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor | None:
        """Its first frame, at the start of the clip."""
        return h.unflatten(0, (-1, frames))[:, 0].contiguous() if state is None else None

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The first process's frame; that process itself has it."""
        return [state, *[shares[0]] * len(counts)]


@dataclass(frozen=True)
class Temporal(Momentum):
    """`tma`: the recursion, in float32. The state is the last frame's h̃."""

    mu: float
    state_dtype: ClassVar[torch.dtype | None] = torch.float32

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, n, c)"""
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        blended = torch.empty_like(h)
        for i, now in enumerate(self._recursion(h, state)):
            blended[:, i] = state = now
        assert state is not None
        return blended.flatten(0, 1), state

    def _recursion(self, h: Tensor, state: Tensor | None) -> Iterator[Tensor]:
        """h̃ of each frame of h (branches, f, n, c): (branches, n, c) in float32."""
        for i in range(h.shape[1]):
            frame = h[:, i].float()
            state = frame if state is None else torch.lerp(frame, state, self.mu)
            yield state

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """z: the last h̃ from a zero state, or from h⁰ at the start of the clip."""
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        zero = None if first and state is None else torch.zeros_like(h[:, 0], dtype=torch.float32)
        return deque(self._recursion(h, zero), maxlen=1).pop().contiguous()

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """s_{r+1} = μ^{n_r}·s_r + z_r"""
        starts = [state]
        for share, count in zip(shares, counts, strict=True):
            if count:
                state = share if state is None else self.mu**count * state + share
            starts.append(state)
        return starts


@dataclass(frozen=True)
class TwoTap(Momentum):
    """`tma-two-tap`: an average with the frame before. The state is the last frame's h."""

    mu: float

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, n, c)"""
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        before = torch.cat([h[:, :1] if state is None else state[:, None], h[:, :-1]], dim=1)
        return torch.lerp(h, before, self.mu).flatten(0, 1), h[:, -1].clone()

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """Its last frame."""
        return h.unflatten(0, (-1, frames))[:, -1].contiguous()

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The last frame of the process before."""
        starts = [state]
        for share, count in zip(shares, counts, strict=True):
            state = share if count else state
            starts.append(state)
        return starts


def momentum(kind: str, **parameters: Any) -> Momentum:
    """The attention over frames of a name in ATTENTION_KINDS.

    parameters: the kind's own, such as mu; one that is absent has its default, others are checked and not used.
    Raises: InputError for an unknown kind, or a value out of range.
    """
    row = ATTENTION_KINDS[kind]
    checked = {name: PARAMETERS[name].check(value) for name, value in parameters.items()}
    return load(row.implementation)(**{name: checked.get(name, default) for name, default in row.defaults.items()})


# (momentum, h, frames, state of the chunk before) → the state that this process starts from, and the next chunk's.
Exchange = Callable[[Momentum, Tensor, int, Tensor | None], tuple[Tensor | None, Tensor | None]]
