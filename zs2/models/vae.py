"""The autoencoder of Stable Diffusion: pixels in [-1, 1] to latents and back. GroupNorm's eps is 1e-6 throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.models.attention import attend
from zs2.models.config import VAEConfig
from zs2.models.layers import Downsample, ResnetBlock, Upsample

EPS = 1e-6


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels of a feature map, with a skip connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Identity()])  # [1] was a dropout

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)"""
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (b, h·w, c)
        h = self.to_out[0](attend(self.to_q(h), self.to_k(h), self.to_v(h), heads=1))
        return x + h.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """Resnet, attention (if the configuration has it), resnet."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, eps=EPS, embed_dim=None) for _ in range(2)
        )
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)] if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)"""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Level(nn.Module):
    """Resnet blocks of one resolution, and a change of resolution at the end."""

    def __init__(self, config: VAEConfig, in_channels: int, channels: int, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(
                channels if i else in_channels, channels, groups=config.norm_num_groups, eps=EPS, embed_dim=None
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c', h', w')"""
        for resnet in self.resnets:
            x = resnet(x)
        for downsample in getattr(self, "downsamplers", ()):
            x = downsample(x)
        for upsample in getattr(self, "upsamplers", ()):
            x = upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return x


class Encoder(nn.Module):
    """Pixels to the moments (mean and log variance) of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = Level(config, channels[max(i - 1, 0)], width, config.layers_per_block)
            if i < len(channels) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, padding=0)])
            self.down_blocks.append(level)
        self.mid_block = MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) → (b, 2·latent_channels, h, w)"""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]  # from the smallest resolution up
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = Level(config, channels[max(i - 1, 0)], width, config.layers_per_block + 1)
            if i < len(channels) - 1:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(b, latent_channels, h, w) → (b, 3, H, W)"""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Encode to and decode from *unscaled* latents. The UNet's latents are these times `config.scaling_factor`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else nn.Identity()

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (b, 3, H, W) in [-1, 1] → mean and standard deviation of their latents, (b, latent_channels, h, w)
        each, in the dtype of the pixels, whatever that of the weights."""
        mean, log_variance = self.quant_conv(self.encoder(pixels.to(self.dtype))).to(pixels.dtype).chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-30, 20)).exp()

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean of `moments`."""
        return self.moments(pixels)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents (b, latent_channels, h, w) → pixels (b, 3, H, W), about [-1, 1], in the dtype of the latents,
        whatever that of the weights."""
        return self.decoder(self.post_quant_conv(z.to(self.dtype))).to(z.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.decoder.conv_in.weight.dtype
