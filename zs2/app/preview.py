"""Previews of clips that are not finished: latents to small pictures, by a linear map fitted on the model's own VAE.

The VAE itself takes longer than a step on a small model. A linear map of each latent and its neighbours to the pixels
that it stands for takes under a millisecond a frame, and shows shapes and colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from zs2.pipeline import ZS2

SAMPLES, SIDE = 12, 16  # random latents that the map is fitted on, and their side
SCALES = (1, 2)  # the sizes of the shapes in them, in latents
PIXELS = 4  # the side of the square of pixels that stands for a latent, at most
RIDGE = 1e-2  # of the fit, relative to the variance of a latent


class Preview:
    """The linear map of a model's latents to pictures. Fitting it takes a few decodes."""

    @torch.no_grad()
    def __init__(self, model: ZS2) -> None:
        vae = model.vae
        channels, reduction = vae.config.latent_channels, vae.config.reduction
        self.pixels = min(PIXELS, reduction)
        latents = _random_latents(channels)  # (n, c, h, w), scaled
        where = next(vae.parameters())
        decoded = [vae.decode((one[None] / vae.config.scaling_factor).to(where)) for one in latents]
        colours = torch.cat(decoded).float().cpu().clamp(-1, 1)  # (n, 3, H, W)
        colours = functional.adaptive_avg_pool2d(colours, (SIDE * self.pixels, SIDE * self.pixels))
        targets = functional.pixel_unshuffle(colours, self.pixels)  # (n, 3·p², h, w)
        x, y = _neighbours(latents), targets.flatten(2).transpose(1, 2).flatten(0, 1)
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
        self.weights = torch.linalg.solve(gram, x.T @ y)  # (9·c + 1, 3·p²)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """Scaled latents (F, c, h, w) → pictures, uint8 (F, p·h, p·w, 3)."""
        frames, (h, w) = len(latents), latents.shape[-2:]
        y = _neighbours(latents.float().cpu()) @ self.weights[:-1] + self.weights[-1]
        y = y.unflatten(0, (frames, h * w)).transpose(1, 2).unflatten(2, (h, w))
        colours = functional.pixel_shuffle(y, self.pixels)  # (F, 3, p·h, p·w)
        pictures = colours.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def _random_latents(channels: int) -> Tensor:
    """Normal latents (SAMPLES, c, SIDE, SIDE) with shapes of several sizes, the same each time."""
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(SAMPLES, channels, SIDE, SIDE)
    for scale in SCALES:
        size = SIDE // scale
        noise = torch.randn(SAMPLES, channels, size, size, generator=draw)
        share = torch.rand(SAMPLES, 1, 1, 1, generator=draw)
        total += share * functional.interpolate(noise, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def _neighbours(latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) → each with its eight neighbours, (n·h·w, 9·c)."""
    padded = functional.pad(latents, (1, 1, 1, 1), mode="replicate")
    return functional.unfold(padded, 3).transpose(1, 2).flatten(0, 1)
