"""What a stage gets, and where it puts what it finds; clocks, and the error of a result."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import ratio, timed, turns
from torch import Tensor

Work = Callable[[], object]


class Stage:
    """A stage in progress. What it found so far is always in its file, also if its time ends.

    Args:
        device: what is measured. tiny: a rehearsal: everything is small. seconds: that the stage has.
        file: JSON with `figures` and `checks`.
    """

    def __init__(self, device: torch.device, tiny: bool, seconds: float, file: Path) -> None:
        self.device, self.tiny, self.file = device, tiny, file
        self.cuda = device.type == "cuda"
        self._end = time.monotonic() + seconds
        self.figures: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self._write()

    def figure(self, name: str, value: float | str, unit: str = "") -> None:
        """Record a figure, or a word."""
        self.figures.append({"name": name, "value": value, "unit": unit})
        self._write()

    def check(self, name: str, value: float, limit: float, *, least: bool = False) -> None:
        """Record whether a value is at most, or at least, the limit. NaN is neither."""
        met = value >= limit if least else value <= limit
        self.checks.append({"name": name, "value": value, "limit": limit, "least": least, "met": bool(met)})
        self._write()

    def holds(self, name: str, met: bool, what: str = "") -> None:
        """Record whether something is as it should be. what: what was got."""
        self.checks.append({"name": name, "value": what, "met": bool(met)})
        self._write()

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._end - time.monotonic()

    def _write(self) -> None:
        self.file.write_text(json.dumps({"figures": self.figures, "checks": self.checks}, ensure_ascii=False))

    # --- clocks -------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Work) -> float:
        """The seconds of some work, by the clock of the host."""
        self.wait()
        return timed(work, self.device)

    def in_turns(self, ways: Mapping[str, Work], most: float, rounds: int = 15) -> dict[str, list[float]]:
        """The seconds of each way, which take turns; on CUDA by its events.

        most: the seconds that all of it may take. rounds: the most; there are at least 3.
        """
        for work in ways.values():
            work()
        once = sum(self.seconds(work) for work in ways.values())
        rounds = 1 if self.tiny else max(3, min(rounds, int(min(most, self.left) / once)))
        clocks: dict[str, list[Any]] = {way: [] for way in ways}
        for _, way in turns([*ways], rounds):
            if not self.cuda:
                clocks[way].append(timed(ways[way], self.device))
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            ways[way]()
            end.record()
            clocks[way].append((start, end))
        self.wait()
        if not self.cuda:
            return clocks
        return {way: [start.elapsed_time(end) / 1e3 for start, end in pairs] for way, pairs in clocks.items()}

    def report(self, runs: Mapping[str, list[float]], label: str, base: str) -> dict[str, float]:
        """Record the median of each way in ms, and its ratio to a way. Returns: the medians, in seconds."""
        medians = {way: statistics.median(times) for way, times in runs.items()}
        for way, seconds in medians.items():
            self.figure(f"{label}, {way}", round(seconds * 1e3, 3), "ms")
            if way != base:
                self.figure(f"{label}, {way} over {base}", round(ratio(runs[way], runs[base]).median, 4))
        return medians


def error(got: Tensor, want: Tensor) -> float:
    """max|got − want| / max|want|; NaN if a number is not finite."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not got.isfinite().all():
        return float("nan")
    return float((got - want).abs().max() / want.abs().max())


def exact_float32(exact: bool = True) -> None:
    """Whether products and convolutions of float32 are computed in float32 on CUDA, or in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact
