"""Several processes that make one clip together: each takes some of the frames of every chunk (torch.distributed).

`torchrun --nproc-per-node N -m zs2.sample …` starts them. Within a chunk the frames go to the processes in order, as
evenly as can be. In every self-attention they tell each other one state, (branches, n, c) each, from which each knows
the state that its own frames start from (the scan is written down in models/temporal.py); after every step they
tell each other the latents, which are small. The group is handed down as an argument; nothing here is global.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zs2.errors import LostProcess
from zs2.models.temporal import Momentum


def split(frames: int, processes: int) -> list[int]:
    """How many frames of a chunk each process has, in order; the last ones may have none."""
    return [frames // processes + (rank < frames % processes) for rank in range(processes)]


@dataclass(frozen=True)
class Group:
    """This process among those that make a clip.

    rank: its number from 0. size: how many there are. here: how many of them on this machine. store: what all can read.
    """

    rank: int
    size: int
    here: int
    store: Any = field(default=None, repr=False, compare=False)

    def share(self, frames: int) -> Share:
        """This process's part of a chunk of so many frames."""
        return Share(self, split(frames, self.size))

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the processes' numbers, the same in all of them."""
        least = torch.tensor(number, device=device)
        with collective():
            dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)


class Share:
    """Some frames of a chunk: `mine` is which. A process without any computes the last one, which does not count."""

    def __init__(self, group: Group, counts: list[int]) -> None:
        self.group, self.counts = group, counts
        first = sum(counts[: group.rank])
        self.mine = slice(first, first + counts[group.rank]) if counts[group.rank] else slice(first - 1, first)

    def exchange(
        self, momentum: Momentum, h: Tensor, frames: int, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """An `Exchange`, as models/temporal.py has it."""
        share = momentum.share(h, frames, state, first=self.group.rank == 0)
        if share is None:
            return state, state
        if momentum.first_share_counts:
            with collective():
                dist.broadcast(share, src=0)
            shares = [share] * self.group.size
        else:
            shares = self._all(share)
        starts = momentum.starts(shares, self.counts, state)
        return starts[self.group.rank], starts[-1]

    def gather(self, part: Tensor) -> Tensor:
        """What each process made of its frames (f, …), as one tensor (F, …), in all of them."""
        most = max(self.counts)
        padded = part.new_zeros((most, *part.shape[1:]))  # the collective wants equal shapes
        padded[: len(part)] = part
        parts = self._all(padded)
        return torch.cat([piece[:count] for piece, count in zip(parts, self.counts, strict=True)])

    def _all(self, mine: Tensor) -> list[Tensor]:
        everyones = [torch.empty_like(mine) for _ in self.counts]
        with collective():
            dist.all_gather(everyones, mine.contiguous())
        return everyones


@contextmanager
def collective() -> Iterator[None]:
    """A collective: it fails where another process has ended."""
    try:
        yield
    except RuntimeError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun will send it, in the midst of cleaning up
        raise LostProcess from error
