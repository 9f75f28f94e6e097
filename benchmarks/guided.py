"""The hints that docs/guidance.md uses, and moving pictures of guided clips: each input over the clip that it led to.

    python benchmarks/guided.py outline --out out/outline.webp    hints alone: a thing's outline goes round once
    python benchmarks/guided.py path                              out/guided-path.webp: a clip that follows them
    python benchmarks/guided.py edit                              out/guided-edit.webp: a clip, and the same edited
    python benchmarks/guided.py first-frame                       out/guided-first-frame.webp: a picture comes alive

Outlines and the first frame are drawn by the recipe's renderer, which fetches its pictures once. The clips have the
model's own settings.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of weights.recipe, which is not installed

from weights.recipe import pictures, scenes
from weights.recipe.measure import as_bytes
from weights.recipe.measure_guided import side
from zs2 import ZS2, Clip
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError, whole
from zs2.video.formats import Frames
from zs2.video.outputs import check_output

LOOPS, GAP = 1, 8  # times that the outline goes round; pixels between input and clip
QUALITY = 90  # of moving pictures in WebP
EDIT = "make it golden"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("outline", *CLIPS))
    p.add_argument("--model", default=DEFAULT_MODEL)
    p.add_argument("--control", metavar="MODEL", help="of path: the ControlNet (default: MODEL-edges)")
    p.add_argument("--editor", metavar="MODEL", help="of edit: the editing model (default: MODEL-edit)")
    p.add_argument("--thing", default="rocket")
    p.add_argument("--colour", default="sky blue", choices=scenes.COLOURS, help="of the background")
    p.add_argument("--instruction", help=f"of edit (default {EDIT})")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--frames", type=int, default=16)
    p.add_argument("--steps", type=int, help="default: the model's")
    p.add_argument("--size", type=int, help="of the outline alone, in pixels (default 128)")
    p.add_argument("--scale", type=int, default=2, help="pixels of the picture for each pixel of a clip (default 2)")
    p.add_argument("--fps", type=int, default=8)
    p.add_argument("--pictures", type=Path, metavar="PATH", help="as those of python -m weights.recipe")
    p.add_argument("--out", metavar="FILE", help="default: out/guided-WHAT.webp")
    p.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    args = p.parse_args(argv)
    out = args.out or f"out/guided-{args.what}.webp"
    try:
        size = whole("--size", 128 if args.size is None else args.size, 1, 1024)
        for name, most in (("frames", 1000), ("scale", 16)):
            whole(f"--{name}", getattr(args, name), 1, most)
        for name, kind in (("control", "path"), ("editor", "edit"), ("instruction", "edit"), ("size", "outline")):
            if getattr(args, name) is not None and args.what != kind:
                raise InputError(f"--{name} is of {kind}, not of {args.what}")
        check_output(out, args.fps, overwrite=args.overwrite)
        if args.what == "outline":
            frames = outlines(args, size)
        else:
            rows = [row.repeat(args.scale, axis=1).repeat(args.scale, axis=2) for row in CLIPS[args.what](args)]
            gap = np.full((args.frames, GAP, *rows[0].shape[2:]), 255, np.uint8)
            frames = np.concatenate([rows[0], gap, rows[1]], axis=1)
    except InputError as error:
        p.error(str(error))
    quality = QUALITY if args.what != "outline" and Path(out).suffix.lower() == ".webp" else None  # hints stay exact
    (file,) = Clip(frames, args.fps, {}).save(out, json=False, overwrite=args.overwrite, quality=quality)
    print(f"{file}: {frames.shape[2]}x{frames.shape[1]} pixels, {file.stat().st_size / 1e6:.2f} MB")
    return 0


def drawn(args: argparse.Namespace, size: int) -> tuple[scenes.Scenes, torch.Tensor]:
    """The thing on its background, upright, going round in a circle: scenes, a frame each, and their pictures."""
    turn = torch.arange(args.frames) * (2 * math.pi * LOOPS / args.frames)
    chance = torch.full((args.frames, 16), 0.5)
    chance[:, 1], chance[:, 2] = 0.1, 0.75  # small, so that it has room; not mirrored
    chance[:, 3], chance[:, 4] = 0.5 - 0.5 * turn.cos(), 0.5 - 0.5 * turn.sin()
    zero = torch.zeros(args.frames, dtype=torch.int64)
    colour = zero + list(scenes.COLOURS).index(args.colour)
    return scenes.Scenes(zero, colour, zero, chance), pictures.load(
        [args.thing], Path("out/fetched"), args.pictures, size
    )


def outlines(args: argparse.Namespace, size: int) -> Frames:
    """The hints: white outlines on black, uint8 (f, size, size, 3)"""
    moving, shown = drawn(args, size)
    return as_bytes(2 * scenes.edges(scenes.silhouettes(moving, shown, size)) - 1)


def path(args: argparse.Namespace) -> tuple[Frames, Frames]:
    """Outlines, and the clip that follows them."""
    model = load(args.model, controlnet=args.control or f"{args.model}-edges")
    hints = outlines(args, side(model))
    return hints, sampled(args, model, prompt(args), control=hints)


def edit(args: argparse.Namespace) -> tuple[Frames, Frames]:
    """A clip, and the same after an instruction."""
    source = sampled(args, load(args.model), prompt(args))
    return source, sampled(args, load(args.editor or f"{args.model}-edit"), args.instruction or EDIT, source=source)


def first_frame(args: argparse.Namespace) -> tuple[Frames, Frames]:
    """A picture, repeated, and the clip that it is frame 0 of. The thing is as large as those that the model learnt."""
    model = load(args.model)
    moving, shown = drawn(args, side(model))
    large = torch.full((1, 16), 0.5)
    large[:, 1] = 0.9
    one = scenes.Scenes(moving.thing[:1], moving.background[:1], moving.look[:1], large)
    picture = as_bytes(scenes.render(one, shown, side(model)))
    return picture.repeat(args.frames, axis=0), sampled(args, model, prompt(args), first_frame=picture[0])


def load(place: str, **more: str) -> ZS2:
    """A model in float32."""
    return ZS2.from_pretrained(place, dtype="float32", **more)


def sampled(args: argparse.Namespace, model: ZS2, words: str, **inputs: Frames) -> Frames:
    """The frames of a clip by the model's own settings."""
    steps = {} if args.steps is None else {"steps": args.steps}
    return model(words, frames=args.frames, seed=args.seed, **steps, **inputs).frames


def prompt(args: argparse.Namespace) -> str:
    """What a clip shows."""
    return f"{args.thing} on a {args.colour} background"


CLIPS: dict[str, Callable[[argparse.Namespace], tuple[Frames, Frames]]] = {
    "path": path,
    "edit": edit,
    "first-frame": first_frame,
}

if __name__ == "__main__":
    sys.exit(main())
