"""Attention, the transformer block, and the spatial transformer of the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.models.layers import FeedForward
from zs2.models.temporal import Exchange, Momentum, Runs

# Keys and values of a text, (branches or branches·frames, n, c) each, for one cross-attention layer.
TextKV = tuple[Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False, upcast: bool = False) -> Tensor:
    """Multi-head attention of already projected tensors.

    k and v may have fewer rows than q. Then b/b' consecutive rows of q share one row of k and v. Those rows of q are
    folded into the query length, so that shared keys and values are neither copied nor projected twice.

    Args:
        q: (b, n, c). k, v: (b', m, c), where b is a multiple of b'. heads: the number of heads, which share c equally.
        causal: each token sees only itself and the tokens before it.
        upcast: sum in float32. Half precision is cast for that only if there is no fused kernel.
    Returns: (b, n, c)
    """
    rows, folded = q, q.reshape(k.shape[0], -1, q.shape[-1])  # (b', b/b'·n, c)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (folded, k, v))  # (b', heads, tokens, c/heads)
    if upcast and q.element_size() < 4 and not fused(q.device.type, q.shape[-1]):
        q, k, v = q.float(), k.float(), v.float()
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(rows.shape).to(rows.dtype)


def fused(device: str, head_size: int) -> bool:
    """Whether torch has a fused kernel for attention in half precision on this type of device.

    A fused kernel sums in float32, so its products do not overflow float16. Without one, torch multiplies matrices,
    which some devices do in half precision. The CPU's kernel takes any head size, CUDA's take multiples of 8. A program
    may switch kernels off (torch.nn.attention.sdpa_kernel); a compiled model does not see that.
    """
    switches, compiling = torch.backends.cuda, torch.compiler.is_compiling()
    if device == "cpu":
        return compiling or switches.flash_sdp_enabled()
    return device == "cuda" and head_size % 8 == 0 and (compiling or switches.mem_efficient_sdp_enabled())


@dataclass
class Call:
    """The inputs and outputs of the transformer blocks in one call of the UNet. A block finds its own by its index.

    Modules keep nothing between calls. If a call skips a block, the next state of that block stays None.
    """

    frames: int
    text: Sequence[TextKV]  # keys and values of each block's cross-attention
    states: Sequence[Tensor | None]  # momentum states after the previous chunk of frames
    exchange: Exchange | None = None  # set if several processes share the frames of a chunk
    first: int = 0  # the index of the first frame
    progress: Tensor | None = None  # from 0 at the first step to 1 at the last
    next_states: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.next_states = [None] * len(self.states)


class Attention(nn.Module):
    """The projections of one attention layer. In the UNet, queries, keys and values are projected without bias."""

    def __init__(self, dim: int, context_dim: int, heads: int, *, bias: bool = False, upcast: bool = False) -> None:
        super().__init__()
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context_dim, dim, bias)
        self.to_v = nn.Linear(context_dim, dim, bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Identity()])  # [1] was a dropout

    def keys_values(self, context: Tensor) -> TextKV:
        """(b', m, context_dim) → keys and values, (b', m, dim) each"""
        return self.to_k(context), self.to_v(context)

    def forward(self, x: Tensor, keys_values: TextKV) -> Tensor:
        """x (b, n, dim) attends to projected keys and values (b', m, dim) → (b, n, dim). b is a multiple of b'."""
        return self.to_out[0](attend(self.to_q(x), *keys_values, self.heads, upcast=self.upcast))


class TransformerBlock(nn.Module):
    """Self-attention over space, with momentum over frames; cross-attention to the text; feed-forward."""

    index = 0  # the number of this block in the UNet, which sets it

    def __init__(self, dim: int, context_dim: int, heads: int, momentum: Momentum, *, upcast: bool) -> None:
        super().__init__()
        self.momentum = momentum
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads, upcast=upcast)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """(b, n, dim) → (b, n, dim), b = branches × frames"""
        h = self.norm1(x)
        momentum, state = self.momentum.at(call.first, call.progress), call.states[self.index]
        if call.exchange is None:
            blended, state = momentum.blend(h, call.frames, state)
        else:
            start, state = call.exchange(momentum, h, call.frames, state)
            blended, _ = momentum.blend(h, call.frames, start)
        call.next_states[self.index] = state
        x = x + self._self_attention(h, blended)
        x = x + self.attn2(self.norm2(x), call.text[self.index])
        return x + self.ff(self.norm3(x))

    def _self_attention(self, h: Tensor, blended: Tensor | Runs) -> Tensor:
        """h (b, n, dim) attends to what its momentum returned: one tensor, or one for each run of frames."""
        if isinstance(blended, Tensor):
            return self.attn1(h, self.attn1.keys_values(blended))
        counts = [count for count, _ in blended]
        parts = h.unflatten(0, (-1, sum(counts))).split(counts, dim=1)  # (branches, frames of a run, n, dim)
        seen = [
            self.attn1(part.flatten(0, 1), self.attn1.keys_values(keys)).unflatten(0, part.shape[:2])
            for part, (_, keys) in zip(parts, blended, strict=True)
        ]
        return torch.cat(seen, dim=1).flatten(0, 1)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections, with a skip connection.

    SD 1 projects by 1×1 convolutions, SD 2 and XL by linear layers. The product is the same, only the shape of the
    weights differs.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        heads: int,
        layers: int,
        momentum: Momentum,
        *,
        groups: int,
        linear: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # not the resnets' eps
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, heads, momentum, upcast=upcast) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)"""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, h·w, c)
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            tokens = block(tokens, call)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + tokens.transpose(1, 2).reshape(x.shape)
