"""How good a checkpoint is: whether the judge sees what the prompts name, and how well the VAE restores pictures."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from weights.recipe import autoencoder
from weights.recipe.judge import Judge
from weights.recipe.scenes import COLOURS, Labels, Scenes, caption, draw, held_out, mild, render
from weights.recipe.settings import GUIDANCE, STEPS
from weights.recipe.training import batches, generator
from zs2 import ZS2
from zs2.errors import InputError
from zs2.evaluation.structure import ssim
from zs2.models.vae import VAE
from zs2.sampling.request import Request
from zs2.system.atomic import write_text
from zs2.system.json_files import read_json
from zs2.system.progress import progress

BATCH = 36
SHOWN = 12  # pictures in a row of a sheet
CSV_HEAD = ("checkpoint", "things", "seed", "figure", "value", "low", "high", "unit")
HALF: dict[str, Any] = {"strength": 0.5, "guidance": 1.0}  # of scenes that are noised and sampled back
OFTEN = 0.8  # a thing is listed if more of its pictures show it


def figures(
    checkpoint: str, judge: Judge, pictures: Tensor, names: Sequence[str], seed: int = 0, anew: bool = False
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Judge one picture for each pair of a thing and a plain colour: frame 0 of a seed.

    anew: the list of the checkpoint's things is about to be made from these figures.
    Returns: the figures, and the pictures, uint8 (things · colours, size, size, 3). If a folder lists its things in a
        zs2.json, there is also the share of these that are right; with `anew`, of those that it will list.
    Raises: InputError for a checkpoint that makes pictures of another size.
    """
    model = ZS2.from_pretrained(checkpoint, dtype="float32", attn="sa", noise="iid")
    pairs = [(thing, colour) for thing in range(len(names)) for colour in range(len(COLOURS))]
    prompts = [caption(names, *pair, 0) for pair in pairs]
    shown = drawn(model, prompts, f"pictures of {Path(checkpoint).name}", seed, judge.size)
    thing, colour = seen(judge, shown)
    which = torch.tensor([judge.things.index(name) for name in names])
    asked, on = torch.tensor(pairs).T
    right, right_colour = (thing == which[asked]).float(), (colour == on).float()
    never = held_out(asked)
    held = (on == never[0]) | (on == never[1])
    by_thing = {name: float(right[asked == i].mean()) for i, name in enumerate(names)}
    lists = often(by_thing) if anew else model.own_settings.things
    listed = torch.tensor([name in lists for name in names])[asked]
    return {
        "prompts": len(prompts),
        "thing": share(right),
        **({"thing, those it lists": share(right[listed])} if listed.any() else {}),
        "background": share(right_colour),
        "thing, seen pairs": share(right[~held]),
        "thing, held-out pairs": share(right[held]),
        "background, seen pairs": share(right_colour[~held]),
        "background, held-out pairs": share(right_colour[held]),
        **restored(model.vae, pictures, judge.size),
        **resampled(model, names, pictures, judge.size, seed),
        "by thing": dict(sorted(by_thing.items(), key=lambda item: item[1])),
    }, shown


def drawn(
    model: ZS2,
    prompts: Sequence[str],
    what: str,
    seed: int,
    size: int,
    clips: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] | None = None,
) -> NDArray[np.uint8]:
    """Frame 0 of each prompt: uint8 (prompts, size, size, 3).

    Frame 0 does not depend on the number of frames, the noise model or the attention. So a batch of prompts is sampled
    as the frames of one clip, all from the same noise.

    Args:
        model: one without attention between frames (`sa`). what: the label of the progress bar.
        clips: keywords of a call that take a clip, with a frame for each prompt.
        settings: other keywords of it; what they leave open is as the model's own settings have it. None: STEPS and
            GUIDANCE.
    Raises: InputError for a checkpoint that makes pictures of another size.
    """
    plan = model.plan(Request(prompts[0], seed=seed, frames=1, **{name: clip[:1] for name, clip in clips.items()}))
    height, width = plan.size
    if (height, width) != (size, size):
        raise InputError(f"{what}: they are {width}x{height}, but expected are {size}x{size}, as the judge knows them")
    first = next(plan.noises())
    settings = {"steps": STEPS, "guidance": GUIDANCE} if settings is None else settings
    frames = []
    parts = list(batches(len(prompts), BATCH))
    with unlisted_too():
        for part in progress(parts, len(parts), what):
            count = part.stop - part.start
            latents = first.expand(count, -1, -1, -1).contiguous()
            inputs = {name: clip[part] for name, clip in clips.items()}
            clip = model(prompts[part], frames=count, latents=latents, **settings, **inputs)
            frames.append(clip.frames)
    return np.concatenate(frames)


