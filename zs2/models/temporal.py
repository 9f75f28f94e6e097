"""Temporal momentum attention (TMA): how the frames of a clip share the keys and values of self-attention.

ZS² (arXiv 2407.21475) keeps each frame's queries and replaces its keys and values by running averages over frames,

    k̃⁰ = k⁰,    k̃ⁱ = μ·k̃ⁱ⁻¹ + (1−μ)·kⁱ,    and the same for v;

in matrix form k̃ = U·k, with U[i, 0] = μⁱ and U[i, j] = (1−μ)·μ^(i−j) for 1 ≤ j ≤ i. So frame 0 sees only itself: it is
the image that the model makes without attention over frames. Each kind is a class here and a row of ATTENTION_KINDS in
method.py:

    sa               self-attention: every frame sees itself                  (TMA at μ = 0)
    cfa              cross-frame attention: every frame sees frame 0          (TMA at μ = 1)
    tma              the recursion above
    tma-two-tap      the paper's second listing: k̃ⁱ = μ·kⁱ⁻¹ + (1−μ)·kⁱ     (at μ = 1 it sees the frame before)
    first-previous   the keys of frame 0, followed by those of the frame before
    extended         the keys of all anchor frames so far, one after another

Keys and values are linear in the hidden state h, because their projections have no bias. So k̃ = W_k·h̃ and ṽ = W_v·h̃
with h̃ = U·h, and blending h once does the work of blending both. This file only blends; attention.py projects h̃.

Chunks. The recursion is causal, and one state holds its whole past: h̃ of the last frame. So a clip can run in chunks
of frames, where each chunk starts from the state that the previous chunk returned. The result is that of one batch.
The state of `tma` is float32 whatever the model's dtype: over hundreds of frames, half precision would drift. The
state of `tma-two-tap` is h of the last frame, that of `cfa` is h of frame 0, that of `first-previous` both, that of
`extended` is h of the anchors, and `sa` needs none.

Processes. The recursion is linear. Let z be the last h̃ of n frames that start from a zero state. If the same frames
start from a state s, the last h̃ is μⁿ·s + z: the recursion is a scan. Processes r = 0, 1, … have n_r frames each, in
order. They compute their z_r at the same time and exchange them. Each then runs the recursion from its own state,

    s₀ = the state of the previous chunk,    s_{r+1} = μ^{n_r}·s_r + z_r,

in float32 too. At the start of a clip there is no s₀. There z₀ is the first process's last h̃ with h̃⁰ = h⁰, and s₁ = z₀.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from zs2.errors import InputError, brief, counted
from zs2.method import ATTENTION_KINDS, PARAMETERS
from zs2.system.registry import load

# (momentum, h, frames, state after the previous chunk) → the states that this process and the next chunk start from.
Exchange = Callable[["Momentum", Tensor, int, Tensor | None], tuple[Tensor | None, Tensor | None]]
# Runs of frames with keys of their own: how many frames, and the hidden states (branches, m, c) that they share.
Runs = list[tuple[int, Tensor]]


class Momentum(ABC):
    """A kind of attention over frames: how hidden states are blended before they are projected to keys and values.

    A subclass is a frozen dataclass whose fields are the kind's parameters. Blending never mixes branches or tokens.
    """

    state_frames: ClassVar[int] = 1  # the number of hidden states in a state; 0 for a kind without state
    key_frames: ClassVar[int] = 1  # the number of frames whose hidden states a frame's keys and values come from
    state_dtype: ClassVar[torch.dtype | None] = None  # the dtype of a state; None: that of the hidden states
    first_share_counts: ClassVar[bool] = False  # whether `starts` needs only the share of the first process

    def at_level(self, level: int, levels: int) -> Momentum:
        """This kind in one of the UNet's levels, 0 with the largest maps. Raises: InputError if it has too few."""
        return self

    def at(self, first: int, progress: Tensor | None) -> Momentum:
        """This kind in a call: of the frames from `first` on; progress is 0 at the first step and 1 at the last."""
        return self

    @abstractmethod
    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor | Runs, Tensor | None]:
        """Blend hidden states over frames.

        Args:
            h: (b, n, c) with b = branches × frames, frames innermost; a branch is one side of the guidance.
            frames: frames in h.
            state: the state that the previous chunk of frames returned; None for the first chunk.
        Returns:
            the hidden states to project to keys and values: (b, m, c); or (branches, m, c) if all frames share them;
            or runs of frames that share them. And the state (branches, …) for the next chunk, or None if the kind has
            none. The state must not be a view of h, which would keep h in memory.
        """

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor | None:
        """The tensor that a process sends to the others, from its frames h (b, n, c) of a chunk that they share.

        Args: state: that after the previous chunk. first: whether these frames are the first ones of the chunk.
        Returns: a contiguous tensor of the same shape in all processes; or None in all processes if they need no
            exchange. Then every process starts from `state`, and so does the next chunk.
        """
        return None

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """The state after a process with `count` frames that started from `state`. A kind that shares needs it."""
        raise NotImplementedError(f"{type(self).__name__} has a share, and neither join nor starts")

    def starts(self, shares: Sequence[Tensor], counts: Sequence[int], state: Tensor | None) -> list[Tensor | None]:
        """The states that the processes start from, in order, and last the state that the next chunk starts from.

        Args: shares, counts: what each process sent, and its frames. The first has at least one; the share of a process
            without any has no meaning. state: that after the previous chunk; None for the first.
        """
        starts = [state]
        for share, count in zip(shares, counts, strict=True):
            state = self.join(state, share, count) if count else state
            starts.append(state)
        return starts


