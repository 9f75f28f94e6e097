"""ControlNet: a copy of the UNet's way down and middle that reads a picture, the hint, and steers the UNet by it.

Zhang et al. 2023 (arXiv 2302.05543): what the copy finds in the noisy latents and the hint is added to the UNet's skips
and to its middle. Parameter names are those of the diffusers layout. The self-attentions have the same momentum over
frames as those of the UNet, or another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.errors import InputError, brief
from zs2.models.attention import TextKV
from zs2.models.config import UNetConfig
from zs2.models.layers import Conv2d
from zs2.models.temporal import Exchange, Momentum
from zs2.models.unet import Encoder, Residuals, States
from zs2.system.json_files import MOST_CHANNELS, Json, Reader

FILE = "the ControlNet's config.json"
HINT_CHANNELS = (16, 32, 96, 256)  # each level but the last halves the sides
# Values that are fixed, beside those of a UNet. global_pool_conditions: pooled residuals, of the prompt's branch alone.
FIXED: dict[str, tuple[Any, ...]] = {
    "conditioning_channels": (3,),
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    "global_pool_conditions": (False, None),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
}
OWN = {*FIXED, "conditioning_embedding_out_channels"}  # keys that a UNet's file does not have, or has otherwise


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Configuration of a ControlNet: that of the UNet which it steers, and of its own parts."""

    hint_channels: tuple[int, ...]  # of the encoder of hints, one entry a level, from the largest resolution down
    bgr: bool  # whether it was trained on hints with blue first
    mid_attention: bool  # whether the middle has a transformer; small ones have none at all

    @property
    def reduction(self) -> int:
        """Pixels of a hint per latent along one side."""
        return 2 ** (len(self.hint_channels) - 1)

    def check(self, unet: UNetConfig, reduction: int, name: str = "ControlNet") -> None:
        """Raise InputError if it does not fit a UNet, or the reduction of its VAE. name: its own, for the error."""
        reads = any(self.attention) or self.mid_attention  # whether it reads the text
        pairs = {
            "latents of {} channels": (self.in_channels, unet.in_channels),
            "levels of {} channels": (self.block_out_channels, unet.block_out_channels),
            "{} layers a level": (self.layers_per_block, unet.layers_per_block),
            "text of width {}": (self.cross_attention_dim * reads, unet.cross_attention_dim * reads),
            "added conditions of width {}": (self.added_dim, unet.added_dim),
            "hints of {} pixels a latent": (self.reduction, reduction),
        }
        for what, (got, want) in pairs.items():
            if got != want:
                raise InputError(
                    f"the ControlNet {name!r} is of another family: it has {what.format(got)}, the model {want}"
                )

    @classmethod
    def from_json(cls, json: Json, what: str = FILE) -> ControlNetConfig:
        """Read `config.json`. Raises: InputError for an architecture that zs2 does not build."""
        kind = json.get("_class_name", "ControlNetModel")
        if kind != "ControlNetModel":
            raise InputError(f"{what} is of {brief(kind)}, not of ControlNetModel")
        read = Reader(what, json, FIXED)
        downs = read.kinds("down_block_types", (), ("CrossAttnDownBlock2D", "DownBlock2D"))
        mirrored = [kind.replace("Down", "Up") for kind in reversed(downs)]
        read.whole("layers_per_block", 2)  # one number, of all levels
        shared = {key: value for key, value in json.items() if key not in OWN and not key.startswith("_")}
        unet = UNetConfig.from_json(shared | ({"up_block_types": mirrored} if downs else {}), what)
        return cls(
            **vars(unet),
            hint_channels=read.levels("conditioning_embedding_out_channels", HINT_CHANNELS, most=MOST_CHANNELS),
            bgr=json.get("controlnet_conditioning_channel_order") == "bgr",
            mid_attention=json.get("mid_block_type") != "UNetMidBlock2D",
        )


