"""Noise that is carried along by a movement of the picture, or a flow, and stays Gaussian.

The idea is Go-with-the-Flow's (Burgert et al. 2025, arXiv 2501.08331): warped noise of an image model makes a picture
that moves along. Interpolated noise would lose its variance, so the noise is carried by particles on a grid that is
GRID times finer than the latents:

    a particle that several cells need     gives each x/√n + zⱼ − z̄, with fresh noises zⱼ     (the picture grows)
    a cell in which several particles land takes Σ x/√m                                         (it shrinks)
    a cell that comes from outside         takes fresh noise

All three are orthogonal maps of independent N(0, 1), so the fine noise stays exactly white. Each number of a frame's
noise is the sum of its GRID × GRID fine cells, divided by GRID. The fine noise of frame 0 is drawn given the seed's
noise, so frame 0 keeps it. A particle remembers where it is within its cell, so slow movements add up.

What differs from Go-with-the-Flow: particles that share a cell count equally, whatever their areas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from zs2.noise.flow import Flow
    from zs2.noise.models import Draw, Draws

    Move: TypeAlias = Callable[[Tensor], Tensor]  # places (n, 2), x and y in cells from the middle → places

NEWTON = 8  # steps; an even movement needs one
GRID = 8  # cells of the fine grid per latent, along each axis; as many as a latent of Stable Diffusion has pixels


def warp(
    draws: Draws, motion: tuple[float, float], zoom: float, rotate: float, flow: Flow | None = None
) -> Iterator[Tensor]:
    """Noise under a picture that moves the same way in every frame, or along a flow.

    Args:
        motion: pixels of 512 per frame, left and up. zoom: how many times larger the picture is in each frame.
        rotate: degrees per frame, clockwise.
        flow: the movement instead of these three. The noise ends with it, unless it repeats.
    """
    noise = draws(0)()
    yield noise
    height, width = noise.shape[-2:]
    size = height * GRID, width * GRID
    particles = Particles(refined(noise, draws(-1)), size)
    first = particles.reduced()
    even = itertools.repeat(moves(size, motion, zoom, rotate))
    for i, (forward, back) in enumerate(even if flow is None else (moves_along(one, size) for one in flow.each()), 1):
        particles.step(forward, back, partial(white, draws(i), noise.shape))
        yield noise + (particles.reduced() - first)  # the difference, so that no movement changes no bit


def moves(size: tuple[int, int], motion: tuple[float, float], zoom: float, rotate: float) -> tuple[Move, Move]:
    """A movement of the whole picture on a grid of this size, and its reverse."""
    height, width = size
    x, y = zoom * math.cos(math.radians(rotate)), zoom * math.sin(math.radians(rotate))
    turn = torch.tensor([[x, -y], [y, x]], dtype=torch.float64)
    push = torch.tensor([-motion[0] * width, -motion[1] * height], dtype=torch.float64) / 512
    back = torch.linalg.inv(turn)
    return lambda place: place @ turn.T + push, lambda place: (place - push) @ back.T


def moves_along(flow: NDArray[np.float32], size: tuple[int, int]) -> tuple[Move, Move]:
    """The movement along a flow (2, h, w) on a grid of this size, and its reverse, found by Newton's method.

    Between the middles of the flow's pixels it is bilinear, and it goes on so beyond the outermost ones. Where no place
    of the frame before leads to a place, that place shows what was outside: its reverse is far away.
    """
    extent = torch.tensor([size[1], size[0]], dtype=torch.float64)  # of the picture, in cells
    pixels = torch.tensor([flow.shape[2], flow.shape[1]], dtype=torch.float64)
    field = torch.from_numpy(flow).double() * (extent / pixels)[:, None, None]

    def at(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The movement at places (n, 2), and its derivatives along x and y."""
        where = (place / extent + 0.5) * pixels - 0.5
        low = where.floor().minimum(pixels - 2).clamp(min=0)
        part = (where - low)[..., None, :]  # (n, 1, 2)
        (x, y), (right, down) = low.long().T, (low + 1).minimum(pixels - 1).long().T
        a, b, c, d = field[:, y, x].T, field[:, y, right].T, field[:, down, x].T, field[:, down, right].T
        u, v = part[..., 0], part[..., 1]
        top, bottom, left, across = b - a, d - c, c - a, d - b
        moved = a + u * top
        moved = moved + v * (c + u * bottom - moved)
        scale = pixels / extent
        return moved, (top + v * (bottom - top)) * scale[0], (left + u * (across - left)) * scale[1]

    def forward(place: Tensor) -> Tensor:
        return place + at(place)[0]

    def back(place: Tensor) -> Tensor:
        found = place - at(place)[0]
        for _ in range(NEWTON):
            moved, dx, dy = at(found)
            error = found + moved - place
            a, b, c, d = 1 + dx[:, 0], dy[:, 0], dx[:, 1], 1 + dy[:, 1]
            area = a * d - b * c
            area = torch.where(area.abs() < 0.01, 0.01, area)
            change = torch.stack([d * error[:, 0] - b * error[:, 1], a * error[:, 1] - c * error[:, 0]], dim=1)
            found = (found - change / area[:, None]).clamp(min=-2 * extent, max=2 * extent)
        near = (forward(found) - place).abs().amax(dim=1, keepdim=True) < 0.5
        return torch.where(near, found, 2 * extent)

    return forward, back


