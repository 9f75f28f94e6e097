"""What the reviewers of the paper asked, measured. docs/questions.md quotes what these commands print.

python benchmarks/questions.py drift                    clips of 128 frames: where identity goes, and how fast
python benchmarks/questions.py diversity out/study      how different the clips of several seeds are
python benchmarks/questions.py divergence               what the listing's distance is, by sampling
python benchmarks/questions.py votes                    how many votes a user study needs
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from itertools import combinations, islice
from statistics import NormalDist

import long_clips
import numpy as np
import torch
from common import print_table
from numpy.typing import NDArray

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer, scoring_model
from zs2.method import LAM_MAX
from zs2.noise.models import divergence, noises
from zs2.study.stats import difference, mean
from zs2.study.study import Job, Study, clip_file, is_finished
from zs2.system.progress import progress
from zs2.video.clip import Clip
from zs2.video.formats import Frames

SHAPE = (4, 64, 64)  # of a latent of 512×512
LAMBDAS = (0.01, 0.1, 0.25, 1.0, 1.6)
Floats = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("drift", help=long_clips.__doc__.split("\n")[0])
    p.add_argument("--model", default=DEFAULT_MODEL)
    long_clips.add_options(p)
    p.set_defaults(run=long_clips.run)
    p = commands.add_parser("diversity", help="how different the clips of several seeds are, in a study")
    p.add_argument("folder", metavar="DIR", help="a study with two seeds or more, such as --seeds 0..3")
    p.add_argument("--model", help="whose CLIP sees the frames (default: that of the study)")
    p.add_argument("--csv", metavar="FILE", help="also write the table")
    p.set_defaults(run=diversity)
    p = commands.add_parser("divergence", help="what the listing's distance is, by sampling")
    p.add_argument("--pairs", type=int, default=200, help="of consecutive noises (default 200)")
    p.set_defaults(run=check_divergence)
    p = commands.add_parser("votes", help="how many votes a user study needs")
    p.set_defaults(run=votes)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# --- does consistency cost diversity? ---------------------------------------------------------------------------------


def diversity(args: argparse.Namespace) -> None:
    """For each variant of a study: how far the clips of different seeds are from each other, and frames of one clip.

    Distances are 1 − the cosine of CLIP's embeddings: of two seeds in the same frame, and of frames in the same clip.
    Those in pixels are the mean absolute difference of two seeds' last frames, in [0, 1].
    """
    study = Study.read(args.folder)
    if len(study.seeds) < 2:
        raise InputError(f"the study in {args.folder} has one seed: expected two or more, as with --seeds 0..3")
    if study.frames < 2:
        raise InputError(f"the clips in {args.folder} have one frame: expected two or more")
    scorer = Scorer.from_pretrained(scoring_model(args.model or study.model), torch.device("cpu"))
    jobs = [Job(cell, i, seed) for cell in study.cells for i in range(len(study.prompts)) for seed in study.seeds]
    missing = [job for job in jobs if not is_finished(args.folder, job.name)]
    if missing:
        raise InputError(f"the study in {args.folder} lacks {len(missing)} clips: run it to the end")
    images: dict[tuple[str, int], list[Floats]] = {}
    last: dict[tuple[str, int], list[Frames]] = {}
    for job in progress(jobs, len(jobs), "clips"):
        frames = Clip.open(clip_file(args.folder, job.name)).frames
        images.setdefault((job.cell.id, job.prompt), []).append(scorer.embed_frames(frames).numpy())
        last.setdefault((job.cell.id, job.prompt), []).append(frames[-1])
    between, within, apart, first = ({}, {}, {}, {})
    for key, clips in images.items():
        values = np.stack(clips)  # (seeds, frames, d)
        first[key] = seeds_apart(values[:, :1])
        between[key] = seeds_apart(values[:, 1:])
        within[key] = statistics.fmean(float(1 - (clip[1:] @ clip[0]).mean()) for clip in values)
        pixels = [frame.astype(float) / 255 for frame in last[key]]
        apart[key] = statistics.fmean(float(np.abs(a - b).mean()) for a, b in combinations(pixels, 2))
    columns = {"between_seeds": between, "frame_0": first, "pixels_between_seeds": apart, "within_a_clip": within}
    rows = []
    for cell in study.cells:
        row: dict[str, object] = {"variant": cell.label}
        for name, table in columns.items():
            own, base = ({(i, 0): table[one, i] for i in range(len(study.prompts))} for one in (cell.id, study.full))
            found, change = mean(own), difference(own, base)
            row[name] = None if found is None else round(found.value, 4)
            if name == "between_seeds" and change is not None and cell.id != study.full:
                row |= {"change": change.value, "low": change.low, "high": change.high}
        rows.append(row)
    heads = ["variant", "between seeds", "difference", "low", "high", "frame 0, between seeds", "within a clip"]
    names = ("between_seeds", "change", "low", "high", "frame_0", "within_a_clip")
    signs = ("", "+", "+", "+", "", "")
    print_table(
        heads,
        [
            [str(row["variant"])]
            + ["" if row.get(k) is None else f"{row[k]:{s}.4f}" for k, s in zip(names, signs, strict=True)]
            for row in rows
        ],
    )
    if args.csv:
        with open(args.csv, "w", encoding="utf-8", newline="") as file:
            names = ["variant", *columns, "change", "low", "high"]
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def seeds_apart(values: Floats) -> float:
    """1 − the mean cosine of two seeds' embeddings in the same frame. values: unit vectors (seeds, frames, d)."""
    return statistics.fmean(float(1 - (a * b).sum(axis=1).mean()) for a, b in combinations(values, 2))