@contextmanager
def unlisted_too() -> Iterator[None]:
    """Without a warning for the things that a zs2.json does not list."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names none of the")
        yield


def seen(judge: Judge, pictures: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The things and the colours that the judge sees in pictures: indices, (pictures,) each. It sees those that are a
    multiple of its own size made smaller."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[-1] > judge.size:
        pixels = F.avg_pool2d(pixels, pixels.shape[-1] // judge.size)
    scores = [judge(pixels[part]) for part in batches(len(pixels), BATCH)]
    thing, colour = (torch.cat(each).argmax(1) for each in zip(*scores, strict=True))
    return thing, colour


def share(right: Tensor) -> list[float]:
    """A share with its 95 % interval (Wilson 1927)."""
    z, n, p = 1.96, len(right), float(right.mean())
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [p, *((x / (1 + z * z / n)) for x in (middle - half, middle + half))]


def add_to_csv(file: Path, checkpoint: str, things: int, seed: int, found: Mapping[str, Any]) -> None:
    """Write the figures of a checkpoint to a CSV, in place of those that it has from the same measurement."""
    rows = []
    if file.exists():
        with file.open(encoding="utf-8", newline="") as old:
            rows = list(csv.reader(old))[1:]
    same = [checkpoint, str(things), str(seed)]
    rows = [row for row in rows if row[: len(same)] != same]
    for name, value in found.items():
        if isinstance(value, list):
            cells = [f"{100 * part:.1f}" for part in value]  # the value alone, or its interval, too
            rows.append([*same, name, *cells, *[""] * (3 - len(cells)), "%"])
    for key, title in (("", "of the VAE"), (" after", "after the UNet")):
        if f"psnr{key}" in found:
            rows.append([*same, f"PSNR {title}", f"{found[f'psnr{key}']:.2f}", "", "", "dB"])
            rows.append([*same, f"SSIM {title}", f"{found[f'ssim{key}']:.3f}", "", "", ""])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([CSV_HEAD, *rows])
    write_text(file, text.getvalue())


def often(by_thing: Mapping[str, float]) -> set[str]:
    """The names of the things that are seen in more than OFTEN of their pictures, by the share of each."""
    return {name for name, share in by_thing.items() if share > OFTEN}


def sheet(checkpoint: str, load: Callable[[int], Tensor], names: Sequence[str], seed: int = 0) -> NDArray[np.uint8]:
    """Scenes of SHOWN things, one on each colour; what the VAE makes of them; and samples for their captions.

    Args:
        load: pictures of `names` for a size. The things are spread evenly over those that the checkpoint lists, or
            over all if it lists none.
    Returns: uint8 (3 · SHOWN, size, size, 3).
    Raises: InputError for a checkpoint that makes no square pictures.
    """
    model = ZS2.from_pretrained(checkpoint, dtype="float32", attn="sa", noise="iid")
    size = model.plan(Request("")).size[1]
    loaded = load(size)
    known = [index for index, name in enumerate(names) if name in model.own_settings.things] or [*range(len(names))]
    thing = torch.tensor([known[i * len(known) // SHOWN] for i in range(SHOWN)])
    colour, source = torch.arange(SHOWN) % len(COLOURS), generator(0, "scenes of the sheet", 0)
    scenes = mild(Scenes(thing, colour, torch.zeros_like(thing), torch.rand(SHOWN, 16, generator=source)))
    pixels = render(scenes, loaded, size)
    with torch.no_grad():
        rows = [as_bytes(pixels), as_bytes(model.vae.decode(model.vae.encode(pixels)))]
    prompts = [caption(names, int(t), int(c), 0) for t, c in zip(thing, colour, strict=True)]
    return np.concatenate([*rows, drawn(model, prompts, f"samples of {Path(checkpoint).name}", seed, size)])


def vae_alone(folder: Path) -> bool:
    """Whether a folder is a checkpoint of which only the VAE is there."""
    return (folder / "vae" / "config.json").is_file() and not (folder / "model_index.json").exists()


def of_vae(folder: Path, load: Callable[[int], Tensor]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The figures of a folder that has a VAE and nothing else, and a sheet: scenes over their reconstructions.

    load: pictures for a size.
    Returns: the figures, and the pictures, uint8 (2 · SHOWN, size, size, 3).
    """
    size = read_json(folder / "vae" / "config.json")["sample_size"]
    vae, pictures = autoencoder.load(folder), load(size)
    scenes = draw(SHOWN, len(pictures), generator(0, "scenes of the VAE's sheet", 0))
    pixels = render(scenes, pictures, size)
    with torch.no_grad():
        both = torch.cat([pixels, vae.decode(vae.encode(pixels))])
    return restored(vae, pictures, size), as_bytes(both)