class Particles:
    """White noise on a grid, one particle a cell.

    Attributes:
        values: (c, cells). places: (cells, 2), float64: where each particle is, x and y in cells from the middle.
    """

    def __init__(self, values: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
        self.centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        self.values, self.places = values.flatten(1), self.centres.clone()

    def reduced(self) -> Tensor:
        """The noise of the latents, (c, height / GRID, width / GRID)."""
        return reduced(self.values.unflatten(1, self.size))

    def cells(self, places: Tensor) -> Tensor:
        """The number of the cell at each place, or −1 outside."""
        height, width = self.size
        x = (places[:, 0] + (width - 1) / 2).round().long()
        y = (places[:, 1] + (height - 1) / 2).round().long()
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return torch.where(inside, y * width + x, -1)

    def origins(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where gaps come from: the particle nearest to each place, and the place on its lattice nearest to that place.

        The particle is −1 for a place beyond the picture, which ends half a cell beyond its outermost particles.
        """
        height, width = self.size
        edge = torch.tensor([width - 1, height - 1], dtype=torch.float64) / 2
        around = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)), dtype=torch.float64)
        near = torch.minimum(torch.maximum(places, -edge), edge)[:, None] + around
        cells = self.cells(near.flatten(0, 1)).view(-1, len(around))
        offset = places[:, None] - self.places[cells.clamp(min=0)]
        best = torch.where(cells >= 0, offset.abs().amax(dim=2), torch.inf).argmin(dim=1, keepdim=True)
        particle = cells.gather(1, best)[:, 0]
        inside = (places > self.places.amin(dim=0) - 0.5) & (places < self.places.amax(dim=0) + 0.5)
        site = self.places[particle] + (places - self.places[particle]).round()
        return torch.where(inside.all(dim=1), particle, -1), site

    def step(self, forward: Move, back: Move, draw: Callable[[], Tensor]) -> None:
        """Move all particles. draw: returns white noise (c, height, width)."""
        count, fresh = len(self.centres), draw().flatten(1)
        moved = forward(self.places)
        cells = self.cells(moved)
        landed = (cells >= 0).nonzero()[:, 0]
        empty = torch.ones(count, dtype=torch.bool)
        empty[cells[landed]] = False
        gaps = empty.nonzero()[:, 0]
        centres = self.centres[gaps]
        origin, site = self.origins(back(centres))
        entered = (forward(site) - centres).clamp(-0.49, 0.49) + centres
        split = origin >= 0  # the other gaps show what was outside
        parent, cell = torch.cat([landed, origin[split]]), torch.cat([cells[landed], gaps[split]])
        place = torch.cat([moved[landed], entered[split]])

        children = torch.bincount(parent, minlength=count)
        z = torch.cat([draw().flatten(1)[:, landed], fresh[:, gaps[split]]], dim=1)  # no number for two children
        mean = torch.zeros_like(self.values).index_add_(1, parent, z) / children.clamp(min=1)
        shares = self.values[:, parent] / children[parent].sqrt() + (z - mean[:, parent])

        sharing = torch.bincount(cell, minlength=count).clamp(min=1)
        self.values = torch.zeros_like(self.values).index_add_(1, cell, shares) / sharing.sqrt()
        self.values[:, gaps[~split]] = fresh[:, gaps[~split]]
        self.places = torch.zeros_like(self.places).index_add_(0, cell, place) / sharing[:, None]
        self.places[gaps[~split]] = entered[~split]


def refined(noise: Tensor, draw: Draw) -> Tensor:
    """Fine white noise (c, h·GRID, w·GRID) whose reduction is this noise (c, h, w)."""
    fine = white(draw, noise.shape)
    grown = (noise / GRID - reduced(fine) / GRID).repeat_interleave(GRID, 1).repeat_interleave(GRID, 2)
    return fine + grown


def reduced(fine: Tensor) -> Tensor:
    """The sum of each GRID × GRID block, divided by GRID: white noise stays white."""
    return fine.unflatten(2, (-1, GRID)).unflatten(1, (-1, GRID)).sum(dim=(2, 4)) / GRID


def white(draw: Draw, shape: torch.Size) -> Tensor:
    """White noise (c, h·GRID, w·GRID) from GRID² draws of shape (c, h, w)."""
    channels, height, width = shape
    return torch.stack([draw() for _ in range(GRID**2)], dim=-1).view(channels, height * GRID, width * GRID)
