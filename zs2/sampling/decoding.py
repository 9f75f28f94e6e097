"""Decode latents to frames: a few frames at a time, and large frames in tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zs2.errors import InputError, brief, is_out_of_memory, warn, whole
from zs2.models.vae import VAE
from zs2.system.devices import overflow
from zs2.system.modules import not_finite
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from zs2.sampling.plan import SamplingPlan

PIXELS_AT_ONCE = 512 * 512  # the pixels decoded together: small frames in batches, large ones one by one
WHOLE = 1024 * 1024  # pixels of the largest frame that is decoded whole; larger frames are decoded in tiles
TILE, OVERLAP = 768, 128  # the side of a tile, and the least overlap of two neighbours, in pixels


def decode_frames(plan: SamplingPlan, latents: Tensor) -> Frames:
    """Scaled latents (F, c, h, w) of a sampling → frames, uint8 (F, H, W, 3).

    The processes of the plan share the work, and each gets all frames.
    Raises: FloatingPointError if a pixel is NaN or infinite; OutOfMemory.
    """
    vae, group, chunk = plan.model.vae, plan.group, plan.chunk
    try:
        if group is None:
            return decode(vae, latents, chunk).numpy()
        pieces = []
        for piece in latents.split(chunk * group.size):
            share = group.share(len(piece))
            pieces.append(share.gather(decode(vae, piece[share.mine], chunk).to(latents.device)).cpu())
        return torch.cat(pieces).numpy()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        from zs2.sampling.memory import out_of_memory  # which needs the sizes of this file

        raise out_of_memory(plan, "decoding") from error


def at_once(vae: VAE, height: int, width: int, most: int) -> int:
    """The number of frames of this height and width that are decoded together: at most `most`."""
    return max(1, min(most, PIXELS_AT_ONCE // (height * width)))


@torch.no_grad()
def decode(vae: VAE, latents: Tensor, most: int | None) -> Tensor:
    """Scaled latents (F, c, h, w) → frames, uint8 (F, H, W, 3), on the CPU.

    Frames of more than 1024² pixels are decoded in tiles, which are blended linearly where they overlap. A warning says
    that this is approximate: GroupNorm then takes the statistics of a tile.

    most: the largest number of frames to decode together.
    Raises: InputError for latents of another shape; FloatingPointError if a pixel is NaN or infinite.
    """
    reduction, channels = vae.config.reduction, vae.config.latent_channels
    if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[1] != channels:
        got = tuple(latents.shape) if isinstance(latents, Tensor) else brief(latents)
        raise InputError(f"latents are {got}: expected a tensor (frames, {channels}, height, width)")
    most = len(latents) if most is None else whole("chunk", most, 1)
    height, width = latents.shape[-2] * reduction, latents.shape[-1] * reduction
    how = vae.decode
    if height * width > WHOLE:
        warn(f"frames of {width}x{height} are decoded in overlapping tiles, which is approximate")
        how = lambda z: tiled(vae.decode, z, reduction)  # noqa: E731
    frames = torch.empty(len(latents), height, width, 3, dtype=torch.uint8)
    for first in range(0, len(latents), size := at_once(vae, height, width, most)):
        pixels = how(latents[first : first + size] / vae.config.scaling_factor)
        if not pixels.isfinite().all():
            what, weights = "the VAE decoded NaN or infinite pixels", not_finite({"vae": vae})
            raise overflow(what, vae.dtype, weights, "latents of this model")
        pixels = pixels.div_(2).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        frames[first : first + size] = pixels.permute(0, 2, 3, 1).cpu()
    return frames


def tiled(
    decode: Callable[[Tensor], Tensor], z: Tensor, reduction: int, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """Decode latents (b, c, h, w) in tiles → pixels (b, 3, H, W).

    Tiles are evenly spaced, and decoded one after another. Where tiles overlap, the result is their weighted mean. The
    weight of a tile is a pixel's distance from its border, up to `overlap` pixels. So along a seam, one tile fades
    linearly into the other.

    Args:
        decode: decodes a tile to pixels, `reduction` times its size.
        tile, overlap: in pixels, multiples of `reduction`.
    """
    h, w = z.shape[-2:]
    pixels = z.new_zeros(len(z), 3, h * reduction, w * reduction)
    total = z.new_zeros(h * reduction, w * reduction)
    for (y, rows), (x, columns) in itertools.product(
        *(spans(n, tile // reduction, overlap // reduction) for n in (h, w))
    ):
        weight = ramp(rows * reduction, overlap, z)[:, None] * ramp(columns * reduction, overlap, z)  # (H', W')
        place = (..., slice(y * reduction, (y + rows) * reduction), slice(x * reduction, (x + columns) * reduction))
        pixels[place] += weight * decode(z[..., y : y + rows, x : x + columns])
        total[place] += weight
    return pixels.div_(total)


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(start, length) of the tiles along an axis: the fewest that cover it with this overlap or more, evenly spaced."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [(round(i * (length - tile) / (count - 1)), tile) for i in range(count)]


def ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights along a tile: they rise from both ends, over the overlap, to 1. They are never 0."""
    distance = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    return torch.minimum(distance, length - distance).div_(min(overlap, length)).clamp_(max=1)
