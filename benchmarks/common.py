"""What the benchmarks share: a description of the machine, turns, ratios, child processes, and figures as JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zs2.errors import InputError
from zs2.system.own_files import is_own

MARK = '{\n "machine": {'  # how the JSON of a benchmark begins
BEGUN = "ZS2_BENCHMARK_BEGUN"  # the time when this process was started, by the clock that all processes share


def run(main: Callable[[], object]) -> None:
    """Run a benchmark, and end with what it returns. What zs2 refuses is one line."""
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine on which the figures are measured, with the rate of its matrix products in float32."""
    on = torch.device(device)
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else _cpu()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gemm_gflops": {"float32": round(gemm(torch.float32, on) / 1e9, 1)},
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    """The name of the processor if the system reports it, else that of the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def sentence(hardware: dict[str, Any]) -> str:
    """The description of a machine as one line."""
    rates = ", ".join(f"{rate:g} in {dtype}" for dtype, rate in hardware["gemm_gflops"].items())
    parts = (
        hardware["device"],
        f"{hardware['threads']} threads",
        hardware["instructions"],
        f"torch {hardware['torch']}",
    )
    return f"{', '.join(parts)}; GEMM: {rates} GFLOP/s"


def gemm(dtype: torch.dtype, device: torch.device, n: int = 2048, rounds: int = 5) -> float:
    """The rate of the product of two n × n matrices in FLOP/s, the best of some rounds. It is the limit of a model."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(timed(lambda: a @ b, device) for _ in range(rounds))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that some work takes, until the device has finished it."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has arithmetic in a dtype. A CPU that has none is many times slower in it."""
    if dtype == torch.float32 or device.type != "cpu":
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def turns(ways: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, way): each way once per round.

    Each round begins with another way, and every other round goes backwards. So of three or more ways, none always
    follows the same one, and none follows itself with its memory still in the cache.
    """
    for number in range(rounds):
        start = number % len(ways)
        order = [*ways[start:], *ways[:start]]
        for way in reversed(order) if number % 2 else order:
            yield number, way


class Ratio(NamedTuple):
    """The ratio of two ways that were measured in the same rounds: the median over rounds, the least and the most."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f} … {self.most:.3f})"


def ratio(values: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of the values of a way to those of another one, each within the same round."""
    ratios = [mine / other for mine, other in zip(values, base, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def psnr(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The PSNR of a clip against another, in dB, at most 99."""
    error = float(((frames.astype(float) - others) ** 2).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median (least … most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
    """Print a table in Markdown. texts: how many columns, the first ones, are texts and not numbers."""
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * texts + "--:|" * (len(heads) - texts))
    for row in rows:
        print(f"| {' | '.join(row)} |")


def bar(name: str, value: float, limit: float, *, least: bool) -> str:
    """A line that says whether a value meets a bar: at least, or at most, the limit."""
    met = value >= limit if least else value <= limit
    return f"bar: {name} {value:.3f}, {'at least' if least else 'at most'} {limit:g}: {'met' if met else 'MISSED'}"


def alone(script: str, *arguments: str, **environment: str) -> Any:
    """Run a script in a process of its own, offline. Returns: its last line, read as JSON. Exits if it fails."""
    offline = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    env = os.environ | offline | environment | {BEGUN: repr(time.monotonic())}
    done = subprocess.run([sys.executable, script, *arguments], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def since_begun() -> float:
    """The seconds since this process was started, the start of Python included."""
    return time.monotonic() - float(os.environ[BEGUN])


def highest_resident_size() -> float:
    """The highest resident size of this process, in GB. (That of getrusage includes the process that started it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def add_json(p: argparse.ArgumentParser) -> None:
    """Add the option --json, for a new file or for one that `save` wrote."""

    def checked(file: str) -> str:
        if Path(file).exists() and not is_own(Path(file), MARK):
            raise argparse.ArgumentTypeError(f"{file} is there, and no benchmark wrote it: expected a new name")
        return file

    p.add_argument("--json", type=checked, metavar="FILE", help="also write the figures as JSON")


def save(file: str | None, hardware: dict[str, Any], **figures: Any) -> None:
    """Write the figures and the machine to a file as JSON, if it is not None."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps({"machine": hardware, **figures}, indent=1, ensure_ascii=False) + "\n")
