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

The recursion is causal and its whole past is one state: the last frame's h̃. A clip can thus run in chunks of frames,
each given the state that the chunk before returned, and the result is that of one batch. The state of `tma` is float32
whatever the model's dtype: over hundreds of frames half precision would drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.config import ATTENTION_KINDS
from zs2.config import uses_mu as uses_mu
from zs2.errors import InputError, choose


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
            first = h[:, 0] if state is None else state
            return first, first
        if self.kind == "tma-two-tap":
            before = torch.cat([h[:, :1] if state is None else state[:, None], h[:, :-1]], dim=1)
            return torch.lerp(h, before, self.mu).flatten(0, 1), h[:, -1]
        blended = torch.empty_like(h)
        for i in range(frames):
            frame = h[:, i].float()
            state = frame if state is None else torch.lerp(frame, state, self.mu)
            blended[:, i] = state
        return blended.flatten(0, 1), state
