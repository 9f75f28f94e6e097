"""The denoising UNet of Stable Diffusion, with momentum over frames in every self-attention.

Every family has the same topology. The configuration sets the number of levels, which of them have transformers, and
how wide and deep they are. Parameter names are those of the diffusers layout. No attention kind adds a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.errors import InputError, warn
from zs2.models.attention import Call, TextKV, TransformerBlock
from zs2.models.config import UNetConfig
from zs2.models.layers import TimestepEmbedding, timestep_embedding
from zs2.models.temporal import Exchange, Momentum
from zs2.models.temporal import momentum as make_momentum
from zs2.models.unet_blocks import DownLevel, MidLevel, UpLevel
from zs2.system.modules import without_weights

States = Sequence[Tensor | None]

GRAPHS = 64  # the most that are compiled of one UNet


@dataclass(frozen=True)
class Residuals:
    """The tensors that a ControlNet adds to the feature maps: one for each skip, in the order of the way down, and one
    for the middle block."""

    skips: Sequence[Tensor]  # (b, c, h, w) each
    middle: Tensor | None  # (b, c, h, w); None where the deep features are reused


@dataclass(frozen=True)
class UNetOutput:
    """The output of one evaluation.

    prediction: shaped as the latents.
    states: the momentum state of each transformer block, for the next chunk; None for a block that the call skipped.
    deep: (b, c, h, w), the feature map that enters the last layer. A later call can reuse it, because it changes little
        from step to step (DeepCache: Ma et al. 2023, arXiv 2312.00858).
    """

    prediction: Tensor
    states: States
    deep: Tensor


def cannot_compile(error: Exception) -> InputError:
    """The error to raise where torch.compile fails: for want of a compiler, for example."""
    return InputError(f"torch can't compile here ({str(error).splitlines()[0]}): leave compile out")


class Encoder(nn.Module):
    """The half of the UNet that a ControlNet has, too: the embeddings of its conditions, the way down and the middle.

    Args:
        config: of the UNet that it is, or is part of.
        attn: attention over frames: a name in method.ATTENTION_KINDS, or a `Momentum`.
        mu: momentum in [0, 1], for the kinds that have one; or one for each level.
        mid_attention: whether the middle has a transformer.
    Raises: InputError for an unknown kind, a mu outside [0, 1], or another number of them than there are levels.
    """

    def __init__(
        self, config: UNetConfig, attn: str | Momentum = "tma", mu: Any = 0.98, *, mid_attention: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.momentum = momentum = attn if isinstance(attn, Momentum) else make_momentum(attn, mu=mu)
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        self.add_embedding = TimestepEmbedding(config.added_dim, 4 * channels[0]) if config.added_dim else None
        self.down_blocks = nn.ModuleList(DownLevel(config, level, momentum) for level in range(len(channels)))
        self.mid_block = MidLevel(config, momentum, attention=mid_attention) if config.mid_block else None
        self.compiled: dict[str, Any] | None = None  # the options of `compile`

    def compile(self, **options: Any) -> None:
        """Compile this network in place by torch.compile. Names of parameters stay.

        The first call compiles, which takes a minute or more. So does the first call with another number of frames, of
        branches, with or without states, or deep features. It pays for many steps of the same kind. It needs a C++
        compiler on a CPU, and Triton on CUDA.

        options: those of torch.compile.
        Raises: InputError if torch can't compile with this Python.
        """
        if "recompile_limit" in signature(torch.compile).parameters:  # torch's own limit, 8, is too low
            options.setdefault("recompile_limit", GRAPHS)
        try:
            super().compile(**options)
        except RuntimeError as error:
            raise cannot_compile(error) from error
        self.compiled = options

    def with_momentum(self, momentum: Momentum) -> Self:
        """This network with another attention over frames: the same object if it has that attention already, or
        another module on the same weights."""
        if self.momentum == momentum:
            return self
        with without_weights():
            other = type(self)(self.config, momentum)
        other.load_state_dict(self.state_dict(), assign=True)
        if self.compiled is not None:
            other.compile(**self.compiled)
        return other.eval().requires_grad_(False)

    def transformer_blocks(self) -> list[TransformerBlock]:
        """All transformer blocks, in the order of a call: block i has the index i."""
        return [block for level in self._levels() for a in level.attentions for block in a.transformer_blocks]

    def _levels(self) -> list[Any]:
        """The levels, in the order of a call."""
        return [*self.down_blocks, *(() if self.mid_block is None else (self.mid_block,))]

    def _number_blocks(self) -> None:
        """Give each transformer block its index. Call this when all levels are there."""
        for index, block in enumerate(self.transformer_blocks()):
            block.index = index

    def text_keys_values(self, context: Tensor) -> list[TextKV]:
        """Project a text to the keys and values of every cross-attention. This is needed once per clip, not per step.

        Args:
            context: (branches, n, c), or (branches·F, n, c) for one prompt per frame, in the UNet's dtype.
        Returns: the argument `context` of `forward`.
        """
        return [block.attn2.keys_values(context) for block in self.transformer_blocks()]

    def added_embedding(self, pooled: Tensor, size: tuple[int, int]) -> Tensor:
        """The embedding that SDXL adds to the time embedding (Podell et al. 2023, arXiv 2307.01952, section 2.2).
        This is needed once per clip.

        SDXL's conditions are the pooled text and six numbers: the height and width of the picture before it was scaled
        down, the top left corner of its crop, and its height and width. Here nothing is scaled down or cropped.

        Args:
            pooled: (branches, p), or (branches·F, p). size: height and width in pixels.
        Returns: (branches, 4c) or (branches·F, 4c), the argument `added` of `forward`.
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

    def embed(self, t: int | Tensor, added: Tensor | None, like: Tensor) -> Tensor:
        """The activated embedding of the timestep and of what SDXL adds: (1 or b, 4c), b the rows of `like`."""
        t = torch.as_tensor(t, device=like.device).reshape(-1)
        embedding = self.time_embedding(self._waves(t, self.config.block_out_channels[0]).to(like.dtype))
        if added is not None:
            embedding = embedding + added.repeat_interleave(len(like) // len(added), dim=0)
        return F.silu(embedding)

    def _call(
        self,
        x: Tensor,
        context: Tensor | Sequence[TextKV],
        frames: int,
        added: Tensor | None,
        states: States,
        exchange: Exchange | None,
        first: int,
        progress: Tensor | None,
    ) -> Call:
        """What the transformer blocks need in a call. Raises: InputError if the shapes do not fit together."""
        text = self.text_keys_values(context) if isinstance(context, Tensor) else context
        rows = x.shape[0]
        if frames < 1 or rows % frames:
            raise InputError(f"{rows} latents do not divide into branches of {frames} frames")
        texts = text[0][0].shape[0] if text else rows
        if texts != rows and texts * frames != rows:
            raise InputError(
                f"{texts} texts for {rows} latents of {frames} frames: expected one per branch or one per latent"
            )
        if (added is None) != (self.add_embedding is None):
            raise InputError(
                "this UNet has no added conditions" if added is not None else "SDXL needs `added`: see added_embedding"
            )
        if len(states) not in (0, len(text)):
            raise InputError(f"{len(states)} states for {len(text)} transformer blocks: expected one each, or none")
        return Call(frames, text, states or [None] * len(text), exchange, first, progress)


class UNet(Encoder):
    """Predict the noise of the frames of a clip, or v or x0, as the model was trained.

    Args:
        config: from `unet/config.json`.
        attn, mu: attention over frames; see `Encoder`.
    """

    def __init__(self, config: UNetConfig, attn: str | Momentum = "tma", mu: Any = 0.98) -> None:
        super().__init__(config, attn, mu)
        channels = config.block_out_channels
        self.up_blocks = nn.ModuleList(UpLevel(config, i, self.momentum) for i in reversed(range(len(channels))))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        self._number_blocks()
        self._warn_of_levels()

    def _warn_of_levels(self) -> None:
        """Warn of values for one level alone, where that level has no attention that they could have an effect on."""
        count = len(self.down_blocks)
        each = [vars(self.momentum.at_level(level, count)) for level in range(count)]
        names = [name for name, value in each[0].items() if any(other.get(name) != value for other in each)]
        *attention, last = self.config.attention
        for level, attended in enumerate([*attention, last or self.config.mid_block], 1):  # the middle has the last's
            if names and not attended:
                its = f"its value of {' and '.join(names)} has no effect"
                warn(f"level {level} of this UNet's {count}, the largest maps first, has no attention: {its}")

    def _levels(self) -> list[Any]:
        return [*super()._levels(), *self.up_blocks]

    def forward(
        self,
        x: Tensor,
        t: int | Tensor,
        context: Tensor | Sequence[TextKV],
        *,
        frames: int,
        added: Tensor | None = None,
        residuals: Residuals | None = None,
        states: States = (),
        exchange: Exchange | None = None,
        deep: Tensor | None = None,
        first: int = 0,
        progress: Tensor | None = None,
    ) -> UNetOutput:
        """One evaluation.

        Args:
            x: (branches·F, C, H, W), frames innermost. t: one timestep for all rows, or one per row.
            context: text (branches, n, c) or (branches·F, n, c), or its keys and values from `text_keys_values`.
            frames: F. added: for SDXL, the result of `added_embedding`.
            residuals: those of a ControlNet, one row for each row of x.
            states: for a later chunk of frames, the states that the call for the previous chunk returned.
            exchange: needed if several processes share the frames of a chunk; see temporal.py.
            deep: the feature map of an earlier call, to be reused. Then this call computes only the first convolution
                and the last layer.
            first: the index of the first frame in the clip. progress: from 0 at the first step to 1 at the last; None
                is 0. Some attention kinds need them.
        Raises: InputError if the shapes do not fit together.
        """
        call = self._call(x, context, frames, added, states, exchange, first, progress)
        if deep is not None and len(deep) != len(x):
            raise InputError(f"deep features of {len(deep)} latents for {len(x)}: expected the same")
        embedding = self.embed(t, added, x)
        skips = [self.conv_in(x)]
        if deep is None:
            for down in self.down_blocks:
                skips += down(skips[-1], embedding, call)
            x = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], embedding, call)
        if residuals is not None:
            if deep is None and len(residuals.skips) != len(skips):
                raise InputError(f"{len(residuals.skips)} residuals for {len(skips)} skips: expected one each")
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips, strict=False)]
            x = x if residuals.middle is None else x + residuals.middle
        largest: UpLevel = self.up_blocks[-1]  # type: ignore[assignment]
        if deep is None:
            for up in self.up_blocks[:-1]:
                x = up(x, skips, embedding, call)
            deep = largest.layers(slice(-1), x, skips, embedding, call)
        x = largest.layers(slice(-1, None), deep, skips, embedding, call)
        return UNetOutput(self.conv_out(F.silu(self.conv_norm_out(x))), call.next_states, deep)
