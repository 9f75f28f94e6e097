"""Show clips of a study as one picture: a row for each variant, a column for each frame.

    python benchmarks/contact_sheet.py out/study --prompt 8 --cells dnm-0.1_tma-0.98 iid_sa --out docs/ablation.webp

Frames are enlarged by whole factors, so that every pixel is visible as a square.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zs2.errors import InputError
from zs2.study.cells import Cell
from zs2.study.study import Study, clip_file
from zs2.video.clip import Clip
from zs2.video.outputs import check_output

FPS = 1  # a picture has no rate, but a clip of one frame does
TITLE, GAP = 16, 4  # in pixels: the height of a row's title, and the space around frames
SIDE = 96  # frames are enlarged to about this many pixels
QUALITY = 90  # of a WebP
LETTERS = str.maketrans({"λ": "lambda", "μ": "mu", "ₕ": " high", "₁": " last"})  # which the font lacks


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("folder", metavar="DIR", help="the study")
    p.add_argument("--prompt", type=int, default=0, metavar="I", help="the prompt's number, from 0 (default 0)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cells", nargs="+", metavar="ID", help="the variants, in order (default: all)")
    p.add_argument("--out", required=True, metavar="FILE")
    p.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    args = p.parse_args()
    try:
        check_output(args.out, FPS, overwrite=args.overwrite)
    except InputError as error:
        p.error(str(error))
    study = Study.read(args.folder)
    known = {cell.id: cell for cell in study.cells}
    unknown = [name for name in args.cells or [] if name not in known]
    if unknown or not 0 <= args.prompt < len(study.prompts) or args.seed not in study.seeds:
        sys.exit(f"not in the study: {unknown or f'prompt {args.prompt}, seed {args.seed}'}. It has {', '.join(known)}")
    try:
        rows = [row(args.folder, known[name], args.prompt, args.seed) for name in args.cells or known]
    except InputError as error:
        sys.exit(f"not finished: {error}")
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height
    quality = QUALITY if args.out.endswith(".webp") else None
    Clip(np.asarray(sheet)[None], FPS, {}).save(args.out, json=False, overwrite=args.overwrite, quality=quality)
    print(f"{args.out}: {study.prompts[args.prompt]}, seed {args.seed}")
    return 0


def row(folder: str, cell: Cell, prompt: int, seed: int) -> Image.Image:
    """The title of a variant, with its frames below."""
    frames = Clip.open(clip_file(folder, f"{cell.id}_p{prompt:02}_s{seed}")).frames
    scale = max(1, round(SIDE / frames.shape[2]))
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    picture = Image.new("RGB", (len(frames) * (width + GAP) + GAP, TITLE + height + GAP), "white")
    ImageDraw.Draw(picture).text((GAP, 2), cell.label.translate(LETTERS), fill="black", font=ImageFont.load_default(12))
    for i, frame in enumerate(np.asarray(frames)):
        picture.paste(Image.fromarray(frame), (GAP + i * (width + GAP), TITLE))
    return picture


if __name__ == "__main__":
    sys.exit(main())
