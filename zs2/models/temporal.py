"""Temporal momentum attention (TMA): how the frames of a clip share the keys and values of self-attention.

ZS² (arXiv 2407.21475) keeps each frame's queries and replaces its keys and values by running averages over frames,

    k̃⁰ = k⁰,    k̃ⁱ = μ·k̃ⁱ⁻¹ + (1−μ)·kⁱ,    and the same for v;

in matrix form k̃ = U·k, with U[i, 0] = μⁱ and U[i, j] = (1−μ)·μ^(i−j) for 1 ≤ j ≤ i. So frame 0 sees only itself: it is
the image that the model makes without attention over frames. Each kind is a class here and a row of ATTENTION_KINDS in
method.py:

    sa            self-attention: every frame sees itself                  (TMA at μ = 0)
    cfa           cross-frame attention: every frame sees frame 0          (TMA at μ = 1)
    tma           the recursion above
    tma-two-tap   the paper's second listing: k̃ⁱ = μ·kⁱ⁻¹ + (1−μ)·kⁱ     (at μ = 1 it sees the frame before)

Keys and values are linear in the hidden state h, because their projections have no bias. So k̃ = W_k·h̃ and ṽ = W_v·h̃
with h̃ = U·h, and blending h once does the work of blending both. This file only blends; attention.py projects h̃.

Chunks. The recursion is causal, and one state holds its whole past: h̃ of the last frame. So a clip can run in chunks
of frames, where each chunk starts from the state that the previous chunk returned. The result is that of one batch.
The state of `tma` is float32 whatever the model's dtype: over hundreds of frames, half precision would drift. The
state of `tma-two-tap` is h of the last frame, that of `cfa` is h of frame 0, and `sa` needs none.

Processes. The recursion is linear. Let z be the last h̃ of n frames that start from a zero state. If the same frames
start from a state s, the last h̃ is μⁿ·s + z, and μᵏ⁺¹·s is added to h̃ of frame k (counted from 0). Two such maps in a
row are a map of the same form,

    (m₁, z₁) then (m₂, z₂)  =  (m₁·m₂, m₂·z₁ + z₂),    (m, z) = (μⁿ, z),

and this product is associative, so the recursion is a scan. Processes r = 0, 1, … have n_r frames each, in order. They
compute their z_r at the same time and exchange them. Then each process knows the state that it starts from,

    s₀ = the state of the previous chunk,    s_{r+1} = μ^{n_r}·s_r + z_r,

and runs the recursion from that state, which adds μᵏ⁺¹·s_r to its frames. This is the arithmetic of chunks, in float32
too. At the start of a clip there is no s₀. There z₀ is the last h̃ of the first process with h̃⁰ = h⁰, and s₁ = z₀.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, PARAMETERS
from zs2.system.registry import load


class Momentum(ABC):
    """A kind of attention over frames: how hidden states are blended before they are projected to keys and values.

    A subclass is a frozen dataclass whose fields are the kind's parameters. Blending never mixes branches or tokens.
    """

    state_frames: ClassVar[int] = 1  # the number of hidden states in a state; 0 for a kind without state
    key_frames: ClassVar[int] = 1  # the number of frames whose hidden states a frame's keys and values come from
    state_dtype: ClassVar[torch.dtype | None] = None  # the dtype of a state; None: that of the hidden states
    first_share_counts: ClassVar[bool] = False  # whether `starts` needs only the share of the first process

    @abstractmethod
    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Blend hidden states over frames.

        Args:
            h: (b, n, c) with b = branches × frames, frames innermost; a branch is one side of the guidance.
            frames: frames in h.
            state: the state that the previous chunk of frames returned; None for the first chunk.
        Returns:
            the hidden states to project to keys and values: (b, m, c), or (branches, m, c) if all frames share them;
            and the state (branches, …) for the next chunk, or None if the kind has no state. The state must not be a
            view of h, which would keep h in memory.
        """

    @abstractmethod
    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor | None:
        """The tensor that a process sends to the others, from its frames h (b, n, c) of a chunk that they share.

        Args:
            state: the state after the previous chunk. first: whether these frames are the first ones of the chunk.
        Returns: a contiguous tensor of the same shape in all processes; or None in all processes if they need no
            exchange. Then every process starts from `state`, and so does the next chunk.
        """

    @abstractmethod
    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The states that the processes start from, in order, and last the state that the next chunk starts from.

        Args:
            shares: the tensor that each process sent.
            counts: the number of frames of each process. The first has at least one. The share of a process without
                frames has no meaning.
            state: the state after the previous chunk of frames; None for the first chunk.
        """


@dataclass(frozen=True)
class SelfAttention(Momentum):
    """`sa`: every frame sees itself."""

    state_frames: ClassVar[int] = 0

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, None]:
        """Return h unchanged."""
        return h, None

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> None:
        """The processes exchange nothing."""

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """No process has a state."""
        return [None] * (len(counts) + 1)


@dataclass(frozen=True)
class CrossFrame(Momentum):
    """`cfa`: every frame sees frame 0. The state is frame 0's hidden state, which all frames share."""

    first_share_counts: ClassVar[bool] = True

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (branches, n, c)"""
        first = h.unflatten(0, (-1, frames))[:, 0].clone() if state is None else state  # a view would keep all of h
        return first, first

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor | None:
        """The first frame of the process, at the start of the clip; later None."""
        return h.unflatten(0, (-1, frames))[:, 0].contiguous() if state is None else None

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The first process starts from `state`, all others from the frame that it sent."""
        return [state, *[shares[0]] * len(counts)]


