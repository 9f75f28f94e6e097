"""Measure what fewer and cheaper steps change: DPM-Solver++, guidance in an interval, DeepCache, and `--fast`.

    python benchmarks/fewer_steps.py                  # the default checkpoint: its eight closed prompts, two seeds
    python benchmarks/fewer_steps.py --model sd15 --prompts prompts.txt --seeds 1
    python benchmarks/fewer_steps.py --csv docs/data/fewer-steps.csv

Each clip is also made in the reference's way, by DDIM with all steps guided, from the same noise. Time is that of
sampling alone, as a ratio to the reference's time for the same prompt and seed; the ways take turns. PSNR compares the
clip with the reference's. Fewer steps end at another picture of the same thing, so PSNR shows how far that is, not how
good. CLIP score and motion are differences from the reference's, with 95 % intervals over prompts where there are five
or more.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import add_json, machine, psnr, run, save, sentence

from zs2 import ZS2, Request
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.own_settings import OwnSettings
from zs2.evaluation.clip_scorer import Scorer, scoring_model
from zs2.evaluation.measure import measure
from zs2.sampling.request import FAST
from zs2.study.prompts import default_prompts, read_prompts
from zs2.study.stats import Estimate, Key, difference, mean
from zs2.system.progress import progress
from zs2.video.formats import Frames

ENDS = ("", "_difference", "_low", "_high")
COLUMNS = (
    *("way", "time_ratio", "time_least", "time_most", "psnr_db"),
    *(f"{name}{end}" for name in ("clip_score", "motion") for end in ENDS),
)


def ways(steps: int) -> dict[str, dict[str, Any]]:
    """The compared ways, the reference first: names, and options of a request."""
    fewer = [steps // 2, steps // 3, steps // 5]
    found: dict[str, dict[str, Any]] = {f"ddim {steps}": {"steps": steps}}
    found |= {f"ddim {count}": {"steps": count} for count in fewer}
    found |= {f"dpm++ {count}": {"steps": count, "sampler": "dpm++"} for count in (steps, *fewer)}
    for interval in ((0.0, 0.8), (0.0, 0.5), (0.2, 0.8)):
        found[f"ddim {steps}, guided {interval[0]:g} to {interval[1]:g}"] = {
            "steps": steps,
            "guidance_interval": interval,
        }
    found |= {f"ddim {steps}, deep cache {n}": {"steps": steps, "deep_cache": n} for n in (2, 3, 5)}
    return found | {"fast": FAST}


def shown(estimate: Estimate | None, digits: int) -> str:
    """A difference with its interval."""
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    return f"{estimate.value:+.{digits}f}{interval}"


def rows(values: Mapping[str, Mapping[str, Mapping[Key, float | None]]]) -> list[dict[str, str]]:
    """The rows of the CSV, the reference first: medians of times, and means with the intervals of differences."""
    (first, base), *_ = values.items()
    found = []
    for way, row in values.items():
        cells = {"way": way}
        ratios = [(row["time"][key] or 0) / (base["time"][key] or 1) for key in base["time"]]
        names = ("time_ratio", "time_least", "time_most")
        times = (statistics.median(ratios), min(ratios), max(ratios))
        cells |= {name: f"{value:.2f}" for name, value in zip(names, times, strict=True) if way != first}
        if way != first:
            cells["psnr_db"] = f"{statistics.mean(value or 0 for value in row['psnr'].values()):.1f}"
        for name, column, digits in (("clip-score", "clip_score", 2), ("motion", "motion", 4)):
            average = mean(row[name])
            cells[column] = "" if average is None else f"{average.value:.{digits}f}"
            change = None if way == first else difference(row[name], base[name])
            if change is not None:
                parts = {"difference": change.value, "low": change.low, "high": change.high}
                cells |= {f"{column}_{end}": f"{part:.{digits}f}" for end, part in parts.items() if part is not None}
        found.append(cells)
    return found


def write_csv(file: Path, table: Sequence[Mapping[str, str]]) -> None:
    """Write the rows; a cell that a row lacks is empty."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=DEFAULT_MODEL)
    p.add_argument("--prompts", metavar="FILE", help="one per line (default: the study's closed prompts)")
    p.add_argument("--seeds", type=int, default=2, help="clips of each prompt (default 2)")
    p.add_argument("--frames", type=int, default=8)
    p.add_argument("--steps", type=int, default=50, help="steps of the reference (default 50)")
    p.add_argument("--guidance", type=float, default=5.0)
    p.add_argument("--lam", type=float, default=0.1)
    p.add_argument("--csv", type=Path, metavar="FILE", help="also write the table")
    add_json(p)
    args = p.parse_args(argv)
    prompts = read_prompts(args.prompts) if args.prompts else default_prompts(OwnSettings.of(args.model))
    texts = [prompt.text for prompt in prompts if prompt.set == "closed" and prompt.text.strip()]
    if args.steps < 10 or not texts:
        p.error(f"{args.steps} steps, {len(texts)} closed prompts: expected at least 10 steps, and one closed prompt")
    model = ZS2.from_pretrained(args.model, dtype="float32", lam=args.lam)
    scorer = Scorer.from_pretrained(scoring_model(args.model))
    compared = ways(args.steps)
    first = next(iter(compared))
    common = {"frames": args.frames, "guidance": args.guidance}
    model.latents(texts[0], **common, steps=2)  # warm up

    values: dict[str, dict[str, dict[Key, float | None]]] = {
        way: {"time": {}, "psnr": {}, "clip-score": {}, "motion": {}} for way in compared
    }
    keys = [(i, seed) for i in range(len(texts)) for seed in range(args.seeds)]
    for i, seed in progress(keys, len(keys), "prompts"):
        reference: Frames = np.empty(0, np.uint8)
        for turn, (way, options) in enumerate(compared.items()):
            begun = time.perf_counter()
            *_, last = model.sample(Request(texts[i], seed=seed, chunk=args.frames, **common, **options))
            seconds = time.perf_counter() - begun
            frames = model.decode(last.latents)
            reference = frames if turn == 0 else reference
            found = measure(frames, texts[i], scorer)
            row = {"time": seconds, "psnr": psnr(frames, reference)}
            for name, value in (row | {name: found[name] for name in ("clip-score", "motion")}).items():
                values[way][name][i, seed] = value

    hardware = machine(str(model.device))
    print(sentence(hardware))
    print(f"{args.model}: {len(keys)} clips of {args.frames} frames each way, guidance {args.guidance:g}")
    print(f"{'':<28} {'time':>5} {'(min … max)':<14} {'PSNR':>6}  {'CLIP score':<24} motion")
    figures: dict[str, Any] = {}
    for way, row in values.items():
        base = values[first]
        ratios = [(row["time"][key] or 0) / (base["time"][key] or 1) for key in keys]
        time_ = f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        if way == first:
            score, moved = mean(row["clip-score"]), mean(row["motion"])
            assert score is not None
            assert moved is not None
            print(f"{way:<28} {time_:<20} {'':>6}  {score.value:<24.2f} {moved.value:.4f}")
        else:
            score, moved = (difference(row[name], base[name]) for name in ("clip-score", "motion"))
            average = statistics.mean(value or 0 for value in row["psnr"].values())
            print(f"{way:<28} {time_:<20} {average:6.2f}  {shown(score, 2):<24} {shown(moved, 4)}")
        figures[way] = {name: list(by_key.values()) for name, by_key in row.items()}
    save(args.json, hardware, keys=keys, ways=figures)
    if args.csv:
        write_csv(args.csv, rows(values))


if __name__ == "__main__":
    run(main)
