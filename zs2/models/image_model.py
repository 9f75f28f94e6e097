"""What is checked before a model is loaded or used: its device and dtype, and that its parts fit together."""

from __future__ import annotations

import os

import torch

from zs2.errors import InputError, choose
from zs2.models.config import DTYPES
from zs2.models.prompt_encoder import Text
from zs2.models.unet import UNet
from zs2.models.vae import VAE


def check_parts(unet: UNet, vae: VAE, text: Text) -> None:
    """Raise InputError where the parts of a checkpoint do not belong together."""
    if unet.config.in_channels != vae.config.latent_channels:
        raise InputError(
            f"the UNet takes {unet.config.in_channels} channels, the VAE makes {vae.config.latent_channels}: "
            "an inpainting or editing model can't sample from a prompt alone"
        )
    if unet.config.out_channels != vae.config.latent_channels:
        raise InputError(
            f"the UNet makes {unet.config.out_channels} channels, the VAE takes {vae.config.latent_channels}: "
            "a model that also predicts a variance can't be sampled by DDIM here"
        )
    for text_encoder, tokenizer in text.towers:
        if tokenizer.vocab_size > text_encoder.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder {text_encoder.config.vocab_size}: "
                "are they of one checkpoint?"
            )
    if unet.config.cross_attention_dim != text.width:
        towers = f"the {len(text.towers)} text encoders make" if len(text.towers) > 1 else "the text encoder makes"
        raise InputError(
            f"the UNet reads text of width {unet.config.cross_attention_dim}, {towers} {text.width}: "
            "are they of one checkpoint?"
        )
    if len(text.towers) > 1 and text.encoders[-1].text_projection is None:
        raise InputError("the second text encoder has no text_projection: SDXL reads its embedding of the whole prompt")
    added = text.pooled_width + 6 * unet.config.added_size_dim if text.pooled_width else 0
    if unet.config.added_dim != added:
        raise InputError(
            f"the UNet's added conditions are {unet.config.added_dim} wide, expected {added} for {len(text.towers)} "
            "text encoder(s): this is no SDXL base model (a refiner or an editing model can't be sampled here)"
        )


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def own_device(asked: str | None) -> str:
    """The device of this process: of several GPUs, where torchrun started it, its own."""
    device = str(default_device()) if asked is None else asked
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the default. Raises: InputError if it can't be used here."""
    if device is None:
        return default_device()
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} can't be used here ({reason}): try cpu") from error
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype asked for, by its name or itself; float32 by default. Raises: InputError for another."""
    name = str(dtype or "float32").removeprefix("torch.")
    return getattr(torch, choose("dtype", name, DTYPES))