@dataclass(frozen=True)
class Temporal(Momentum):
    """`tma`: the recursion, in float32. The state is the last frame's h̃."""

    mu: float
    state_dtype: ClassVar[torch.dtype | None] = torch.float32

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, n, c)"""
        blended = self._recursion(h, frames, state)
        state = blended[:, -1].clone()  # a view would keep all frames
        return blended.flatten(0, 1).to(h.dtype), state

    def _recursion(self, h: Tensor, frames: int, state: Tensor | None) -> Tensor:
        """h̃ of each frame of h (b, n, c): (branches, f, n, c) in float32.

        The frames are blended in place in one copy of h: one operator per frame, one cast before, and one after.
        """
        blended = h.unflatten(0, (-1, frames)).to(torch.float32, copy=True)
        for i in range(frames):
            frame = blended[:, i]  # (branches, n, c), a view
            state = frame if state is None else frame.lerp_(state, self.mu)
        return blended

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """z: the last h̃ from a zero state, or from h⁰ at the start of the clip."""
        one = h.unflatten(0, (-1, frames))[:, 0]  # (branches, n, c)
        zero = None if first and state is None else torch.zeros_like(one, dtype=torch.float32)
        return self._recursion(h, frames, zero)[:, -1].clone()

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
        """The last frame of the process."""
        return h.unflatten(0, (-1, frames))[:, -1].contiguous()

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """Each process starts from the last frame of the process before it."""
        starts = [state]
        for share, count in zip(shares, counts, strict=True):
            state = share if count else state
            starts.append(state)
        return starts


def momentum(kind: str, **parameters: Any) -> Momentum:
    """Build the attention over frames that has this name in ATTENTION_KINDS.

    parameters: those of the kind, such as mu. An absent one has its default; others are checked and not used.
    Raises: InputError for an unknown kind, or a value out of range.
    """
    row = ATTENTION_KINDS[kind]
    checked = {name: PARAMETERS[name].check(value) for name, value in parameters.items()}
    implementation = load(row.implementation)
    if not (isinstance(implementation, type) and issubclass(implementation, Momentum)):
        raise InputError(f"attention kind {kind!r} names {implementation!r}: expected a subclass of Momentum")
    return implementation(**{name: checked.get(name, default) for name, default in row.defaults.items()})


# (momentum, h, frames, state after the previous chunk) → the states that this process and the next chunk start from.
Exchange = Callable[[Momentum, Tensor, int, Tensor | None], tuple[Tensor | None, Tensor | None]]
