"""Scenes show a thing in one of several looks, somewhere on a background. Captions describe them.

A caption may leave out the look, the background or the thing. The noise must decide what the caption leaves out. That
is what attention over frames can keep, and what the ablations must be able to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Backgrounds: twelve plain colours (of sRGB), then settings that are drawn.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 45),
    "orange": (245, 140, 35),
    "yellow": (250, 220, 60),
    "green": (60, 165, 75),
    "blue": (45, 85, 210),
    "sky blue": (135, 205, 240),
    "purple": (130, 65, 175),
    "pink": (250, 160, 200),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
    "gray": (135, 135, 140),
    "brown": (125, 80, 45),
}
SETTINGS = ("at night", "on grass", "on sand", "in the snow", "on stripes", "on dots")
LOOKS = ("", "golden", "silver", "odd", "striped", "dotted")  # the first is a thing's own
OWN_LOOK, PLAIN = 0.7, 0.8  # shares of the scenes
SPECKS = 16  # places along a side where a star or a flake may be


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes: the contents of each as indices (b,), and their details as random numbers in [0, 1)."""

    thing: Tensor
    background: Tensor  # colours, then settings
    look: Tensor
    chance: Tensor  # (b, 16)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        return Scenes(self.thing[rows], self.background[rows], self.look[rows], self.chance[rows])

    def __len__(self) -> int:
        return len(self.thing)


def held_out(thing: Tensor) -> tuple[Tensor, Tensor]:
    """The two colours that a thing is never seen on in training: indices, shaped as `thing`."""
    count = len(COLOURS)
    return (5 * thing) % count, (5 * thing + 7) % count


def allowed(thing: Tensor, background: Tensor) -> Tensor:
    """Backgrounds (b,), in which the next colour takes the place of one that the thing is never seen on."""
    never = held_out(thing)
    return torch.where((background == never[0]) | (background == never[1]), (background + 1) % len(COLOURS), background)


def draw(count: int, things: int, generator: torch.Generator) -> Scenes:
    """Draw `count` scenes at random, with the first `things` things."""
    chance = torch.rand(count, 16, generator=generator)
    thing = torch.randint(things, (count,), generator=generator)
    colour = torch.randint(len(COLOURS), (count,), generator=generator)
    setting = len(COLOURS) + torch.randint(len(SETTINGS), (count,), generator=generator)
    look = torch.randint(1, len(LOOKS), (count,), generator=generator)
    which = torch.rand(count, 2, generator=generator)
    background = torch.where(which[:, 0] < PLAIN, colour, setting)
    return Scenes(
        thing,
        allowed(thing, background),
        torch.where(which[:, 1] < OWN_LOOK, torch.zeros_like(look), look),
        chance,
    )


def mild(scenes: Scenes) -> Scenes:
    """The same scenes with their things placed mildly: large, turned by half as much, never mirrored.

    A UNet that learns for an hour then learns the things, not their places.
    """
    chance = scenes.chance.clone()
    chance[:, 0] = 0.25 + chance[:, 0] / 2
    chance[:, 1] = 0.4 + 0.6 * chance[:, 1]
    chance[:, 2] = 0.5 + chance[:, 2] / 2
    return Scenes(scenes.thing, scenes.background, scenes.look, chance)


def half_mild(scenes: Scenes) -> Scenes:
    """The same scenes, every second one with its thing placed mildly."""
    chance = scenes.chance.clone()
    chance[::2] = mild(scenes).chance[::2]
    return Scenes(scenes.thing, scenes.background, scenes.look, chance)


def render(scenes: Scenes, pictures: Tensor, size: int) -> Tensor:
    """Scenes as pixels in [-1, 1], (b, 3, size, size), from the pictures of `pictures.load`, on the pictures' device.

    They are drawn at twice the size and averaged, so that edges are smooth.
    """
    side = 2 * size
    thing = placed(dress(of_size(pictures[scenes.thing], side), scenes), scenes, side)
    pixels = thing[:, :3] + (1 - thing[:, 3:]) * backgrounds(scenes, side, pictures.device)
    return 2 * F.avg_pool2d(pixels, 2) - 1


def silhouettes(scenes: Scenes, pictures: Tensor, size: int) -> Tensor:
    """Where the things of scenes are: bool (b, 1, size, size)."""
    return placed(of_size(pictures[scenes.thing, 3:], size), scenes, size) > 0.5


def edges(silhouettes: Tensor) -> Tensor:
    """The outlines of silhouettes (b, 1, h, w), one pixel wide, outside of them: a ControlNet's hints, white on black.

    Returns: (b, 3, h, w) in [0, 1].
    """
    inside = silhouettes.float()
    return (F.max_pool2d(inside, 3, stride=1, padding=1) - inside).expand(-1, 3, -1, -1)


