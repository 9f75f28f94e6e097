"""The levels of the UNet: layers of one resolution on the way down, in the middle and on the way up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zs2.models.attention import Call, SpatialTransformer
from zs2.models.config import UNetConfig
from zs2.models.layers import Downsample, ResnetBlock, Upsample
from zs2.models.temporal import Momentum


def resnet_blocks(config: UNetConfig, widths: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """A resnet block for each (channels in, channels out)."""
    return nn.ModuleList(
        ResnetBlock(
            n_in,
            n_out,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            embed_dim=4 * config.block_out_channels[0],
        )
        for n_in, n_out in widths
    )


def transformers(config: UNetConfig, level: int, momentum: Momentum, count: int) -> nn.ModuleList:
    """A list of `count` spatial transformers of one level's size, with the momentum of that level."""
    momentum = momentum.at_level(level, len(config.block_out_channels))
    return nn.ModuleList(
        SpatialTransformer(
            config.block_out_channels[level],
            config.cross_attention_dim,
            config.heads[level],
            config.transformer_layers[level],
            momentum,
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
            upcast=config.upcast_attention,
        )
        for _ in range(count)
    )


class Level(nn.Module):
    """Resnet blocks, each followed by a transformer if the level has them, and a change of resolution at the end."""

    def __init__(self, config: UNetConfig, level: int, momentum: Momentum, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.resnets = resnet_blocks(config, widths)
        self.attentions = transformers(config, level, momentum, len(widths) if config.attention[level] else 0)

    def layer(self, i: int, x: Tensor, embedding: Tensor, call: Call) -> Tensor:
        """Resnet i and its transformer: (b, c, h, w) → (b, c', h, w)"""
        x = self.resnets[i](x, embedding)
        return self.attentions[i](x, call) if self.attentions else x


class DownLevel(Level):
    """A level on the way down. Its feature maps are kept for the way up."""

    def __init__(self, config: UNetConfig, level: int, momentum: Momentum) -> None:
        channels = config.block_out_channels
        layers = config.layers_per_block[level]
        widths = [(channels[max(level - 1, 0)], channels[level])] + [(channels[level],) * 2] * (layers - 1)
        super().__init__(config, level, momentum, widths)
        last = level == len(channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels[level], config.downsample_padding)])

    def forward(self, x: Tensor, embedding: Tensor, call: Call) -> list[Tensor]:
        """x (b, c, h, w) → the output of each layer (b, c', h, w), and the smaller map if the level halves the size"""
        kept = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, embedding, call)
            kept.append(x)
        for downsample in self.downsamplers:
            kept.append(downsample(kept[-1]))
        return kept


class MidLevel(nn.Module):
    """Resnet, transformer, resnet at the smallest resolution; without attention, the first resnet alone."""

    def __init__(self, config: UNetConfig, momentum: Momentum, *, attention: bool = True) -> None:
        super().__init__()
        self.resnets = resnet_blocks(config, [(config.block_out_channels[-1],) * 2] * (1 + attention))
        self.attentions = transformers(config, len(config.heads) - 1, momentum, int(attention))

    def forward(self, x: Tensor, embedding: Tensor, call: Call) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)"""
        x = self.resnets[0](x, embedding)
        for transformer in self.attentions:
            x = self.resnets[1](transformer(x, call), embedding)
        return x


class UpLevel(Level):
    """A level on the way up. Each layer first appends one of the kept feature maps."""

    def __init__(self, config: UNetConfig, level: int, momentum: Momentum) -> None:
        channels = config.block_out_channels
        width = channels[level]
        below = channels[min(level + 1, len(channels) - 1)]
        layers = config.layers_per_block[level]
        # The level's own maps have its width. The last skip is the map that entered the level on the way down.
        skips = [width] * layers + [channels[max(level - 1, 0)]]
        widths = [(x + skip, width) for x, skip in zip([below] + [width] * layers, skips, strict=True)]
        super().__init__(config, level, momentum, widths)
        self.upsamplers = nn.ModuleList([Upsample(width)] if level > 0 else [])

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor, call: Call) -> Tensor:
        """x (b, c, h, w), and skips from the end of the list → (b, c', h', w'), of the size of the next level's skip"""
        x = self.layers(slice(None), x, skips, embedding, call)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[-2:])  # the skip's size: a halved odd size, doubled, is not the old one
        return x

    def layers(self, which: slice, x: Tensor, skips: list[Tensor], embedding: Tensor, call: Call) -> Tensor:
        """Run some of the layers, each with a skip: (b, c, h, w) → (b, c', h, w)"""
        for i in range(len(self.resnets))[which]:
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), embedding, call)
        return x
