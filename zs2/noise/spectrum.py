"""Noise with one correlation for low spatial frequencies and another for high ones.

Each frame's noise is taken apart by the orthonormal two-dimensional cosine transform (DCT-II). Each coefficient is an
autoregression over frames, as in `dnm`, with a ρ of its own:

    ŷⁱ(u, v) = ρ(u, v)·ŷⁱ⁻¹(u, v) + √(1 − ρ(u, v)²)·ẑⁱ(u, v)

An orthonormal transform of N(0, I) is N(0, I), so every frame alone is exactly that. So low frequencies can be shared
and high ones drawn anew, or the reverse: which part of the noise carries the thing, and which its motion?
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from zs2.parameters import LAM_MAX

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.noise.models import Draws


def freq(draws: Draws, lam: float, lam_high: float, cutoff: float) -> Iterator[Tensor]:
    """An autoregression for each spatial frequency: λ below the cutoff along both axes, `lam_high` elsewhere.

    Args: cutoff: the share of each axis's frequencies that counts as low, from 0 (none) to 1 (all), rounded up.
    """
    noise = draws(0)()
    yield noise
    height, width = noise.shape[-2:]
    down, across = cosines(height), cosines(width)
    rho = torch.where(low(cutoff, height, width), 1 - lam / LAM_MAX, 1 - lam_high / LAM_MAX)
    fresh = (1 - rho**2).sqrt()
    spectrum = first = down @ noise @ across.T
    for i in itertools.count(1):
        spectrum = rho * spectrum + fresh * (down @ draws(i)() @ across.T)
        yield noise + down.T @ (spectrum - first) @ across  # the difference, so that ρ = 1 changes no bit


def low(cutoff: float, height: int, width: int) -> Tensor:
    """Which frequencies are low, (height, width): those below the cutoff along both axes."""
    return (torch.arange(height) < cutoff * height)[:, None] & (torch.arange(width) < cutoff * width)


def correlation(lam: float, lam_high: float, cutoff: float, height: int, width: int) -> float:
    """That of consecutive noises of this size: the mean of all ρ. In the limit of large noises c² of them are low."""
    share = low(cutoff, height, width).double().mean().item()
    return 1 - (share * lam + (1 - share) * lam_high) / LAM_MAX


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n): row u is the cosine of frequency u."""
    place, frequency = torch.arange(n, dtype=torch.float64) + 0.5, torch.arange(n, dtype=torch.float64)
    rows = (math.pi / n * frequency[:, None] * place).cos() * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows.float()
