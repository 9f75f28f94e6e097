"""Long clips: how identity, motion and CLIP score go along a clip, for kinds of attention. See questions.py.

Frames are measured as they are made, so memory does not grow with a clip. A clip's figures are one CSV in the folder,
written when the clip is whole: the same command again goes on with those that are missing, and several processes can
take a shard each.

    first      the cosine of a frame's embedding with frame 0's
    previous   that with the frame before
    motion     the mean absolute change from the frame before, pixels in [0, 1]
    score      100 × the cosine with the prompt
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import print_table
from long_clips_drawn import plot, sheet
from numpy.typing import NDArray

from zs2 import ZS2, Clip
from zs2.cli.values import shard
from zs2.errors import InputError, whole
from zs2.evaluation.clip_scorer import BATCH, Scorer, scoring_model
from zs2.method import LAM_MAX
from zs2.study.cells import FULL
from zs2.study.prompts import Prompt, default_prompts
from zs2.study.stats import Estimate, Key, difference, mean
from zs2.system.atomic import write_json, write_text
from zs2.system.progress import progress
from zs2.video.formats import Frames

METRICS = {
    "first": "identity to frame 0",
    "previous": "identity to the frame before",
    "motion": "motion",
    "score": "CLIP score",
}
BASE = "cfa"  # what the others are compared with: frame 0's weight in its keys stays 1
Figures = dict[str, dict[Key, list[dict[str, float]]]]  # {variant: {(prompt, seed): a row for each frame ≥ 1}}


class Variant(NamedTuple):
    """A kind of attention, and μ if it is not the default: `tma:0.9`."""

    attn: str
    mu: float | None

    @classmethod
    def of(cls, name: str) -> Variant:
        """By its name on the command line."""
        attn, _, mu = name.partition(":")
        try:
            return cls(attn, float(mu) if mu else FULL.mu if attn == "tma" else None)
        except ValueError:
            raise InputError(f"variant {name}: expected a kind of attention, or KIND:μ such as tma:0.9") from None


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the command."""
    p.add_argument("--frames", type=int, default=128)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--guidance", type=float, help="default: the checkpoint's own")
    p.add_argument("--lam", type=float, help="default: the checkpoint's own")
    p.add_argument("--variants", nargs="+", default=["tma", "tma:0.9", "cfa", "first-previous"], metavar="KIND[:μ]")
    p.add_argument("--each", type=int, default=4, help="prompts of each set, of the checkpoint's own (default 4)")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--size", type=int, help="pixels (default: the checkpoint's own)")
    p.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="make only the I-th of N parts")
    p.add_argument("--out", default="out/drift", metavar="DIR", help="the folder of the figures")
    p.add_argument("--csv", metavar="FILE", help="also write the table of all windows")
    p.add_argument("--plot", metavar="FILE.svg", help="also draw the curves")
    p.add_argument("--sheet", metavar="FILE.webp", help="also draw frames of the first open prompt")


