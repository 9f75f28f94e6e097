"""LPIPS, the learned perceptual distance of consecutive frames (Zhang et al. 2018, arXiv 1801.03924), version 0.1 of
AlexNet. Its weights are not part of zs2: they are read from a safetensors file with the names of the `lpips` package,

    from safetensors.torch import save_model
    save_model(lpips.LPIPS(net="alex"), "lpips-alex.safetensors")
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from zs2.checkpoints.digests import sha256
from zs2.checkpoints.tensor_files import read_tensors
from zs2.errors import InputError
from zs2.video.formats import Frames

# AlexNet's convolutions: the name, channels in and out, kernel, stride, padding, and whether a max-pool comes before.
LAYERS = (
    ("net.slice1.0", 3, 64, 11, 4, 2, False),
    ("net.slice2.3", 64, 192, 5, 1, 2, True),
    ("net.slice3.6", 192, 384, 3, 1, 1, True),
    ("net.slice4.8", 384, 256, 3, 1, 1, False),
    ("net.slice5.10", 256, 256, 3, 1, 1, False),
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of red, green and blue in [−1, 1]
LEAST = 31  # pixels along a side: smaller frames vanish in the pools


class LPIPS:
    """The network. Args: tensors: its weights, by the names of the `lpips` package. Raises: InputError for others.

    Attributes: digest: the SHA-256 of the file that they came from, if any.
    """

    def __init__(self, tensors: dict[str, Tensor], name: str = "LPIPS", digest: str | None = None) -> None:
        self.digest = digest
        self.layers = []
        for i, (layer, c_in, c_out, size, stride, padding, pooled) in enumerate(LAYERS):
            linear = f"lin{i}" if f"lin{i}.model.1.weight" in tensors else f"lins.{i}"
            shapes = {f"{layer}.weight": (c_out, c_in, size, size), f"{layer}.bias": (c_out,)}
            shapes[f"{linear}.model.1.weight"] = (1, c_out, 1, 1)
            for key, shape in shapes.items():
                if key not in tensors or tensors[key].shape != shape:
                    got = tuple(tensors[key].shape) if key in tensors else "missing"
                    raise InputError(f"{name}: {key} is {got}: expected {shape}, as in lpips.LPIPS(net='alex')")
            weights = [tensors[key].double() for key in shapes]
            self.layers.append((weights, stride, padding, pooled))

    @classmethod
    def read(cls, file: str | Path) -> LPIPS:
        """Read a safetensors file. Raises: InputError for a missing file, or other tensors."""
        path = Path(file)
        if path.suffix != ".safetensors" or not path.is_file():
            raise InputError(f"{file}: no such .safetensors file of LPIPS's weights (of lpips.LPIPS(net='alex'))")
        return cls(read_tensors([path]), str(file), sha256([path]))

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels in [−1, 1] (F, 3, h, w) → unit vectors of each layer, (F, c, h', w'), float64."""
        shift, scale = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (SHIFT, SCALE))
        x, found = (pixels.double() - shift) / scale, []
        for (weight, bias, _), stride, padding, pooled in self.layers:
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2) if pooled else x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distances of pictures from their features: (F,)."""
        total = torch.zeros(len(one[0]), dtype=torch.float64)
        for a, b, ((_, _, linear), *_) in zip(one, other, self.layers, strict=True):
            total += ((a - b).square() * linear).sum(dim=1).mean(dim=(1, 2))
        return total


@torch.no_grad()
def lpips(frames: Frames, network: LPIPS) -> float | None:
    """Mean LPIPS of consecutive frames, uint8 (F, H, W, 3): 0 for a still clip, lower is nearer.

    None for one frame, or for frames smaller than 31 pixels.
    """
    if len(frames) < 2 or min(frames.shape[1:3]) < LEAST:
        return None
    each = (torch.tensor(frame).permute(2, 0, 1)[None] / 127.5 - 1 for frame in frames)
    features = (network.features(pixels) for pixels in each)
    return torch.cat([network.distance(a, b) for a, b in pairwise(features)]).mean().item()
