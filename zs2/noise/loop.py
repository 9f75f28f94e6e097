"""Noise for a seamless loop: the last frame is as near to the first as any two neighbours.

The correlation of two frames depends only on their distance around the circle of F frames:

    corr(εⁱ, εʲ) = (rᵈ + r^(F−d)) / (1 + r^F),  d = |i − j|

This is the AR(1) of `dnm`, wrapped around (a Gaussian Markov random field on a cycle: Rue and Held 2005, chapter 2). r
is chosen so that neighbours have the correlation 1 − λ/√e, as in `dnm`. On a cycle, frame i depends on what came before
only through its neighbours, frame i−1 and frame 0:

    εⁱ = a·εⁱ⁻¹ + b·ε⁰ + s·zⁱ

with a and b by linear regression. So frame 0 keeps the seed's noise, and two frames are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zs2.parameters import LAM_MAX

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.noise.models import Draws


def loop(draws: Draws, lam: float, frames: int) -> Iterator[Tensor]:
    """A circular autoregression over `frames` frames, each N(0, I); neighbours have the correlation 1 − λ/√e."""
    r = wrapped(1 - lam / LAM_MAX, frames)
    first = noise = draws(0)()
    yield first
    for i in range(1, frames):
        near, far, around = (circular(r, d, frames) for d in (1, frames - i, i - 1))
        # regression on εⁱ⁻¹ and ε⁰, whose correlation is `around`; at i = 1 both are frame 0
        rest = 1 - around**2
        a, b = ((near - far * around) / rest, (far - near * around) / rest) if rest > 1e-12 else (near, 0.0)
        noise = a * noise + b * first + math.sqrt(max(0.0, 1 - a * near - b * far)) * draws(i)()
        yield noise


def circular(r: float, distance: int, frames: int) -> float:
    """The correlation of two frames at this distance around a circle of `frames` frames."""
    return (r**distance + r ** (frames - distance)) / (1 + r**frames)


def wrapped(rho: float, frames: int) -> float:
    """The r for which neighbours on the circle have the correlation rho, by bisection. It rises with r from 0 to 1."""
    if frames < 2 or rho in (0, 1):
        return rho
    low, high = 0.0, 1.0
    for _ in range(60):
        r = (low + high) / 2
        low, high = (r, high) if circular(r, 1, frames) < rho else (low, r)
    return (low + high) / 2
