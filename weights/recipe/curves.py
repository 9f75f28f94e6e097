"""Plot the logs of a training: curves.png (needs matplotlib: `pip install -e .[recipe]`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def parts(work: Path) -> list[str]:
    """The parts that were trained, in order. The UNet has one stage or several."""
    stages = sorted(file.name.partition(".")[0] for file in work.glob("unet*.log.jsonl"))
    return [part for part in ("clip", "vae", *stages) if lines(work, part)]


def lines(work: Path, part: str) -> list[dict[str, Any]]:
    """The logged lines of a part."""
    file = work / f"{part}.log.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def seconds(work: Path) -> dict[str, float]:
    """The seconds that each part took to train."""
    return {part: lines(work, part)[-1]["seconds"] for part in parts(work)}


def summary(work: Path) -> str:
    """The time that each part took to train, as text."""
    return ", ".join(f"{part} {taken / 60:.0f} min" for part, taken in seconds(work).items())


def draw(work: Path) -> None:
    """Write curves.png: for each part the loss, and every other logged figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no curves.png: matplotlib is not installed (pip install -e .[recipe])", file=sys.stderr)
        return
    logs = {part: lines(work, part) for part in parts(work)}
    if not logs:
        return
    kinds = {part: [key for key in log[0] if key not in ("step", "seconds", "rate")] for part, log in logs.items()}
    figure = Figure(figsize=(4 * max(map(len, kinds.values())), 3 * len(logs)), layout="constrained")
    grid = figure.subplots(len(logs), max(map(len, kinds.values())), squeeze=False)
    for row, (part, log) in zip(grid, logs.items(), strict=True):
        for axes in row[len(kinds[part]) :]:
            axes.remove()
        for axes, key in zip(row, kinds[part], strict=False):
            axes.plot([line["step"] for line in log], [line[key] for line in log], linewidth=1)
            axes.set_title(f"{part}: {key}", fontsize=10)
            axes.set_xlabel("step")
            if key in ("loss", "error"):
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
    unfinished = work / "curves.part.png"
    figure.savefig(unfinished, dpi=100)
    unfinished.replace(work / "curves.png")