def of_size(pictures: Tensor, side: int) -> Tensor:
    """Pictures for scenes of `side` pixels: twice as large ones would be drawn with gaps."""
    return F.avg_pool2d(pictures, pictures.shape[-1] // side) if pictures.shape[-1] >= 2 * side else pictures


def placed(pictures: Tensor, scenes: Scenes, side: int) -> Tensor:
    """Pictures (b, c, h, w) turned, mirrored and moved as in their scenes: (b, c, side, side)"""
    x = scenes.chance
    turn, scale = (x[:, 0] - 0.5) * math.radians(30), 0.68 + 0.22 * x[:, 1]  # of the picture's side
    mirror = torch.where(x[:, 2] < 0.5, -1.0, 1.0)
    room = 1 - scale  # the thing's square stays within the scene, except for its turned corners
    dx, dy = room * (2 * x[:, 3] - 1), room * (2 * x[:, 4] - 1)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    affine = torch.stack(  # from places in the scene to places in the picture, both in [-1, 1]
        [
            torch.stack([mirror * cos, mirror * sin, -mirror * (cos * dx + sin * dy)], dim=1),
            torch.stack([-sin, cos, sin * dx - cos * dy], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine.to(pictures.device), [*pictures.shape[:2], side, side], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def dress(picture: Tensor, scenes: Scenes) -> Tensor:
    """Pictures (b, 4, h, w), colours times alpha, in their looks."""
    dressed = picture.clone()
    for which, look in enumerate(LOOKS[1:], start=1):
        rows = (scenes.look == which).nonzero().flatten()
        if len(rows):
            colours, alpha = picture[rows, :3], picture[rows, 3:]
            dressed[rows, :3] = in_look(look, colours, alpha, scenes.chance[rows].to(picture.device))
    return dressed


def in_look(look: str, colours: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
    """Colours times alpha (b, 3, h, w), in one look."""
    h, w = colours.shape[-2:]
    if look in ("golden", "silver"):
        gray = (colours * torch.tensor([0.3, 0.59, 0.11], device=colours.device)[:, None, None]).sum(1, keepdim=True)
        metal = [1.0, 0.8, 0.2] if look == "golden" else [0.9, 0.94, 1.0]  # light, so that it shines
        return (0.35 * alpha + 0.65 * gray) * torch.tensor(metal, device=colours.device)[:, None, None]
    if look == "odd":
        return turned_hue(colours, 0.2 + 0.6 * x[:, 6]).clamp(min=0).minimum(alpha)
    tint = alpha * _hue(x[:, 5])[:, :, None, None]
    if look == "striped":
        across = (torch.arange(h, device=x.device)[:, None] + torch.arange(w, device=x.device)) / w
        return torch.where((across * 6) % 1 < 0.5, colours, 0.35 * colours + 0.65 * tint)
    if look == "dotted":
        u = (torch.arange(h, device=x.device)[:, None] * 5 / h) % 1 - 0.5
        v = (torch.arange(w, device=x.device) * 5 / w) % 1 - 0.5
        return torch.where(u**2 + v**2 < 0.09, 0.15 * colours + 0.85 * tint, colours)
    raise ValueError(f"no look is called {look!r}")


def turned_hue(colours: Tensor, turn: Tensor) -> Tensor:
    """Colours (b, 3, h, w) turned about the gray axis, by a share (b,) of a whole turn. Their lightness stays."""
    angle = 2 * math.pi * turn
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], device=colours.device
    )
    rotation = torch.zeros(len(turn), 3, 3, device=colours.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.einsum("bij,bjhw->bihw", to_yiq.inverse() @ rotation @ to_yiq, colours)


def _hue(h: Tensor) -> Tensor:
    """Bright colours of hues (b,) in [0, 1) → (b, 3)"""
    return ((h[:, None] + torch.tensor([0.0, 2 / 3, 1 / 3], device=h.device)) % 1 * 6 - 3).abs().sub(1).clamp(0, 1)


def backgrounds(scenes: Scenes, side: int, device: torch.device) -> Tensor:
    """The backgrounds of scenes: (b, 3, side, side) in [0, 1], on a device"""
    x, kind = scenes.chance, scenes.background
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    plain = palette[kind.clamp(max=len(COLOURS) - 1)] + (x[:, 7:10] - 0.5) * 0.06
    out = plain.clamp(0, 1).to(device)[:, :, None, None].expand(-1, -1, side, side).clone()
    for row in (kind >= len(COLOURS)).nonzero().flatten().tolist():
        out[row] = setting(SETTINGS[int(kind[row]) - len(COLOURS)], x[row, 7:], side).to(device)
    return out


def setting(name: str, x: Tensor, side: int) -> Tensor:
    """One drawn background, from nine numbers in [0, 1): (3, side, side) in [0, 1]"""

    def colour(*rgb: int) -> Tensor:
        return (torch.tensor(rgb, dtype=torch.float32) / 255)[:, None, None]

    v, u = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    specks = torch.rand(SPECKS, SPECKS, generator=torch.Generator().manual_seed(int(x[0] * 2**31)))
    specks = F.interpolate(specks[None, None], size=(side, side), mode="nearest")[0, 0]
    offset_u, offset_v = (u * SPECKS) % 1 - 0.5, (v * SPECKS) % 1 - 0.5
    speck = (specks > 0.86) & (offset_u**2 + offset_v**2 < 0.12)
    horizon = 0.45 + 0.3 * x[1]
    if name == "at night":
        return torch.where(speck, colour(255, 250, 200), colour(14, 18, 60) + v * colour(30, 20, 50))
    if name == "in the snow":
        sky = torch.where(speck, colour(255, 255, 255), colour(150, 175, 210))
        return torch.where(v > horizon + 0.15, colour(240, 245, 252), sky)
    if name == "on grass":
        blades = 0.08 * torch.sin(u * 90 + 30 * x[2]) * (v - horizon)
        return torch.where(v > horizon, colour(85, 170, 60) + blades, colour(150, 210, 245) + 0.15 * v)
    if name == "on sand":
        sea = torch.where(v > horizon - 0.15, colour(40, 130, 190), colour(165, 215, 245))
        return torch.where(v > horizon, colour(238, 208, 145), sea)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    first = int(x[2] * len(COLOURS))
    second = (first + 1 + int(x[3] * (len(COLOURS) - 1))) % len(COLOURS)
    one, other = palette[first][:, None, None], palette[second][:, None, None]
    if name == "on stripes":
        return torch.where(((u if x[4] < 0.5 else v) * 5 + x[5]) % 1 < 0.5, one, other)
    if name == "on dots":
        a, b = (u * 5 + x[4]) % 1 - 0.5, (v * 5 + x[5]) % 1 - 0.5
        return torch.where(a**2 + b**2 < 0.08, one, other)
    raise ValueError(f"no setting is called {name!r}")


@dataclass(frozen=True)
class Labels:
    """The contents of scenes that captions name: indices (b,), -1 for what a caption leaves out."""

    thing: Tensor
    background: Tensor
    look: Tensor

    def fits(self, scenes: Scenes) -> Tensor:
        """Which captions are true of which scenes: (scenes, captions), bool."""
        fit = torch.ones(len(scenes), len(self.thing), dtype=torch.bool)
        for name in ("thing", "background", "look"):
            named, shown = getattr(self, name)[None, :], getattr(scenes, name)[:, None]
            fit &= (named < 0) | (named == shown)
        return fit

    def captions(self, names: Sequence[str]) -> list[str]:
        """The captions as text."""
        rows = zip(self.thing.tolist(), self.background.tolist(), self.look.tolist(), strict=True)
        return [caption(names, *row) for row in rows]


# The shares of captions, among those that are not empty, that name everything, or the thing alone. The rest name the
# background alone.
ALL, THING = 0.66, 0.24
NAMED_LOOK = 0.6  # the share of looks that are named, of those that are not a thing's own


def label(scenes: Scenes, generator: torch.Generator, empty: float = 0.0) -> Labels:
    """Draw captions of scenes at random. empty: the share of empty captions, for classifier-free guidance."""
    a, b, c = torch.rand(3, len(scenes), generator=generator)
    none = torch.full_like(scenes.thing, -1)
    silent = a < empty
    thing = torch.where(silent | (b >= ALL + THING), none, scenes.thing)
    background = torch.where(silent | ((b >= ALL) & (b < ALL + THING)), none, scenes.background)
    look = torch.where((thing >= 0) & (scenes.look > 0) & (c < NAMED_LOOK), scenes.look, none)
    return Labels(thing, background, look)


def caption(names: Sequence[str], thing: int, background: int, look: int) -> str:
    """A caption as text; -1 for what it leaves out."""
    what = " ".join(word for word in (LOOKS[look] if look > 0 else "", names[thing] if thing >= 0 else "") if word)
    if background < 0:
        return what
    if background < len(COLOURS):
        where = f"a {list(COLOURS)[background]} background"
        return f"{what} on {where}" if what else where
    return f"{what} {SETTINGS[background - len(COLOURS)]}".strip()
