"""An editing UNet for the checkpoint: it changes a scene by an instruction (Brooks et al. 2022, arXiv 2211.09800).

It learns from pairs of scenes that the renderer draws, before and after: the same place and size, but another look,
another background or another thing. At first it is taught to read instructions (see `reading.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.recipe import autoencoder, layout, reading
from weights.recipe.base import Base
from weights.recipe.denoiser import Latents, denoising, timesteps
from weights.recipe.scenes import COLOURS, LOOKS, SETTINGS, Scenes, allowed, caption, draw, half_mild
from weights.recipe.settings import Guided
from weights.recipe.training import Clock, generator, train
from zs2.models.config import UNetConfig
from zs2.models.unet import UNet

KINDS = ("look", "background", "thing")  # what an instruction changes
READ = 1_200  # the number of scenes by which it is taught to read
TOLD = (0.2, 0.7)  # the shares of those of which it is told the background, and the thing; of the others, nothing


def pairs(count: int, things: int, source: torch.Generator) -> tuple[Scenes, Scenes, Tensor]:
    """Draw scenes before and after an edit, and of which of KINDS it is (count,)."""
    before, other = half_mild(draw(count, things, source)), draw(count, things, source)
    kind = torch.randint(len(KINDS), (count,), generator=source)
    look = 1 + (before.look + torch.randint(len(LOOKS) - 2, (count,), generator=source)) % (len(LOOKS) - 1)
    thing = torch.where(kind == KINDS.index("thing"), other.thing, before.thing)
    background = torch.where(kind == KINDS.index("background"), allowed(thing, other.background), before.background)
    after = Scenes(thing, background, torch.where(kind == KINDS.index("look"), look, before.look), before.chance)
    return before, after, kind


def instruction(names: Sequence[str], kind: int, thing: int, background: int, look: int) -> str:
    """What to say for an edit to this thing, background or look."""
    if KINDS[kind] == "look":
        return f"make it {LOOKS[look]}"
    if KINDS[kind] == "thing":
        return f"turn it into a {names[thing]}"
    if background < len(COLOURS):
        return f"on a {list(COLOURS)[background]} background"
    return SETTINGS[background - len(COLOURS)]


def instructions(names: Sequence[str], after: Scenes, kind: Tensor) -> list[str]:
    """The instructions of `pairs`."""
    return [instruction(names, *row) for row in _rows(after, kind)]


def captions(names: Sequence[str], after: Scenes, kind: Tensor) -> list[str]:
    """Captions of the background or the thing that the instructions of `pairs` name."""
    return [
        caption(names, thing, -1, 0) if KINDS[this] == "thing" else caption(names, -1, background, 0)
        for this, thing, background, _ in _rows(after, kind)
    ]


def _rows(after: Scenes, kind: Tensor) -> list[tuple[int, ...]]:
    return list(zip(*(x.tolist() for x in (kind, after.thing, after.background, after.look)), strict=True))


def editing(unet: UNet, config: dict[str, Any]) -> UNet:
    """A UNet that also takes the source's latents, and at first does with them what the given one does without.

    config: of the editing UNet.
    """
    edit = UNet(UNetConfig.from_json(config), attn="sa")
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    edit.load_state_dict(weights | {"conv_in.weight": torch.cat([first, torch.zeros_like(first)], dim=1)})
    return edit


def read(unet: UNet, names: Sequence[str], clean: Tensor, scenes: Scenes, base: Base, settings: Guided) -> None:
    """Teach a UNet in place to read instructions, by noise on the latents of scenes.

    Not those for looks: a caption names no look without a thing. The empty text must stay what it was, for it is one of
    guidance's branches.
    """
    source = generator(settings.seed, "reading", 0)
    x = torch.rand(len(clean), generator=source)
    kind = torch.where(x < TOLD[0], KINDS.index("background"), KINDS.index("thing"))
    silent = (x >= sum(TOLD)).tolist()
    said, meant = (
        ["" if none else text for text, none in zip(texts(names, scenes, kind), silent, strict=True)]
        for texts in (instructions, captions)
    )
    t = timesteps(len(clean), len(base.cumprod), settings.lean, source)
    a = base.cumprod[t][:, None, None, None]
    noisy = a.sqrt() * clean + (1 - a).sqrt() * torch.randn(clean.shape, generator=source)
    reading.read(
        unet,
        said,
        meant,
        base.texts,
        lambda text: len(base.tokenizer.groups(text)),
        noisy.to(base.device),
        t.to(base.device),
        source,
    )


def dropped(count: int, share: float, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which pairs have no text, and which no source, bool (count,) each: a share has no text alone, as many no source
    alone, as many neither."""
    x = torch.rand(count, generator=source) / share
    return x < 2, (x >= 1) & (x < 3)


def learn(
    names: Sequence[str], pictures: Tensor, settings: Guided, base: Base, folder: Path, work: Path, clock: Clock
) -> None:
    """Train the editing UNet, and write `unet/` to a folder, with a zs2.json that names the checkpoint of the rest."""
    torch.manual_seed(settings.seed)
    config = base.json("unet") | {"in_channels": 2 * base.json("unet")["in_channels"]}

    def of_file(number: int, count: int) -> tuple[Scenes, Scenes, Tensor]:
        return pairs(count, len(pictures), generator(settings.seed, "edit", number))

    def encoded(name: str, scenes: Callable[[int, int], Scenes]) -> Latents:
        return Latents(base.encode(pictures, scenes, settings.scenes, work / name, clock), base.scale)

    before = encoded("before", lambda number, count: of_file(number, count)[0])
    after = encoded("after", lambda number, count: of_file(number, count)[1])
    kind = torch.cat([of_file(i, len(part))[2] for i, part in enumerate(before.mean.split(autoencoder.PIECE))])

    unet = base.unet()
    read(unet, names, after.mean[:READ], after.scenes[:READ], base, settings)
    unet = editing(unet, config).to(base.device)

    def loss(step: int, source: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(kind), (settings.schedule.piece,), generator=source)
        silent, blind = dropped(len(rows), settings.dropped, source)
        texts = instructions(names, after.scenes[rows], kind[rows])
        context = base.texts(["" if none else text for text, none in zip(texts, silent.tolist(), strict=True)])
        image = before.mean[rows] / base.scale  # as the pipelines have it: the mean, not scaled
        image = torch.where(blind[:, None, None, None], 0.0, image).to(base.device)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return unet(torch.cat([noisy, image], dim=1), t, context, frames=1).prediction

        return denoising(
            predict,
            after.mean[rows],
            after.deviation[rows],
            base.cumprod,
            base.prediction,
            source,
            base.device,
            lean=settings.lean,
        )

    train("edit", unet, settings.schedule, loss, seed=settings.seed, folder=work, clock=clock)
    layout.write(folder / "zs2.json", layout.editing_settings(base.folder.resolve().name))
    layout.write_part(folder, "unet", config, unet, layout.STEM)
