"""The parts of an image model: UNet, VAE, prompt encoder and noise schedule, checked to fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.models.controlnet import ControlNet
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import Momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.system.modules import not_finite


@dataclass(frozen=True)
class ImageModel:
    """The parts of an image model. Raises: InputError if they do not belong together.

    controls: the ControlNets that were loaded with it.
    """

    unet: UNet
    vae: VAE
    text: PromptEncoder
    schedule: ScheduleConfig
    controls: tuple[ControlNet, ...] = ()

    def __post_init__(self) -> None:
        check_parts(self.unet, self.vae, self.text)
        for control in self.controls:
            control.config.check(self.unet.config, self.vae.config.reduction)

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet."""
        return self.unet.conv_in.weight.dtype

    @property
    def edits(self) -> bool:
        """Whether the model edits pictures by instruction: its UNet also takes the latents of one."""
        return self.unet.config.in_channels == 2 * self.vae.config.latent_channels

    def not_finite(self) -> str:
        """Name the weights that are NaN or infinite; empty if there are none. See modules.py."""
        towers = {f"text_encoder{'_2' * i}": encoder for i, encoder in enumerate(self.text.encoders)}
        controls = {f"control {i}": control for i, control in enumerate(self.controls, 1)}
        return not_finite({"unet": self.unet, "vae": self.vae, **towers, **controls})

    def with_momentum(self, momentum: Momentum, of_controls: Momentum | None = None) -> ImageModel:
        """This model with another attention over frames: the same object if it has that attention already, or a model
        with other modules on the same weights. of_controls: that of the ControlNets, if it is another one."""
        unet = self.unet.with_momentum(momentum)
        controls = tuple(control.with_momentum(of_controls or momentum) for control in self.controls)
        if (unet, *controls) == (self.unet, *self.controls):
            return self
        return replace(self, unet=unet, controls=controls)


def check_parts(unet: UNet, vae: VAE, text: PromptEncoder) -> None:
    """Raise InputError if the parts of a checkpoint do not belong together."""
    channels = vae.config.latent_channels
    if unet.config.in_channels not in (channels, 2 * channels):
        raise InputError(
            f"the UNet takes {unet.config.in_channels} channels, the VAE makes {channels}: an inpainting model can't "
            f"be sampled here (expected {channels}, or {2 * channels} for a model that edits by instruction)"
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
        if tokenizer.vocab_size < text_encoder.config.vocab_size:
            raise InputError(
                f"the text encoder has {text_encoder.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: "
                "tokens that were added (added_tokens.json, or in tokenizer.json) are missing"
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
