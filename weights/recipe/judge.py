"""The judge: a small classifier of the thing and the colour that a picture shows.

No part of the checkpoint was trained with it, and it was trained with no part of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from weights.recipe.scenes import COLOURS, Scenes, draw, held_out, render
from weights.recipe.settings import Settings
from weights.recipe.training import Clock, batches, fast, generator, save, train
from zs2.errors import InputError

FILE = Path(__file__).parent / "judge.safetensors"


class Judge(nn.Module):
    """Four strided convolutions with GroupNorm, averaged over the picture, and a linear layer for each question."""

    def __init__(self, things: Sequence[str], size: int, widths: Sequence[int] = (32, 64, 96, 160)) -> None:
        super().__init__()
        self.things = list(things)
        self.size = size  # of the pictures that it knows, in pixels a side
        layers: list[nn.Module] = []
        for n_in, n_out in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.GroupNorm(8, n_out), nn.SiLU()]
            layers += [nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.thing = nn.Linear(2 * widths[-1], len(self.things))
        self.colour = nn.Linear(2 * widths[-1], len(COLOURS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1], (b, 3, size, size) → scores of the things (b, things) and of the colours (b, colours)"""
        x = self.layers(pixels)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.thing(x), self.colour(x)

    @classmethod
    def load(cls, file: Path = FILE) -> Judge:
        """The trained judge. Raises: InputError if there is no such file."""
        if not file.is_file():
            raise InputError(f"no judge at {file}: train one with `python -m weights.recipe judge`")
        with safe_open(file, "pt") as tensors:
            judge = cls(json.loads(tensors.metadata()["things"]), int(tensors.metadata()["size"]))
            judge.load_state_dict({name: tensors.get_tensor(name).float() for name in tensors.keys()})  # noqa: SIM118
        return judge.eval().requires_grad_(False)


def plain(count: int, things: int, source: torch.Generator) -> Scenes:
    """Scenes on all plain colours, held-out pairs included, because the judge must know these too."""
    scenes = draw(2 * count, things, source)
    scenes = scenes[(scenes.background < len(COLOURS)).nonzero().flatten()][:count]
    swapped = torch.rand(len(scenes), generator=source) < 2 / len(COLOURS)
    never = torch.where(scenes.chance[:, 15] < 0.5, *held_out(scenes.thing))
    return Scenes(scenes.thing, torch.where(swapped, never, scenes.background), scenes.look, scenes.chance)


def worn(pixels: Tensor, source: torch.Generator) -> Tensor:
    """The same pictures, some of them a little blurred and noisy, like those of an autoencoder."""
    amount = torch.rand(len(pixels), 2, 1, 1, 1, generator=source).to(pixels.device)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, (2 * amount[:, 0] - 1).clamp(min=0))
    return pixels + 0.1 * (amount[:, 1] ** 2) * torch.randn(pixels.shape, generator=source).to(pixels.device)


def learn(names: Sequence[str], pictures: Tensor, settings: Settings, work: Path, clock: Clock, file: Path) -> None:
    """Train the judge, and write it."""
    torch.manual_seed(settings.seed)
    judge = Judge(names, settings.size).to(pictures.device)

    def loss(step: int, source: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = plain(settings.judge.piece, len(names), source)
        pixels = render(scenes, pictures, settings.size)
        shown, background = scenes.thing.to(pixels.device), scenes.background.to(pixels.device)
        with fast(pixels.device):
            thing, colour = judge(worn(pixels, source))
        right = (thing.argmax(1) == shown).float().mean()
        loss = F.cross_entropy(thing.float(), shown) + 0.5 * F.cross_entropy(colour.float(), background)
        return loss, {"right": right}

    train("judge", judge, settings.judge, loss, seed=settings.seed, folder=work, clock=clock)
    save(
        file,
        {name: w.half() for name, w in judge.state_dict().items()},
        {"things": json.dumps(list(names)), "size": str(settings.size)},
    )


@torch.no_grad()
def accuracy(judge: Judge, pictures: Tensor, seed: int, count: int = 3000) -> dict[str, float]:
    """The shares of real scenes that it judges right: things in their own look, things in any look, and colours. It was
    trained with none of these scenes."""
    source, pictures = generator(seed, "held-out scenes of the judge", 0), pictures.cpu()
    scenes = plain(count, len(judge.things), source)
    scored = [judge(render(scenes[part], pictures, judge.size)) for part in batches(len(scenes), 100)]
    thing, colour = (torch.cat(each).argmax(1) for each in zip(*scored, strict=True))
    right, own = (thing == scenes.thing).float(), scenes.look == 0
    return {
        "thing": float(right[own].mean()),
        "thing in any look": float(right.mean()),
        "colour": float((colour == scenes.background).float().mean()),
    }
