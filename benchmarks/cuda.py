"""Everything that a machine with a GPU has to answer, in one run: is it right there, how fast, and in what memory.

    python benchmarks/cuda.py                          all stages, about eight minutes, to out/bench/cuda/cuda.json
    python benchmarks/cuda.py --budget 300             as many as fit, the most important ones first
    python benchmarks/cuda.py --only sd15 memory       some of them
    python benchmarks/cuda.py --device cpu --tiny      a rehearsal: all of it, small, on a CPU
    python benchmarks/cuda.py --size                   the size of this clone, for a machine that it is sent to

Each stage is a process of its own, with a limit of its own, so none can take another one down. What a stage found is
written after every figure, and joined after every stage; a table comes last. It needs torch, numpy, pillow, tokenizers,
huggingface_hub and safetensors. Where diffusers is there, it is timed, too. Nothing is downloaded: weights are random,
of Stable Diffusion 1.5's size or XL's, and made on the device. The exit status is 1 if a stage failed or a check is
not met.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CARRIED = 64 * 2**20  # bytes that are sent to such a machine at most


class Row(NamedTuple):
    """A stage: the function, the seconds that it should take, and what it answers."""

    function: str
    seconds: int
    what: str


# In the order of importance: correctness and the times of Stable Diffusion 1.5 in the first 300 s, compiling last.
STAGES = {
    "card": Row("card:card", 10, "versions, rates of products and copies"),
    "parity": Row("correct:parity", 40, "stored outputs of the reference libraries, float32"),
    "clips": Row("correct:clips", 40, "whole clips against the CPU"),
    "waits": Row("correct:waits", 10, "no step waits for the device"),
    "sd15": Row("steps:sd15", 45, "a UNet step of SD 1.5's size: attention, blends, kernels, diffusers"),
    "seeds": Row("correct:seeds", 10, "the same seed, twice, replayed"),
    "memory": Row("room:memory", 20, "the memory plan against the peak; too little memory"),
    "precision": Row("correct:precision", 20, "the networks in TF32, float16, bfloat16"),
    "processes": Row("room:processes", 10, "two processes on one device"),
    "speed": Row("clips:clips", 45, "frames a second, XL, the VAE's dtypes, 64 frames, streams"),
    "graph": Row("steps:graph", 20, "a CUDA graph of the call"),
    "start": Row("clips:start", 50, "a cold start from memory"),
    "compiled": Row("steps:compiled", 140, "compiled against compiled"),
}
SLACK = 25  # seconds above its own that a stage may take: to import torch and to begin
PATIENCE = 300  # the same in a rehearsal, whose machine may be busy
LEAST = 10  # seconds without which no stage is begun


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal (default cuda)")
    p.add_argument("--tiny", action="store_true", help="a rehearsal: everything is small")
    p.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    p.add_argument("--budget", type=float, metavar="SECONDS", help="for all stages together (default: no limit)")
    p.add_argument("--out", metavar="DIR", default=os.environ.get("OUT", "out/bench/cuda"), help="default %(default)s")
    p.add_argument("--size", action="store_true", help="print the size of this clone, and stop")
    p.add_argument("--child", nargs=3, metavar=("STAGE", "SECONDS", "FILE"), help=argparse.SUPPRESS)
    p.add_argument("--call", nargs="+", metavar=("FUNCTION", "ARGUMENT"), help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        child(*args.child, args)
        return 0
    if args.call:
        function(args.call[0])(*args.call[1:])
        return 0
    print(size())
    if args.size:
        return 0
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    begun, found = time.monotonic(), {}
    with open(out / "cuda.log", "w") as log:
        for name in args.only or STAGES:
            left = float("inf") if args.budget is None else args.budget - (time.monotonic() - begun)
            limit = min(STAGES[name].seconds + (PATIENCE if args.tiny else SLACK), left)
            found[name] = one(name, limit, out, args, log) if left >= LEAST else {"ended": "not reached"}
            shown = {"device": args.device, "tiny": args.tiny, "seconds": round(time.monotonic() - begun, 1)}
            (out / "cuda.json").write_text(json.dumps(shown | {"stages": found}, indent=1, ensure_ascii=False) + "\n")
            print(*lines(name, found[name]), sep="\n", flush=True)
    print(table(found))
    return int(any(stage["ended"] not in ("well", "not reached") or unmet(stage) for stage in found.values()))


def one(name: str, limit: float, out: Path, args: argparse.Namespace, log: Any) -> dict[str, Any]:
    """Run a stage in a process of its own. Returns: how it ended, its seconds, and what it found by then."""
    file, begun = out / f"{name}.part.json", time.monotonic()
    words = [sys.executable, __file__, "--device", args.device, *["--tiny"] * args.tiny]
    words += ["--child", name, f"{limit:.0f}", str(file)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    log.write(f"--- {name}\n")
    log.flush()
    process = subprocess.Popen(words, env=env, cwd=ROOT, stdout=log, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=limit)
        ended = "well" if process.returncode == 0 else f"status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        ended = f"cut off after {limit:.0f} s"
    log.write(errors)
    stage: dict[str, Any] = {"ended": ended, "seconds": round(time.monotonic() - begun, 1)}
    with contextlib.suppress(OSError, ValueError):  # it ended before it had begun
        stage |= json.loads(file.read_text())
        file.unlink()
    if ended != "well":
        stage["error"] = errors[-3000:]
    return stage


def child(name: str, seconds: str, file: str, args: argparse.Namespace) -> None:
    """Run one stage in this process."""
    import torch

    run, stage = function(STAGES[name].function), function("stage:Stage")
    with device_of(args.device):
        run(stage(torch.device(args.device), args.tiny, float(seconds), Path(file)))


def function(name: str) -> Any:
    """What a module of the stages calls so: `steps:sd15`.

    This folder is the last one on the path: NVIDIA has a package `cuda`, which torch may import.
    """
    here = ROOT / "benchmarks"
    sys.path[:] = [*(path for path in sys.path if Path(path).resolve() != here), str(here)]
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"cuda_stages.{module}"), attribute)


@contextlib.contextmanager
def device_of(name: str) -> Any:
    """The device. `sim` is the simulated one of the tests, where a tensor that was left on the host raises."""
    if name != "sim":
        yield
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from simulated_device import simulated_device

    with simulated_device():
        yield


def unmet(stage: dict[str, Any]) -> list[str]:
    """The checks of a stage that are not met, as text."""
    return [
        f"{check['name']}: {check['value']}" + (f", limit {check['limit']}" if "limit" in check else "")
        for check in stage.get("checks", ())
        if not check["met"]
    ]


def lines(name: str, stage: dict[str, Any]) -> list[str]:
    """What a stage found, in lines."""
    seconds = f" ({stage['seconds']} s)" if "seconds" in stage else ""
    found = [f"{name}: {STAGES[name].what}: {stage['ended']}{seconds}"]
    found += [f"  {figure['name']}: {figure['value']} {figure['unit']}".rstrip() for figure in stage.get("figures", ())]
    found += [f"  NOT MET: {text[:400]}" for text in unmet(stage)]
    return found + [f"  {line}" for line in stage.get("error", "").splitlines()[-3:]]


def table(found: dict[str, dict[str, Any]]) -> str:
    """The short table: a row for each stage."""
    rows = [f"\n{'stage':<11} {'seconds':>8} {'checks met':>11}  ended"]
    for name, stage in found.items():
        checks = stage.get("checks", ())
        met = f"{sum(check['met'] for check in checks)}/{len(checks)}"
        rows.append(f"{name:<11} {stage.get('seconds', ''):>8} {met:>11}  {stage['ended']}")
    return "\n".join(rows)


def size() -> str:
    """The size of the clone: of what git tracks, and of what it neither tracks nor ignores."""
    try:
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "this folder is no clone: its size is not known"
    files = [ROOT / name for name in listed.split("\0") if name]
    total = sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
    return f"this clone: {total / 2**20:.1f} MiB of {CARRIED / 2**20:.0f}"


if __name__ == "__main__":
    sys.exit(main())
