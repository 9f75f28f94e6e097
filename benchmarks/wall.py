"""The moving picture of the README: one prompt, the DNM and TMA on and off, six clips side by side.

    python benchmarks/wall.py --overwrite              docs/wall.webp
    python benchmarks/wall.py --prompt "panda face" --seed 0 --out out/wall.webp

The upper row has the dependency noise model (DNM), the lower one independent noises. The columns are temporal momentum
attention (TMA) and the two kinds of attention that can replace it. All six clips have the same seed, and so the same
first frame. The prompt leaves the background open, because that is where the parts differ most.

Frames are enlarged by a whole factor, to about 256 pixels, so each pixel of a clip is a square. A clip that changes its
colour in every frame flashes at half the frame rate; five frames a second stay below WCAG's limit of three flashes a
second.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
from common import run
from PIL import Image, ImageDraw, ImageFont

from zs2 import ZS2, Clip
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError
from zs2.video.outputs import check_output

NOISES = {"dnm": True, "iid": False}  # a row each, and whether the DNM is on
ATTENTIONS = {"tma": True, "sa": False, "cfa": False}  # a column each, and whether TMA is on
CAPTIONS = {
    ("dnm", "tma"): "the method",
    ("dnm", "sa"): "self-attention",
    ("dnm", "cfa"): "cross-frame attention",
    ("iid", "tma"): "i.i.d. noise",
    ("iid", "sa"): "i.i.d. noise, self-attention",
    ("iid", "cfa"): "i.i.d. noise, cross-frame",
}
SIDE = 256  # frames are enlarged to about this many pixels
QUALITY = 80  # of the WebP
GAP, TAGS, CAPTION = 12, 32, 30  # pixels: between tiles; the height of the tags above a tile and of the line below it
INK, PAPER, PALE = "#1b1f24", "#ffffff", "#8a939d"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=DEFAULT_MODEL)
    p.add_argument("--prompt", default="fox face")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--lam", type=float, default=0.3)
    p.add_argument("--frames", type=int, default=12)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--guidance", type=float, default=5)
    p.add_argument("--fps", type=int, default=5)
    p.add_argument("--out", default="docs/wall.webp", metavar="FILE")
    p.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    args = p.parse_args()
    try:
        check_output(args.out, args.fps, overwrite=args.overwrite)
    except InputError as error:
        p.error(str(error))

    model = ZS2.from_pretrained(args.model, dtype="float32", lam=args.lam)
    request = {"frames": args.frames, "steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    rows = []
    for noise in NOISES:
        row = []
        for attn in ATTENTIONS:
            variant = model.variant(attn=attn, noise=noise, lam=args.lam if noise == "dnm" else None)
            row.append(titled(variant(args.prompt, **request).frames, noise, attn))
        rows.append(np.concatenate(row, axis=2))
    wall = np.concatenate(rows, axis=1)  # (f, h, w, 3)
    settings = {"prompt": args.prompt, "lam": args.lam, **request}
    quality = QUALITY if args.out.endswith(".webp") else None
    (file,) = Clip(wall, args.fps, settings).save(args.out, json=False, overwrite=args.overwrite, quality=quality)
    print(f"{file}: {wall.shape[2]}x{wall.shape[1]} pixels, {file.stat().st_size / 1e6:.2f} MB")
    return 0


def titled(frames: np.ndarray, noise: str, attn: str) -> np.ndarray:
    """The frames of one clip, enlarged, with tags above them and a caption below: (f, h, w, 3) → (f, H, W, 3)."""
    scale = max(1, round(SIDE / frames.shape[2]))
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    tile = Image.new("RGB", (width + GAP, TAGS + height + CAPTION), PAPER)
    draw = ImageDraw.Draw(tile)
    x = GAP // 2
    for name, on in (("DNM", NOISES[noise]), ("TMA", ATTENTIONS[attn])):
        x = tag(draw, x, f"{name} {'on' if on else 'off'}", on)
    draw.text((GAP // 2, TAGS + height + 2), CAPTIONS[noise, attn], fill=INK, font=font(19))
    tiles = np.repeat(np.asarray(tile)[None], len(frames), axis=0)
    tiles[:, TAGS : TAGS + height, GAP // 2 : GAP // 2 + width] = frames
    return tiles


def tag(draw: ImageDraw.ImageDraw, x: int, text: str, on: bool) -> int:
    """A rounded label: dark where the part is on, an outline where it is off. Returns: where the next one begins."""
    width = round(draw.textlength(text, font=font(19))) + 16
    draw.rounded_rectangle((x, 2, x + width, TAGS - 5), 6, fill=INK if on else PAPER, outline=INK if on else PALE)
    draw.text((x + 8, TAGS // 2 - 1), text, fill=PAPER if on else PALE, font=font(19), anchor="lm")
    return x + width + 6


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    run(main)