@dataclass(frozen=True)
class SelfAttention(Momentum):
    """`sa`: every frame sees itself."""

    state_frames: ClassVar[int] = 0

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, None]:
        """Return h unchanged."""
        return h, None


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

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """Frame 0 stays."""
        return share if state is None else state


@dataclass(frozen=True)
class Average(Momentum):
    """A kind with a momentum."""

    mu: Any  # a number, or one for each level
    mu_end: Any = None  # of the last step: likewise, or None if it stays

    def at_level(self, level: int, levels: int) -> Momentum:
        """With μ of one level."""
        return type(self)(_of_level("mu", self.mu, level, levels), _of_level("mu_end", self.mu_end, level, levels))

    def at(self, first: int, progress: Tensor | None) -> Momentum:
        """With μ of one step."""
        if self.mu_end is None or progress is None:
            return self
        return type(self)(self.mu + (self.mu_end - self.mu) * progress)


def _of_level(name: str, values: Any, level: int, levels: int) -> Any:
    if isinstance(values, tuple) and len(values) != levels:
        expected = f"one number, or one for each of the UNet's {counted(levels, 'level')}"
        raise InputError(f"{name} is {brief(values)}: expected {expected}")
    return values[level] if isinstance(values, tuple) else values


@dataclass(frozen=True)
class Temporal(Average):
    """`tma`: the recursion, in float32. The state is the last frame's h̃."""

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

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """s_{r+1} = μ^{n_r}·s_r + z_r"""
        return share if state is None else self.mu**count * state + share


@dataclass(frozen=True)
class TwoTap(Average):
    """`tma-two-tap`: an average with the frame before. The state is the last frame's h."""

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, n, c)"""
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        before = torch.cat([h[:, :1] if state is None else state[:, None], h[:, :-1]], dim=1)
        mu = self.mu.to(h.dtype) if isinstance(self.mu, Tensor) else self.mu
        return torch.lerp(h, before, mu).flatten(0, 1), h[:, -1].clone()

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """The last frame of the process."""
        return h.unflatten(0, (-1, frames))[:, -1].contiguous()

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """The last frame of the process before."""
        return share


@dataclass(frozen=True)
class FirstPrevious(Momentum):
    """`first-previous`: every frame sees frame 0 and the frame before (the sparse-causal attention of Wu et al. 2023,
    Tune-A-Video, arXiv 2212.11565). Frame 0 sees itself. The state is h of both."""

    state_frames: ClassVar[int] = 2
    key_frames: ClassVar[int] = 2

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, 2n, c)"""
        h = h.unflatten(0, (-1, frames))  # (branches, f, n, c)
        state = h[:, [0, 0]] if state is None else state  # (branches, 2, n, c)
        before = torch.cat([state[:, 1:], h[:, :-1]], dim=1)
        seen = torch.cat([state[:, :1].expand_as(h), before], dim=2)  # (branches, f, 2n, c)
        return seen.flatten(0, 1), torch.stack([state[:, 0], h[:, -1]], dim=1)

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """The first and the last frame of the process."""
        return h.unflatten(0, (-1, frames))[:, [0, -1]]

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """Frame 0, and the last frame of the process before."""
        return share if state is None else torch.stack([state[:, 0], share[:, 1]], dim=1)


@dataclass(frozen=True)
class Extended(Momentum):
    """`extended`: every frame sees the anchors that have come by then, so frame 0 sees itself. The state is h of all of
    them (branches, anchors, n, c), with zeros for those that are yet to come."""

    anchors: tuple[int, ...]
    first: int = 0  # the index of the first frame of the call

    @property
    def state_frames(self) -> int:  # type: ignore[override]
        """The number of anchors."""
        return len(self.anchors)

    key_frames = state_frames

    def at(self, first: int, progress: Tensor | None) -> Momentum:
        """In a call that begins with the frame `first`."""
        return Extended(self.anchors, first)

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Runs, Tensor]:
        """(b, n, c) → runs of frames, with the anchors that they see: (branches, anchors·n, c)"""
        state = self.join(state, self.share(h, frames, None, first=False), frames)
        bounds = [self.first, *(a for a in self.anchors if self.first < a < self.first + frames), self.first + frames]
        seen = [sum(anchor <= start for anchor in self.anchors) for start in bounds[:-1]]
        runs = zip(pairwise(bounds), seen, strict=True)
        return [(end - start, state[:, :n].flatten(1, 2)) for (start, end), n in runs], state

    def share(self, h: Tensor, frames: int, state: Tensor | None, *, first: bool) -> Tensor:
        """The anchors among the frames of the process, and zeros for the others."""
        h = h.unflatten(0, (-1, frames))
        places, zeros = [anchor - self.first for anchor in self.anchors], torch.zeros_like(h[:, 0])
        return torch.stack([h[:, place] if 0 <= place < frames else zeros for place in places], dim=1)

    def join(self, state: Tensor | None, share: Tensor, count: int) -> Tensor:
        """The anchors of all processes before."""
        return share if state is None else state + share


def momentum(kind: str, **parameters: Any) -> Momentum:
    """Build the attention over frames that has this name in ATTENTION_KINDS.

    parameters: those of the kind, such as mu. An absent one has its default; others are checked and not used.
    Raises: InputError for an unknown kind, or a value out of range.
    """
    row = ATTENTION_KINDS[kind]
    checked = {name: PARAMETERS[name].check(value) for name, value in parameters.items() if value is not None}
    implementation = load(row.implementation)
    if not (isinstance(implementation, type) and issubclass(implementation, Momentum)):
        raise InputError(f"attention kind {kind!r} names {implementation!r}: expected a subclass of Momentum")
    return implementation(**{name: checked.get(name, default) for name, default in row.defaults.items()})
