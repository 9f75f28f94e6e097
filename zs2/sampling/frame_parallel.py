"""Sample one clip with several processes: each takes some of the frames of every chunk (torch.distributed).

`torchrun --nproc-per-node N -m zs2.sample …` starts them. The frames of a chunk go to the processes in order, as evenly
as possible. In every self-attention, each process sends one state (branches, n, c) to the others. From these states it
computes the state that its own frames start from; models/temporal.py explains the scan. After every step, the processes
exchange their latents, which are small. The group is passed as an argument; nothing here is global.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from zs2.errors import LostProcess
from zs2.models.temporal import Momentum

PATIENCE = 600.0  # seconds to wait for another process, beyond the longest step so far


def split(frames: int, processes: int) -> list[int]:
    """The number of frames of a chunk for each process, in order. The last processes may have none."""
    return [frames // processes + (rank < frames % processes) for rank in range(processes)]


@dataclass
class Patience:
    """How long to wait for another process.

    Args: seconds: how long; None for 10 minutes beyond the longest step so far.
    Attributes: longest: the longest step so far, in seconds.
    """

    seconds: float | None = None
    longest: float = 0.0

    @property
    def limit(self) -> float:
        """Seconds."""
        return PATIENCE + self.longest if self.seconds is None else self.seconds

    def note(self, step: float) -> None:
        """Note how long a step took. If it is longer than those before, all that follows may take longer."""
        if step > self.longest + 1:
            self.longest = step
            if self.seconds is None and hasattr(distributed_c10d, "_set_pg_timeout"):  # no public way is there
                distributed_c10d._set_pg_timeout(timedelta(seconds=self.limit))


@dataclass(frozen=True)
class Group:
    """The processes that make a clip together, as this one sees them.

    rank: the number of this process, from 0. size: the number of processes.
    here: the number of them on this machine.
    patience: how long to wait for another one. peers: what is known of the others; see cli/peers.py.
    """

    rank: int
    size: int
    here: int
    patience: Patience = field(default_factory=Patience, repr=False, compare=False)
    peers: Any = field(default=None, repr=False, compare=False)

    def share(self, frames: int) -> Share:
        """The share of this process in a chunk of `frames` frames."""
        return Share(self, split(frames, self.size))

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the numbers that the processes pass. All of them get the same result."""
        least = torch.tensor(number, device=device)
        with collective():
            dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)


class Share:
    """The frames of a chunk that a process computes: the slice `mine`.

    A process without frames of its own computes the last frame of the chunk, and its result is dropped.
    """

    def __init__(self, group: Group, counts: list[int]) -> None:
        self.group, self.counts = group, counts
        first = sum(counts[: group.rank])
        self.mine = slice(first, first + counts[group.rank]) if counts[group.rank] else slice(first - 1, first)

    def exchange(
        self, momentum: Momentum, h: Tensor, frames: int, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Exchange states with the other processes: an `Exchange` of models/temporal.py."""
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
        """Join the results of all processes, (f, …) each, to one tensor (F, …). Each process gets it."""
        most = max(self.counts)
        padded = part.new_zeros((most, *part.shape[1:]))  # the collective operation needs equal shapes
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
    """Run a collective operation. Raises: LostProcess if another process has ended, or does not answer in time."""
    try:
        yield
    except RuntimeError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it, and would interrupt the clean-up
        raise LostProcess(late="timed out" in str(error).lower()) from error