class HintEncoder(nn.Module):
    """Pixels to a feature map of the size of the latents, by convolutions of which every second one halves the size."""

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for c, wider in pairwise(channels):
            self.blocks += [nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, wider, 3, stride=2, padding=1)]
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(f, 3, H, W) in [0, 1] → (f, c, h, w)"""
        x = self.conv_in(pixels)
        for block in self.blocks:
            x = block(F.silu(x))
        return self.conv_out(F.silu(x))


class ControlNet(Encoder):
    """The residuals for a UNet, from its latents and from a hint for each frame.

    Args:
        config: from its `config.json`.
        attn, mu: attention over frames; see `Encoder`.
    """

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig, attn: str | Momentum = "tma", mu: Any = 0.98) -> None:
        super().__init__(config, attn, mu, mid_attention=config.mid_attention)
        channels = config.block_out_channels
        widths = [channels[0]]
        for level, (c, layers) in enumerate(zip(channels, config.layers_per_block, strict=True)):
            widths += [c] * (layers + (level < len(channels) - 1))  # one more for the smaller map
        self.controlnet_cond_embedding = HintEncoder(config.hint_channels, channels[0])
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(c, c, 1) for c in widths)
        self.controlnet_mid_block = Conv2d(channels[-1], channels[-1], 1)
        self._number_blocks()

    def encode_hints(self, pixels: Tensor) -> Tensor:
        """RGB (f, 3, H, W) in [0, 1] → the argument `hint` of `forward`: (f, c, h, w). Needed once per clip."""
        pixels = pixels.flip(1) if self.config.bgr else pixels
        return self.controlnet_cond_embedding(pixels.to(self.conv_in.weight.dtype))

    def forward(
        self,
        x: Tensor,
        t: int | Tensor,
        context: Tensor | Sequence[TextKV],
        hint: Tensor,
        *,
        frames: int,
        scale: float = 1.0,
        added: Tensor | None = None,
        states: States = (),
        exchange: Exchange | None = None,
        shallow: bool = False,
        first: int = 0,
        progress: Tensor | None = None,
    ) -> tuple[Residuals, States]:
        """One evaluation, in the UNet's words; see `UNet.forward`.

        Args:
            hint: (F, c, h, w), from `encode_hints`, for all branches.
            scale: a factor of all residuals.
            shallow: compute only what the UNet needs where it reuses its deep features: the first residual.
        Returns: the residuals, and the states for the next chunk of frames, which are None after a shallow call.
        Raises: InputError if the shapes do not fit together.
        """
        call = self._call(x, context, frames, added, states, exchange, first, progress)
        if hint.shape[0] != frames or hint.shape[2:] != x.shape[2:]:
            expected = (frames, *x.shape[2:])
            raise InputError(f"hints are {tuple(hint.shape)}: expected (frames, c, h, w) with {expected}")
        x = (self.conv_in(x).unflatten(0, (-1, frames)) + hint).flatten(0, 1)  # (b, c, h, w)
        if shallow:
            return Residuals([scaled(self.controlnet_down_blocks[0](x), scale)], None), call.next_states
        embedding = self.embed(t, added, x)
        maps = [x]
        for down in self.down_blocks:
            maps += down(maps[-1], embedding, call)
        x = maps[-1] if self.mid_block is None else self.mid_block(maps[-1], embedding, call)
        skips = [scaled(block(one), scale) for block, one in zip(self.controlnet_down_blocks, maps, strict=True)]
        return Residuals(skips, scaled(self.controlnet_mid_block(x), scale)), call.next_states


def scaled(x: Tensor, scale: float) -> Tensor:
    """x · scale, without work at 1."""
    return x if scale == 1 else x * scale


def added_up(residuals: Sequence[Residuals]) -> Residuals | None:
    """The sum of the residuals of several ControlNets; None of none."""
    if not residuals:
        return None
    skips = [reduce(torch.add, each) for each in zip(*(one.skips for one in residuals), strict=True)]
    middles = [one.middle for one in residuals if one.middle is not None]
    return Residuals(skips, reduce(torch.add, middles) if middles else None)
