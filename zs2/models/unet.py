"""The denoising UNet of Stable Diffusion, with momentum over frames in every self-attention.

One topology for every family; the configuration says how many levels there are, which have transformers, and how wide
and deep they are. Parameter names are those of the diffusers layout, and no attention kind adds a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.errors import InputError
from zs2.models.attention import Attention, Call, TextKV
from zs2.models.config import UNetConfig
from zs2.models.layers import TimestepEmbedding, timestep_embedding
from zs2.models.temporal import Exchange, Momentum
from zs2.models.unet_blocks import DownLevel, MidLevel, UpLevel

States = Sequence[Tensor | None]


@dataclass
class Deep:
    """The feature map that enters the UNet's last layer: of a call that made it, for calls that take it over.

    DeepCache (Ma et al. 2023, arXiv 2312.00858): from step to step the deep features change little, so that a step can
    compute the first convolution and the last layer alone.
    """

    features: Tensor | None = None  # (branches·F, c, h, w)


class UNet(nn.Module):
    """Predict the noise (or v, or x0: as trained) of the frames of a clip.

    Args:
        config: from `unet/config.json`.
        attn: attention over frames: `sa`, `cfa`, `tma`, `tma-two-tap` (see temporal.py).
        mu: momentum in [0, 1], for `tma` and `tma-two-tap`.
    Raises: InputError for an unknown kind or a mu outside [0, 1].
    """

    def __init__(self, config: UNetConfig, attn: str = "tma", mu: float = 0.98) -> None:
        super().__init__()
        self.config = config
        self.momentum = momentum = Momentum(attn, mu)
        channels = config.block_out_channels
        levels = range(len(channels))
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        self.add_embedding = TimestepEmbedding(config.added_dim, 4 * channels[0]) if config.added_dim else None
        self.down_blocks = nn.ModuleList(DownLevel(config, level, momentum) for level in levels)
        self.mid_block = MidLevel(config, momentum)
        self.up_blocks = nn.ModuleList(UpLevel(config, level, momentum) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def cross_attentions(self) -> list[Attention]:
        """The cross-attention layers, in the order in which a call meets them."""
        transformers = [a for level in (*self.down_blocks, self.mid_block, *self.up_blocks) for a in level.attentions]
        return [block.attn2 for transformer in transformers for block in transformer.transformer_blocks]

    def text_keys_values(self, context: Tensor) -> list[TextKV]:
        """Project a text to the keys and values of every cross-attention: once a clip, not once a step.

        Args:
            context: (branches, n, c), or (branches·F, n, c) for one prompt a frame, of the UNet's dtype.
        Returns: what `forward` takes as its context.
        """
        return [attention.keys_values(context) for attention in self.cross_attentions()]

    def added_embedding(self, pooled: Tensor, size: tuple[int, int]) -> Tensor:
        """What SDXL adds to the time embedding (Podell et al. 2023, arXiv 2307.01952, section 2.2): once a clip.

        Its conditions are the pooled text and six numbers: the height and width that the picture was before it was made
        smaller, where its corner was cut off, and its height and width. Here nothing was made smaller or cut off.

        Args:
            pooled: (branches, p), or (branches·F, p). size: height and width in pixels.
        Returns: (branches, 4c) or (branches·F, 4c), what `forward` takes as `added`.
        Raises: InputError if the model has no such conditions.
        """
        if self.add_embedding is None:
            raise InputError("this UNet has no added conditions (it is not SDXL): leave them out")
        numbers = torch.tensor([*size, 0, 0, *size], device=pooled.device)
        waves = self._waves(numbers, self.config.added_size_dim).flatten()  # (6·d,)
        added = torch.cat([pooled, waves.to(pooled.dtype).expand(len(pooled), -1)], dim=1)
        return self.add_embedding(added)

    def _waves(self, numbers: Tensor, dim: int) -> Tensor:
        return timestep_embedding(
            numbers, dim, flip_sin_to_cos=self.config.flip_sin_to_cos, freq_shift=self.config.freq_shift
        )

    @overload
    def forward(
        self,
        x: Tensor,
        t: int | Tensor,
        context: Tensor | Sequence[TextKV],
        *,
        frames: int,
        added: Tensor | None = None,
        deep: Deep | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        t: int | Tensor,
        context: Tensor | Sequence[TextKV],
        *,
        frames: int,
        added: Tensor | None = None,
        carry: States,
        exchange: Exchange | None = None,
        deep: Deep | None = None,
    ) -> tuple[Tensor, States]: ...

    def forward(
        self,
        x: Tensor,
        t: int | Tensor,
        context: Tensor | Sequence[TextKV],
        *,
        frames: int,
        added: Tensor | None = None,
        carry: States | None = None,
        exchange: Exchange | None = None,
        deep: Deep | None = None,
    ) -> Tensor | tuple[Tensor, States]:
        """One evaluation.

        Args:
            x: (branches·F, C, H, W), frames innermost. t: one timestep for all, or one a row.
            context: text (branches, n, c), or (branches·F, n, c); or what `text_keys_values` made of it.
            frames: F. added: for SDXL, what `added_embedding` returned.
            carry: for a clip in chunks of frames: `()` for the first, then what the last call returned.
            exchange: where x has some frames of a chunk that several processes share: see temporal.py.
            deep: with features, the call takes them over and computes only what is around them; without, it fills them.
        Returns: the prediction, shaped as x; with a carry, (prediction, carry for the next chunk).
        Raises: InputError where the shapes do not fit together.
        """
        if frames < 1 or x.shape[0] % frames:
            raise InputError(f"{x.shape[0]} latents do not divide into branches of {frames} frames")
        text = self.text_keys_values(context) if isinstance(context, Tensor) else context
        rows = text[0][0].shape[0]
        if rows not in (x.shape[0] // frames, x.shape[0]):
            raise InputError(
                f"{rows} texts for {x.shape[0]} latents of {frames} frames: expected one a branch or one a latent"
            )
        if (added is None) != (self.add_embedding is None):
            raise InputError(
                "this UNet has no added conditions" if added is not None else "SDXL needs `added`: see added_embedding"
            )
        features = None if deep is None else deep.features
        if features is not None and features.shape[0] != x.shape[0]:
            raise InputError(f"deep features of {features.shape[0]} latents for {x.shape[0]}: expected the same")
        blocks = self.config.transformer_layers[0] if self.config.attention[0] else 0  # of the last layer
        first = 0 if features is None else len(text) - blocks  # of the cross-attentions, that is met
        if carry and len(carry) != len(text) - first:
            raise InputError(
                f"a carry of {len(carry)} states for {len(text) - first} layers: expected what the last call returned"
            )
        states = iter(carry or [None] * (len(text) - first))
        call = Call(frames, (text[i] for i in range(first, len(text))), states, exchange)

        t = torch.as_tensor(t, device=x.device).reshape(-1)
        embedding = self.time_embedding(self._waves(t, self.config.block_out_channels[0]).to(x.dtype))  # (1 or b, 4c)
        if added is not None:
            embedding = embedding + added.repeat_interleave(x.shape[0] // len(added), dim=0)
        embedding = F.silu(embedding)

        skips = [self.conv_in(x)]
        features = self._deep_features(skips, embedding, call) if features is None else features
        if deep is not None:
            deep.features = features
        x = self._first_level().layers(slice(-1, None), features, skips, embedding, call)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x if carry is None else (x, call.next_states)

    def _deep_features(self, skips: list[Tensor], embedding: Tensor, call: Call) -> Tensor:
        """All between the first convolution, whose (b, c, h, w) stays in the list, and the last layer: (b, c, h, w)"""
        for down in self.down_blocks:
            skips += down(skips[-1], embedding, call)
        x = self.mid_block(skips[-1], embedding, call)
        for up in self.up_blocks[:-1]:
            x = up(x, skips, embedding, call)
        return self._first_level().layers(slice(-1), x, skips, embedding, call)

    def _first_level(self) -> UpLevel:
        """The largest level, which comes last on the way up."""
        level = self.up_blocks[-1]
        assert isinstance(level, UpLevel)
        return level
