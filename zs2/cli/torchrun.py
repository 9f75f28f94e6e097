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
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from zs2.cli.command import Failure, Parser, command
from zs2.errors import InputError, LostProcess
from zs2.sampling.frame_parallel import Group, collective
from zs2.system.devices import check_gpus, choose_device, own_device

GRACE = 3.0  # seconds that one process has to print its error: torchrun ends all when the first one ends


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group of the processes that torchrun started, as its environment variables describe it.

    Until it ends, the end of another process is a `LostProcess` here: a collective fails, or torchrun sends SIGTERM.

    Args:
        device: that of this process. They meet by NCCL on GPUs, else by gloo.
    """

    def lost(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise LostProcess

    previous = signal.signal(signal.SIGTERM, lost)
    try:
        with collective():
            store, rank, size = next(rendezvous("env://"))
            own = torch.device(device) if device.startswith("cuda") else None
            backend = "gloo" if own is None else "nccl"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=own)
        yield Group(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), PrefixStore("zs2", store))
        with collective():
            dist.barrier()
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
            with joined(device) as group:
                run(options, group)
        except Exception as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            prints = not silent if group is None else _failed_first(group)
            if not prints:  # another one fails for the same reason, or this one fails because of that
                time.sleep(GRACE)
                raise SystemExit(1) from error
            if isinstance(error, LostProcess):
                what = f"one of the {os.environ['WORLD_SIZE']} processes has ended before the others"
                kept = str(error) or "only the clips that were named before are written"
                raise Failure(f"{what}: {kept}") from error
            raise

    return command(parser, joined_run, argv)


def _failed_first(group: Group) -> bool:
    """Whether no other process has failed before this one."""
    try:
        return group.store.add("failed", 1) == 1
    except RuntimeError:  # the store has ended, too
        return True
