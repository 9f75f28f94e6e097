"""The layers of the UNet and the VAE. Parameter names are those of the diffusers layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoids of the timestep (Ho et al. 2020; "Attention Is All You Need").

    Args:
        t: timesteps (b,). dim: width, even.
        flip_sin_to_cos: put the cosines first. freq_shift: 0 or 1, subtracted from dim/2 in the exponent's divisor.
    Returns: (b, dim), float32.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * exponent.exp()[None]
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=1)


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoids to the embedding that every resnet block adds."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, embed_dim)
        self.linear_2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim) → (b, embed_dim)"""
        return self.linear_2(F.silu(self.linear_1(x)))


class Conv2d(nn.Conv2d):
    """A convolution. On a CPU, one with few output pixels and many channels is a matrix product of its windows and its
    weights. oneDNN's convolution reorders all weights at every call, and is slow for few pixels. (Measured with
    AVX-512, and with oneDNN restricted to AVX2; see docs/performance.md.)
    """

    PLACES, CHANNELS = 144, 1024  # the most output pixels, and the fewest output channels, of a matrix product

    def __init__(self, in_channels: int, out_channels: int, size: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, size, stride, padding)
        self.window = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c', h', w')"""
        size, stride, padding = self.window
        sides = [(side + 2 * padding - size) // stride + 1 for side in x.shape[2:]]
        places = math.prod(sides)
        measured = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        if not measured or min(sides) < 1 or places > self.PLACES or self.out_channels < self.CHANNELS:
            return super().forward(x)
        at_once = max(1, self.out_channels // places)  # pictures whose windows need no more memory than the weights
        return torch.cat([self._product(pictures) for pictures in x.split(at_once)])

    def _product(self, x: Tensor) -> Tensor:
        size, stride, padding = self.window
        windows = F.pad(x, (padding,) * 4).unfold(2, size, stride).unfold(3, size, stride)  # (b, c, h', w', k, k)
        windows, weight = windows.permute(0, 2, 3, 1, 4, 5), self.weight
        if not weight.is_contiguous():  # it is channels-last: permute both, so that neither is copied
            windows, weight = windows.permute(0, 1, 2, 4, 5, 3), weight.permute(0, 2, 3, 1)
        y = F.linear(windows.flatten(3), weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return y.contiguous() if x.is_contiguous() and self.weight.is_contiguous() else y


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with a skip connection. In the UNet it adds the projected time embedding."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float, embed_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if embed_dim is None else nn.Linear(embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (b, c, h, w), activated time embedding (1 or b, embed_dim) → (b, c', h, w)"""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution. Padding 0 means the VAE's: one row and one column at the end."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, ⌈h/2⌉, ⌈w/2⌉)"""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to some size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(b, c, h, w) → (b, c, *size)"""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class GEGLU(nn.Module):
    """A linear layer to twice the width, one half gated by the GELU of the other (Shazeer 2020)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, dim) → (b, n, inner_dim)"""
        # Two products give two contiguous halves. One product would give strided halves, on which GELU is slower.
        (weight, gate_weight), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return F.linear(x, weight, bias) * F.gelu(F.linear(x, gate_weight, gate_bias))


class FeedForward(nn.Module):
    """The feed-forward layers of a transformer: GEGLU to four times the width, and a linear layer back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])  # [1] was a dropout

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, dim) → (b, n, dim)"""
        return self.net[2](self.net[0](x))
