"""Measure clips whose first frame is a picture: where its noise comes from, at which guidance.

    python benchmarks/first_frame.py                  # the default checkpoint: its closed prompts, drawn as scenes
    python benchmarks/first_frame.py --scenes 4 --guidance 1.5 2

The pictures are scenes that the recipe's renderer draws; it fetches them once. Means over the scenes:

    PSNR of frame 0 to the picture, and that of the VAE's own reconstruction, dB
    identity    the cosine of frame 0 with each later frame, by the checkpoint's own CLIP (clip_first)
    motion      the mean absolute change from frame to frame, pixels in [0, 1], of the frames after frame 0
    jump        the change from frame 0 to 1, over the median change of the later ones; and the share of clips where it
                is above 1.5
    deviation   the standard deviation of frame 0's noise
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_json, machine, psnr, run, save, sentence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of weights.recipe, which is not installed

from weights.recipe import pictures, scenes
from zs2 import ZS2
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.evaluation.clip_scorer import Scorer, scoring_model
from zs2.evaluation.metrics import clip_first, motion
from zs2.guidance.inputs import FIRST_NOISES
from zs2.guidance.sources import encode
from zs2.sampling.sampler import Sampler
from zs2.system.progress import progress
from zs2.video.formats import Frames

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 5.0)
JUMP = 1.5  # more is a jump
COLUMNS = ("PSNR", "VAE's PSNR", "identity", "motion", "jump", "jumps", "deviation")


def scene(prompt: str, cache: Path, own: Path | None, size: int, seed: int) -> Frames:
    """The picture that a prompt `THING on a COLOUR background` names, uint8 (size, size, 3)."""
    thing, _, rest = prompt.partition(" on a ")
    colour = list(scenes.COLOURS).index(rest.removesuffix(" background"))
    chance = torch.rand(1, 16, generator=torch.Generator().manual_seed(seed))
    one = scenes.mild(scenes.Scenes(torch.tensor([0]), torch.tensor([colour]), torch.tensor([0]), chance))
    pixels = scenes.render(one, pictures.load([thing], cache, own, size), size)
    return ((pixels[0] + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def jump(frames: Frames) -> float:
    """The change from frame 0 to 1, over the median change of the later ones."""
    changes = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    return float(changes[0] / np.median(changes[1:]))


def row(model: ZS2, scorer: Scorer, prompt: str, picture: Frames, seed: int, **how: Any) -> dict[str, float]:
    """The figures of one clip."""
    request = model._request("model()", prompt, first_frame=picture, seed=seed, **how)
    sampler = Sampler(model.plan(request))
    *_, last = sampler.steps()
    frames = model.decode(last.latents)
    own = model.decode(encode(model.vae, picture[None], 1) * model.vae.config.scaling_factor)
    assert sampler.first_frame is not None
    return {
        "PSNR": psnr(frames[:1], picture[None]),
        "VAE's PSNR": psnr(own, picture[None]),
        "identity": clip_first(scorer.embed_frames(frames)) or 0.0,
        "motion": motion(frames[1:]) or 0.0,
        "jump": jump(frames),
        "jumps": float(jump(frames) > JUMP),
        "deviation": float(sampler.first_frame[0].std()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=DEFAULT_MODEL)
    p.add_argument("--scenes", type=int, metavar="N", help="of the checkpoint's closed prompts (default: all)")
    p.add_argument("--guidance", type=float, nargs="+", default=GUIDANCES)
    p.add_argument("--noise", nargs="+", default=FIRST_NOISES, choices=FIRST_NOISES, metavar="KIND")
    p.add_argument("--frames", type=int, default=8)
    p.add_argument("--pictures", type=Path, help="a folder with NAME.png each, instead of the recipe's")
    p.add_argument("--cache", type=Path, default=Path("out/recipe/fetched"), help="of the recipe's pictures")
    add_json(p)
    options = p.parse_args(argv)
    model = ZS2.from_pretrained(options.model)
    scorer = Scorer.from_pretrained(scoring_model(options.model), model.device)
    hardware, prompts = machine(), model.own_settings.prompts[: options.scenes]
    side = model.unet.config.sample_size[0] * model.vae.config.reduction  # type: ignore[index]
    drawn = {text: scene(text, options.cache, options.pictures, side, i) for i, text in enumerate(prompts)}
    ways = [(noise, guidance) for noise in options.noise for guidance in options.guidance]
    figures = []
    print(f"{sentence(hardware)}; {len(prompts)} scenes, {options.frames} frames\n")
    print(f"| noise | guidance | {' | '.join(COLUMNS)} |\n|---|---{'|---' * len(COLUMNS)}|")
    for noise, guidance in progress(ways, len(ways), "ways"):
        how = {"frames": options.frames, "guidance": guidance, "first_frame_noise": noise}
        rows = [row(model, scorer, text, picture, i, **how) for i, (text, picture) in enumerate(drawn.items())]
        means = {name: statistics.mean(one[name] for one in rows) for name in COLUMNS}
        figures.append({"noise": noise, "guidance": guidance, **means})
        print(f"| {noise} | {guidance:g} | {' | '.join(f'{means[name]:.3g}' for name in COLUMNS)} |", flush=True)
    save(options.json, hardware, rows=figures)


if __name__ == "__main__":
    run(main)
