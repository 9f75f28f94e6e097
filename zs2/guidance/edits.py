"""Editing by instruction, with two guidances (InstructPix2Pix: Brooks et al. 2022, arXiv 2211.09800, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def is_guided(guidance: float, image_guidance: float) -> bool:
    """Whether a step has the three branches. As in diffusers it has one, of text and image, at guidance 1, and at an
    image guidance below 1."""
    return guidance != 1 and image_guidance >= 1


def image_channels(latents: Tensor, branches: int) -> Tensor:
    """The channels that an editing model has for the image: (f, c, h, w) → (branches·f, c, h, w).

    Of three branches the first, neither, has no image.
    """
    return latents if branches == 1 else torch.cat([torch.zeros_like(latents), latents, latents])


def combined(prediction: Tensor, guidance: float, image_guidance: float) -> Tensor:
    """n + g·(t − i) + g_i·(i − n) of the branches neither, image, and text with image: (3·f, c, h, w) → (f, c, h, w)"""
    neither, image, text = prediction.chunk(3)
    return neither + guidance * (text - image) + image_guidance * (image - neither)