@torch.no_grad()
def restored(vae: VAE, pictures: Tensor, size: int, count: int = 512) -> dict[str, float]:
    """How like scenes are to themselves, encoded and decoded again: the PSNR in dB, from the mean squared error over
    all of them, and the mean SSIM."""
    scenes = draw(count, len(pictures), generator(0, "held-out scenes of the VAE", 0))
    error, likeness = 0.0, []
    for part in batches(count, 32):
        pixels = render(scenes[part], pictures, size)
        decoded = vae.decode(vae.encode(pixels)).clamp(-1, 1)
        error += float((decoded - pixels).square().sum())
        likeness += [ssim(np.stack(pair)) for pair in zip(as_bytes(pixels), as_bytes(decoded), strict=True)]
    return {
        "psnr": -10 * math.log10(error / (count * 3 * size * size) / 4),
        "ssim": float(np.mean([value for value in likeness if value is not None])),
    }


def resampled(
    model: ZS2, names: Sequence[str], pictures: Tensor, size: int, seed: int, count: int = 2 * BATCH
) -> dict[str, float]:
    """How like scenes are to themselves after VAE and UNet: encoded, noised over half of the steps, and sampled back
    with their captions, without guidance. PSNR in dB and SSIM, as of `restored`."""
    scenes = mild(draw(count, len(pictures), generator(0, "scenes that are noised", 0)))
    pixels = as_bytes(render(scenes, pictures, size))
    captions = Labels(scenes.thing, scenes.background, scenes.look).captions(names)
    back = []
    parts = list(batches(count, BATCH))
    with unlisted_too():
        for part in progress(parts, len(parts), "scenes noised and sampled back"):
            clip = {"frames": part.stop - part.start, "source": pixels[part], "seed": seed, "steps": STEPS}
            back.append(model(captions[part], **clip, **HALF).frames)
    shown = np.concatenate(back)
    error = np.square(pixels.astype(np.float64) - shown).mean()
    likeness = [ssim(np.stack(pair)) for pair in zip(pixels, shown, strict=True)]
    return {
        "psnr after": 10 * math.log10(255**2 / error),
        "ssim after": float(np.mean([value for value in likeness if value is not None])),
    }


def as_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels in [-1, 1], (b, 3, h, w) → uint8 (b, h, w, 3)"""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
