"""A command as one of several processes, which torchrun started: they join, and a failure is one line of one of them.

How they share the frames of a clip is in sampling/frame_parallel.py.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from zs2.cli.command import Failure, Parser, command
from zs2.cli.peers import Peers
from zs2.errors import InputError, LostProcess
from zs2.sampling.frame_parallel import Group, Patience, collective
from zs2.system.devices import check_gpus, choose_device, own_device
from zs2.system.stopping import Stopped

STOPPED, LATE = "stopped", "late"  # notes that all processes see
GRACE = 3.0  # seconds that one process has to print its error: torchrun ends all when the first one ends


@contextmanager
def joined(device: str, timeout: float | None = None) -> Iterator[Group]:
    """The group of the processes that torchrun started, as its environment variables describe it.

    Until it ends, the end of another process is a `LostProcess` here: a collective fails, or torchrun sends SIGTERM. So
    is one that does not answer in time. SIGTERM while all others live is the end of all: the first process raises
    `Stopped`; the others go on until they notice that.

    Args:
        device: that of this process. They meet by NCCL on GPUs, else by gloo.
        timeout: seconds to wait for another process; by default 10 minutes beyond the longest step so far.
    """
    patience = Patience(timeout)
    peers: Peers | None = None

    def terminated(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        if peers is None or (peers.rank == 0 and peers.silent()):
            raise LostProcess
        if peers.rank == 0:
            peers.note(STOPPED)
            raise Stopped(number)
        peers.terminated = True

    previous = signal.signal(signal.SIGTERM, terminated)
    try:
        with collective():
            limit = timedelta(seconds=patience.limit)
            store, rank, size = next(rendezvous("env://", timeout=limit))
            own = torch.device(device) if device.startswith("cuda") else None
            backend = "gloo" if own is None else "nccl"
            dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=size, device_id=own)
        peers = Peers(PrefixStore("zs2", store), rank, size, patience.limit)
        yield Group(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), patience, peers)
        peers.wait_for_all(patience.limit)
        peers.leave()
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, previous)
    except BaseException:  # the group is not destroyed: that could wait for the others
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the error is still to be printed
        raise


def together(
    parser: Parser,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    run: Callable[[dict[str, Any], Group], object],
    argv: Sequence[str] | None,
) -> int:
    """Run a command as one of several processes. One of them prints the errors and warnings.

    Args:
        parser, argv: as `zs2.cli.command.command` has them.
        prepare: completes the options, before the processes join.
        run: the work.
    Returns: the exit status, as `zs2.cli.command.command` has it.
    """
    silent = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) > 0  # one of each machine prints until they join
    if silent:
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                parser.parse_args(argv)
        except SystemExit:
            time.sleep(GRACE)
            raise

    def joined_run(options: dict[str, Any]) -> None:
        if int(os.environ["RANK"]):
            warnings.simplefilter("ignore")
        group = None
        try:
            options = prepare(options)
            options["device"] = device = own_device(options.get("device"))
            if device.startswith("mps"):
                raise InputError("several processes can't make a clip on mps: give --device cpu")
            if device.startswith("cuda"):
                choose_device(device)  # raises where there is none
            check_gpus(device)
            with joined(device, options.get("process_timeout")) as group:
                run(options, group)
        except Exception as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if group is not None and group.peers.noted(STOPPED):  # the first process says so
                raise SystemExit(128 + signal.SIGTERM) from error
            if group is not None and isinstance(error, LostProcess) and error.late:
                group.peers.note(LATE)
            prints = not silent if group is None else group.peers.is_first("failed")
            if not prints:  # another one fails for the same reason, or this one fails because of that
                time.sleep(GRACE)
                raise SystemExit(1) from error
            if isinstance(error, LostProcess):
                raise Failure(lost(group, error)) from error
            raise
        finally:
            if group is not None:
                group.peers.leave()

    return command(parser, joined_run, argv)


def lost(group: Group | None, error: LostProcess) -> str:
    """Which process is lost, and what is left of the work."""
    kept = error.kept or "only the clips that were named before are written"
    if group is None:
        return f"one of the {os.environ['WORLD_SIZE']} processes has ended before the others, or never came: {kept}"
    ranks = group.peers.silent()
    which = f"rank {', '.join(map(str, ranks))}" if ranks else "no rank is silent"
    if not error.late and not group.peers.noted(LATE):
        return f"one of the {group.size} processes has ended before the others ({which}): {kept}"
    if not ranks:
        return (
            f"a process of {group.size} took over {group.patience.limit:.0f} s: try a longer --process-timeout; {kept}"
        )
    return (
        f"{which} of {group.size} processes has not answered for {group.patience.limit:.0f} s (--process-timeout): is "
        f"it stopped? {kept}"
    )
