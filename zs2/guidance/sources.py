"""The latents of a source: its frames, encoded by the VAE as they are needed.

Two ways of guiding take them. Image to image starts from their noised latents (Meng et al. 2021, arXiv 2108.01073), and
an editing model sees them in extra channels at every step (Brooks et al. 2022, arXiv 2211.09800).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zs2.guidance.ranges import Ranges
from zs2.models.vae import VAE
from zs2.system.devices import overflow
from zs2.system.modules import not_finite

Read = Callable[[int, int], NDArray[np.uint8]]  # (first, count) → frames (count, H, W, 3) of the request's size


@torch.no_grad()
def encode(vae: VAE, frames: NDArray[np.uint8], most: int, draw: Tensor | None = None) -> Tensor:
    """Frames, uint8 (F, H, W, 3) → their unscaled latents, float32 (F, c, h, w) on the VAE's device.

    Args:
        most: the largest number of frames to encode together.
        draw: standard normal noise (c, h, w). With it the latents are drawn from the VAE's distribution; without it
            they are its mean.
    Raises: FloatingPointError if a latent is NaN or infinite.
    """
    device = next(vae.parameters()).device
    parts = []
    for part in np.array_split(frames, range(most, len(frames), most)):
        pixels = torch.from_numpy(part).permute(0, 3, 1, 2).float().div(255).mul(2).sub(1)  # (f, 3, H, W)
        mean, deviation = vae.moments(pixels.to(device))
        parts.append(mean if draw is None else mean + deviation * draw.to(device))
    latents = torch.cat(parts)
    if not latents.isfinite().all():
        raise overflow("the VAE encoded to NaN or infinity", vae.dtype, not_finite({"vae": vae}), "another input")
    return latents


class SourceLatents(Ranges):
    """The unscaled latents of a source, by frames: float32 (count, c, h, w).

    Args:
        read: reads frames. most: the largest number to encode together. draw: as in `encode`. keep_all: as in `Ranges`.
    """

    def __init__(self, vae: VAE, read: Read, most: int, draw: Tensor | None, *, keep_all: bool) -> None:
        super().__init__(keep_all=keep_all)
        self.vae, self.read, self.most, self.draw = vae, read, most, draw

    def compute(self, first: int, count: int) -> Tensor:
        """As in `Ranges`."""
        return encode(self.vae, self.read(first, count), self.most, self.draw)
