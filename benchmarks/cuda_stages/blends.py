"""Other ways to blend the hidden states of `tma`, to be timed against the one in zs2/models/temporal.py.

`Product` is one product with the matrix U over the frames, which is kept: 5 operators whatever the number of frames,
where the recursion has one a frame. In float32 its error is smaller. `HalfProduct` multiplies in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zs2.models.temporal import Temporal


@dataclass(frozen=True)
class Product(Temporal):
    """h̃ = U·h in float32."""

    matrices: dict[tuple[int, bool], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def blend(self, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(b, n, c) → (b, n, c)"""
        x = h.unflatten(0, (-1, frames)).to(self.dtype(h))  # (branches, f, n, c)
        u = self.matrix(frames, state is None, h.device).to(x.dtype)
        blended = torch.matmul(u, x.flatten(2))  # (branches, f, n·c)
        if state is not None:
            powers = u[:, :1] * (self.mu / (1 - self.mu))  # μ^{i+1}
            blended = torch.addcmul(blended, powers, state.flatten(1)[:, None].to(x.dtype))
        blended = blended.view_as(x)
        return blended.flatten(0, 1).to(h.dtype), blended[:, -1].to(torch.float32, copy=True)

    def dtype(self, h: Tensor) -> torch.dtype:
        """The dtype of the product."""
        return torch.float32

    def matrix(self, frames: int, first: bool, device: torch.device) -> Tensor:
        """U (f, f): of the first chunk of a clip, or of a later one."""
        key = (frames, first)
        if key not in self.matrices:
            i = torch.arange(frames, dtype=torch.float64)
            u = ((1 - self.mu) * self.mu ** (i[:, None] - i).clamp(min=0)).tril()
            if first:
                u[:, 0] = self.mu**i
            self.matrices[key] = u.to(device, torch.float32)
        return self.matrices[key]


@dataclass(frozen=True)
class HalfProduct(Product):
    """The same in the dtype of h."""

    def dtype(self, h: Tensor) -> torch.dtype:
        """The dtype of the product."""
        return h.dtype


def exact(h: Tensor, frames: int, mu: float, state: Tensor | None = None) -> Tensor:
    """The blend in float64: (b, n, c) → (b, n, c)."""
    x = h.unflatten(0, (-1, frames)).double()
    rows, last = [], None if state is None else state.double()
    for frame in x.unbind(1):
        last = frame if last is None else mu * last + (1 - mu) * frame
        rows.append(last)
    return torch.stack(rows, dim=1).flatten(0, 1)