def run(args: argparse.Namespace) -> None:
    """Make what is missing, and print the tables. Raises: InputError; also for a folder of other settings."""
    for name, least in (("frames", 2), ("each", 1), ("seeds", 1)):
        whole(name, getattr(args, name), least)
    if BASE not in args.variants:
        raise InputError(f"variants are {', '.join(args.variants)}: expected {BASE} among them, to compare with")
    kinds = {name: Variant.of(name) for name in args.variants}
    for file in filter(None, (args.csv, args.plot, args.sheet)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    model = ZS2.from_pretrained(args.model, dtype="float32", lam=args.lam)
    prompts = chosen(default_prompts(model.own_settings), args.each)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    request = {"steps": args.steps, "height": args.size, "width": args.size}
    request |= {} if args.guidance is None else {"guidance": args.guidance}
    asked = {name: value for name, value in model.own_settings.request.items() if name == "guidance"} | request
    settings = {"model": model.own_settings.name, "lam": model.method.noise_parameters["lam"], "frames": args.frames}
    settings |= {"weights": model.checkpoint.digests}
    _same(folder / "settings.json", settings | asked | {"prompts": [str(one) for one in prompts]})
    scorer = Scorer.from_pretrained(scoring_model(args.model), model.device)
    jobs = [(v, i, s) for s in range(args.seeds) for i in range(len(prompts)) for v in args.variants]
    mine = [job for job in jobs[args.shard[0] :: args.shard[1]] if not _file(folder, *job).exists()]
    for variant, i, seed in progress(mine, len(mine), "clips"):
        kind = kinds[variant]
        frames = model.variant(attn=kind.attn, mu=kind.mu).stream(prompts[i].text, args.frames, seed=seed, **request)
        kept: list[Frames] = []
        rows = list(measured(frames, prompts[i].text, scorer, args.frames, kept))
        Clip(np.stack(kept)).save(_file(folder, variant, i, seed).with_suffix(".webp"), json=False, overwrite=True)
        write_text(_file(folder, variant, i, seed), _csv(rows))
    if left := sum(not _file(folder, *job).exists() for job in jobs):
        print(f"{left} of {len(jobs)} clips are left to other shards: the tables come when they are done")
        return
    figures = read(folder, args.variants, len(prompts), args.seeds)
    lam = float(settings["lam"])
    table = windows(figures, prompts, args.frames, lam)
    show(table, figures, args.frames, lam)
    if args.csv:
        write_text(Path(args.csv), _csv(table))
    if args.plot:
        write_text(Path(args.plot), plot(curves(figures), args.frames))
    if args.sheet:
        at = next((i for i, one in enumerate(prompts) if one.set == "open" and one.text.strip()), 0)
        files = {v: _file(folder, v, at, 0).with_suffix(".webp") for v in args.variants}
        sheet({v: Clip.open(file).frames for v, file in files.items()}, sheet_frames(args.frames)).save(args.sheet)


def chosen(prompts: tuple[Prompt, ...], each: int) -> list[Prompt]:
    """The first prompts of each set, without the empty one, which has no CLIP score."""
    sets = list(dict.fromkeys(one.set for one in prompts))
    return [one for name in sets for one in [p for p in prompts if p.set == name and p.text.strip()][:each]]


def measured(
    frames: Iterator[Frames], prompt: str, scorer: Scorer, count: int, kept: list[Frames]
) -> Iterator[dict[str, float]]:
    """The figures of each frame after frame 0. kept: gets the frames of the sheet."""
    text, at = scorer.embed_texts([prompt])[0], sheet_frames(count)
    first = previous = before = None
    i = 0
    while batch := list(islice(frames, BATCH)):
        for frame, image in zip(batch, scorer.embed_frames(np.stack(batch)), strict=True):
            if i in at:
                kept.append(frame)
            if first is None:
                first = image
            else:
                change = float(np.abs(frame.astype(np.int16) - before).mean()) / 255
                row = {"frame": i, "first": float(image @ first), "previous": float(image @ previous), "motion": change}
                yield row | {"score": 100 * float(image @ text)}
            previous, before, i = image, frame, i + 1


def windows(figures: Figures, prompts: list[Prompt], frames: int, lam: float) -> list[dict[str, object]]:
    """A row for each set of prompts, metric, variant and window of frames: 1 … 8, 9 … 16, 17 … 32 and so on."""
    rows: list[dict[str, object]] = []
    sets = [*dict.fromkeys(one.set for one in prompts), "all"]
    for name in dict.fromkeys(sets):
        for metric in METRICS:
            for variant in figures:
                for low, high in spans(frames):
                    values, base = (_means(figures[v], metric, low, high, name, prompts) for v in (variant, BASE))
                    found, change = mean(values), None if variant == BASE else difference(values, base)
                    row = {"prompts": name, "metric": metric, "variant": variant, "from": low, "to": high}
                    row |= _numbers("", found) | _numbers("difference_", change)
                    row |= {"mu_power": _average(Variant.of(variant).mu, low, high)}
                    rows.append(row | {"noise_correlation": _average(1 - lam / LAM_MAX, low, high)})
    return rows


def _means(
    clips: dict[Key, list[dict[str, float]]], metric: str, low: int, high: int, name: str, prompts: list[Prompt]
) -> dict[Key, float]:
    """Each clip's mean of a metric over frames low … high."""
    chosen = {key: rows for key, rows in clips.items() if name in ("all", prompts[key[0]].set)}
    return {key: float(np.mean([row[metric] for row in rows[low - 1 : high]])) for key, rows in chosen.items()}


def _numbers(prefix: str, found: Estimate | None) -> dict[str, object]:
    names = ("value", "low", "high")
    numbers = [None] * 3 if found is None else [found.value, found.low, found.high]
    return {prefix + name: None if x is None else round(x, 5) for name, x in zip(names, numbers, strict=True)}


def _average(base: float | None, low: int, high: int) -> float | None:
    """The mean of baseⁱ over i = low … high."""
    return None if base is None else round(float(np.mean([base**i for i in range(low, high + 1)])), 5)


def spans(frames: int) -> list[tuple[int, int]]:
    """Windows of frames that double: (1, 8), (9, 16), (17, 32), …"""
    ends = [0, *(8 * 2**k for k in range(20) if 8 * 2**k < frames - 1), frames - 1]
    return [(low + 1, high) for low, high in pairwise(ends)]


def show(table: list[dict[str, object]], figures: Figures, frames: int, lam: float) -> None:
    """Print the tables of all prompts, and when half of the drift has come."""
    heads = [f"{low}–{high}" for low, high in spans(frames)]
    for metric, title in METRICS.items():
        mine = [row for row in table if row["prompts"] == "all" and row["metric"] == metric]
        print(f"\n{title}, frames:\n")
        print_table(["", *heads], [[v, *(_digits(r["value"]) for r in mine if r["variant"] == v)] for v in figures])
        print(f"\n{title}, last window, difference to {BASE}:\n")
        last = [row for row in mine if row["to"] == frames - 1 and row["variant"] != BASE]
        ends = ("difference_value", "difference_low", "difference_high")
        rows = [[str(row["variant"]), *(_digits(row[name], sign=True) for name in ends)] for row in last]
        print_table(["", "difference", "low", "high"], rows)
    print()
    mus = {variant: Variant.of(variant).mu for variant in figures}
    rows = [[v, str(half(clips)), f"{halved(mus[v]):.0f}" if mus[v] else ""] for v, clips in figures.items()]
    print_table(["", "half of the drift from frame 0, at frame", "μⁱ is ½ at frame"], rows)
    print(f"\nThe noise's correlation with frame 0's, ρⁱ, is ½ at frame {halved(1 - lam / LAM_MAX):.1f}.")


def halved(base: float) -> float:
    """The i at which baseⁱ is a half."""
    return math.log(0.5) / math.log(base) if 0 < base < 1 else math.inf


def _digits(x: object, *, sign: bool = False) -> str:
    return "" if not isinstance(x, float) else f"{x:{'+' if sign else ''}.{1 if abs(x) >= 10 else 4}f}"


def half(clips: dict[Key, list[dict[str, float]]]) -> int:
    """The frame at which identity to frame 0, over 9 frames, is half of the way from 1 to that of the last quarter."""
    curve = np.mean([[row["first"] for row in rows] for rows in clips.values()], axis=0)
    end = curve[-max(1, len(curve) // 4) :].mean()
    return next(i + 1 for i, value in enumerate(smooth(curve)) if value <= (1 + end) / 2 or i == len(curve) - 1)


def curves(figures: Figures) -> dict[str, dict[str, list[float]]]:
    """{title of a metric: {variant: its mean over clips, and over 9 frames, for each frame}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for metric, title in METRICS.items():
        for variant, clips in figures.items():
            line = np.mean([[row[metric] for row in rows] for rows in clips.values()], axis=0)
            found.setdefault(title, {})[variant] = smooth(line)
    return found


def smooth(line: NDArray[np.float64]) -> list[float]:
    """The mean over 9 frames about each."""
    return [float(line[max(0, i - 4) : i + 5].mean()) for i in range(len(line))]


def sheet_frames(count: int) -> list[int]:
    """The frames of the sheet: 0, 1, 2, 4 … and the last one."""
    return [0, *(2**k for k in range(20) if 2**k < count - 1), count - 1] if count > 1 else [0]


def _file(folder: Path, variant: str, prompt: int, seed: int) -> Path:
    return folder / f"{variant.replace(':', '-')}_p{prompt:02}_s{seed}.csv"


def read(folder: Path, variants: list[str], prompts: int, seeds: int) -> Figures:
    """The figures that are there."""
    found: Figures = {variant: {} for variant in variants}
    for variant in variants:
        for prompt in range(prompts):
            for seed in range(seeds):
                file = _file(folder, variant, prompt, seed)
                if file.exists():
                    rows = csv.DictReader(io.StringIO(file.read_text()))
                    found[variant][prompt, seed] = [{k: float(v) for k, v in row.items()} for row in rows]
    return found


def _csv(rows: list[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _same(file: Path, settings: dict[str, object]) -> None:
    """Write the settings of a folder, or compare them with those that are there."""
    if not file.exists():
        write_json(file, settings)
    elif (known := json.loads(file.read_text())) != settings:
        different = [name for name in settings if known.get(name) != settings[name]]
        raise InputError(f"{file.parent} has clips of another {', '.join(different)}: give another --out")