# --- is the distance a KL divergence? ---------------------------------------------------------------------------------


def check_divergence(args: argparse.Namespace) -> None:
    """The listing's D of consecutive noises, both ways, beside √e·(1 − ρ) and beside divergences of their laws."""
    print(
        f"{args.pairs} pairs of {'×'.join(map(str, SHAPE))} numbers; D of (previous, next), and of (next, previous)\n"
    )
    heads = ["λ", "ρ", "D", "± 2 s.e.", "D reversed", "± 2 s.e.", "terms < 0", "KL of the laws", "mutual information"]
    rows = []
    for lam in LAMBDAS:
        rho = 1 - lam / LAM_MAX
        pairs = [tuple(islice(noises("dnm", SHAPE, seed, lam=lam), 2)) for seed in range(args.pairs)]
        ways = [[divergence(a, b) for a, b in pairs], [divergence(b, a) for a, b in pairs]]
        below = statistics.fmean(float((a.exp() * (a - b) < 0).float().mean()) for a, b in pairs)
        laws = statistics.fmean(fitted_divergence(a, b) for a, b in pairs)
        cells = [f"{lam:g}", f"{rho:.4f}"]
        for way in ways:
            cells += [f"{statistics.fmean(way):.4f}", f"{2 * statistics.stdev(way) / math.sqrt(len(way)):.4f}"]
        rows.append([*cells, f"{100 * below:.0f} %", f"{laws:.5f}", f"{-0.5 * math.log(1 - rho**2):.2f}"])
    print_table(heads, rows, texts=0)


def fitted_divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """KL(N(m₁, s₁²) ‖ N(m₂, s₂²)) of the normal laws that fit two tensors: 0 for one law, whatever the correlation."""
    m1, m2, s1, s2 = one.mean(), other.mean(), one.std(), other.std()
    return float((s2 / s1).log() + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5)


# --- what does a user study need? -------------------------------------------------------------------------------------


def votes(args: argparse.Namespace) -> None:
    """Votes on a pair of variants, for a Wilson interval of ±w at a share of a half, and to see a preference."""
    rows = []
    for each, likeness in ((1, 0.0), (10, 0.05), (10, 0.2), (20, 0.05), (20, 0.2)):
        effect = 1 + (each - 1) * likeness  # of votes that are not independent (Kish 1965)
        needed = [effect * count for count in (*map(wilson, (0.1, 0.05, 0.025)), to_see(0.6))]
        rows.append([str(each), f"{likeness:g}", *(str(math.ceil(count)) for count in needed)])
    heads = ["votes of one voter", "likeness of them", "±10 %", "±5 %", "±2.5 %", "to see 60 % (power 80 %)"]
    print_table(heads, rows, texts=0)


def wilson(half: float, level: float = 0.95) -> int:
    """The least number of votes, half of them for each side, whose Wilson interval is no wider than ± half."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    return math.ceil(round((0.5 * z / half) ** 2 - z**2, 9))  # the half width is ½·z/√(n + z²)


def to_see(share: float, level: float = 0.95, power: float = 0.8) -> float:
    """How many votes find that a share is not a half, so often."""
    z, more = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    return ((0.5 * z + math.sqrt(share * (1 - share)) * more) / (share - 0.5)) ** 2


if __name__ == "__main__":
    sys.exit(main())
