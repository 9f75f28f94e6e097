"""Several processes that make one clip together: each takes some of the frames of every chunk (torch.distributed).

`torchrun --nproc-per-node N -m zs2.sample …` starts them. Within a chunk the frames go to the processes in order, as
evenly as can be. In every self-attention they tell each other one state, (branches, n, c) each, from which each knows
the state that its own frames start from (the scan is written down in models/temporal.py); after every step they
tell each other the latents, which are small. The group is handed down as an argument; nothing here is global.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from zs2.cli.command import Failure, Parser, command
from zs2.errors import InputError, LostProcess
from zs2.models.temporal import Momentum
from zs2.system.devices import own_device

GRACE = 3.0  # seconds that one process has to say what is wrong: torchrun ends all when the first one ends


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
        with _together():
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
            with _together():
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
        with _together():
            dist.all_gather(everyones, mine.contiguous())
        return everyones


@contextmanager
def joined(backend: str) -> Iterator[Group]:
    """The group of the processes that torchrun started, by its environment: gloo on a CPU, nccl on GPUs.

    While it lasts, the end of another process is a `LostProcess` here: a collective fails, or torchrun sends SIGTERM.
    """

    def told(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise LostProcess

    before = signal.signal(signal.SIGTERM, told)
    try:
        with _together():
            store, rank, size = next(rendezvous("env://"))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        yield Group(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), PrefixStore("zs2", store))
        with _together():
            dist.barrier()
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, before)
    except BaseException:  # the group is left as it is: to take leave could wait for the others
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is still to be said what is wrong
        raise


@contextmanager
def _together() -> Iterator[None]:
    """A collective: it fails where another process has ended."""
    try:
        yield
    except RuntimeError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun will send it, in the midst of cleaning up
        raise LostProcess from error


def together(
    parser: Parser,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    run: Callable[[dict[str, Any], Group], object],
    argv: Sequence[str] | None,
) -> int:
    """A command, as `zs2.cli.command.command`, as one of several processes: what is wrong is said by one of them, once.

    prepare: what has to be known of the options before the processes meet. run: the work.
    """
    silent = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) > 0  # one of each machine speaks until they meet
    if silent:
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                parser.parse_args(argv)
        except SystemExit:
            time.sleep(GRACE)
            raise

    def shared(given: dict[str, Any]) -> None:
        if int(os.environ["RANK"]):
            warnings.simplefilter("ignore")
        group = None
        try:
            given = prepare(given)
            given["device"] = device = own_device(given.get("device"))
            if device.startswith("mps"):
                raise InputError("several processes can't make a clip on mps: give --device cpu")
            cuda = device.startswith("cuda") and torch.cuda.is_available()
            with joined("nccl" if cuda else "gloo") as group:
                run(given, group)
        except Exception as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            speaks = not silent if group is None else _first(group)
            if not speaks:  # another one fails for the same reason, or this one fails because of that
                time.sleep(GRACE)
                raise SystemExit(1) from error
            if isinstance(error, LostProcess):
                what = f"one of the {os.environ['WORLD_SIZE']} processes has ended before the others"
                raise Failure(f"{what}: only the clips that were named before are written") from error
            raise

    return command(parser, shared, argv)


def _first(group: Group) -> bool:
    """Whether no other process has failed before."""
    try:
        return group.store.add("failed", 1) == 1
    except RuntimeError:  # the store has ended too
        return True
