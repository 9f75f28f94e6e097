"""Runs `python -m zs2.ablate` in processes that are killed, or several at once; see the functions and test_ablate.py.

    python tests/forks.py killed-at-events FOLDER COUNT ARGUMENT ...
    python tests/forks.py killed-at-moments FOLDER COUNT ARGUMENT ...
    python tests/forks.py together FOLDER COUNT ARGUMENT ...

The processes are forked from this one, which has torch imported, but has not computed yet: so they start at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zs2.evaluation.clip_scorer
import zs2.study.runner
from zs2.ablate import main

NOW = os.WEXITED | os.WNOHANG | os.WNOWAIT
EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def start(arguments: list[str], first: Callable[[], Any] = lambda: None) -> int:
    """Start the command in a process of its own, which is silent and calls `first` before. Returns its id."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        first()
        os._exit(main(arguments))
    return process


def status(process: int) -> int:
    """How it ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_at_events(folder: Path, count: int, arguments: list[str]) -> list[int]:
    """One process after another: the n-th is killed just before the n-th change that it makes to the folder."""

    def die_before(last: int) -> None:
        left = last

        def look(event: str, values: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in EVENTS or not str(values[0]).startswith(str(folder)):
                return
            if event == "open" and not values[2] & (os.O_WRONLY | os.O_RDWR):
                return
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)

    return [status(start(arguments, lambda n=n: die_before(n))) for n in range(1, count + 1)]  # type: ignore[misc]


def killed_at_moments(folder: Path, count: int, arguments: list[str]) -> list[int]:
    """One process after another, each killed up to a quarter of a second after it finished its first clip."""
    chance, ends = random.Random(5), []
    for _ in range(count):
        there = len(list(folder.glob("clips/*.json")))
        process = start(arguments)
        while len(list(folder.glob("clips/*.json"))) == there and not os.waitid(os.P_PID, process, NOW):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.25))
        os.kill(process, signal.SIGKILL)
        ends.append(status(process))
    return ends


def together(folder: Path, count: int, arguments: list[str]) -> list[int]:
    """Several processes that begin their work together. Each notes the clips that it samples in FOLDER.log."""
    barrier = multiprocessing.get_context("fork").Barrier(count)
    run, sample = zs2.study.runner.Runner.run, zs2.study.runner.Runner.sample

    def run_after_all_are_here(self: Any, *given: Any) -> Any:
        barrier.wait(timeout=600)
        return run(self, *given)

    def note(self: Any, job: Any) -> Any:
        with open(f"{folder}.log", "a") as log:
            print(os.getpid(), job.name, file=log)
        return sample(self, job)

    zs2.study.runner.Runner.run, zs2.study.runner.Runner.sample = run_after_all_are_here, note  # type: ignore[method-assign]
    return [status(process) for process in [start(arguments) for _ in range(count)]]


MODES = {"killed-at-events": killed_at_events, "killed-at-moments": killed_at_moments, "together": together}

if __name__ == "__main__":
    mode, where, number, *rest = sys.argv[1:]
    print(json.dumps(MODES[mode](Path(where), int(number), [*rest, "--out", where])))
