"""The flow warping error of a clip: change that optical flow does not explain. It needs opencv, for Farneback's flow.

The metric is the warping error of Lai et al. 2018 (Learning Blind Video Temporal Consistency, arXiv 1808.00449), as
their program computes it. Hidden pixels are found as in Ruder et al. 2016 (Artistic Style Transfer for Videos, arXiv
1604.08610). Both take the flow from FlowNet2: compare these numbers only with others of Farneback's flow.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zs2.errors import warn
from zs2.video.formats import Frames

# Farneback 2003, with the settings of OpenCV's own tutorial.
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


def flow_warp_error(frames: Frames) -> float | None:
    """The change between consecutive frames that the optical flow does not explain: 0 … 1, about 0 for a still clip.

    The next frame is warped back along the flow, which is measured in the clip itself. The error of a pair of frames is
    the mean square of the difference that is left, over the visible pixels and the colours, pixels in [0, 1]. The
    result is the mean over pairs. A pair with nothing visible is left out (the authors' program counts it as 0).

    Args: frames: uint8 (F, H, W, 3).
    Returns: None for one frame, if nothing is visible, or without opencv, of which it warns once.
    """
    if len(frames) < 2 or opencv() is None:
        return None
    pictures = torch.tensor(frames).permute(0, 3, 1, 2).double() / 255  # (F, 3, h, w)
    forward, backward = farneback(frames), farneback(frames[::-1]).flip(0)
    return warp_error(pictures, forward, backward)


def warp_error(pictures: Tensor, forward: Tensor, backward: Tensor) -> float | None:
    """The warping error for flows that are known.

    Args:
        pictures: (F, c, h, w). forward: (F−1, 2, h, w), from each frame to the next, in pixels to the right and down.
        backward: from each next frame back, likewise.
    """
    left = (pictures[:-1] - warp(pictures[1:], forward)).square().mean(dim=1)  # (F-1, h, w)
    visible = ~hidden(forward, backward)
    errors = [error[seen].mean().item() for error, seen in zip(left, visible, strict=True) if seen.any()]
    return float(np.mean(errors)) if errors else None


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Look up each pixel where the flow points, between four pixels; outside, the nearest of the border.

    Args: pictures: (b, c, h, w). flow: (b, 2, h, w), pixels to the right and down. Returns: (b, c, h, w)
    """
    height, width = flow.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u, v = flow.to(pictures).unbind(dim=1)
    x, y = columns + u, rows + v  # (b, h, w)
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=True)


def hidden(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of a frame are hidden in the next one, by the two tests of Ruder et al.

    Let w = (u, v) be the flow and ŵ the flow back from where w points. A pixel is hidden if the flow back does not
    return to it, |w + ŵ|² > 0.01·(|w|² + |ŵ|²) + 0.5, or at a motion boundary, |∇u|² + |∇v|² > 0.01·|w|² + 0.002.

    Args: both (b, 2, h, w), in pixels. Returns: bool (b, h, w)
    """
    forward, backward = forward.double(), backward.double()
    back = warp(backward, forward)
    lengths = forward.square().sum(dim=1), back.square().sum(dim=1)
    astray = (forward + back).square().sum(dim=1) > 0.01 * (lengths[0] + lengths[1]) + 0.5
    across = F.pad(forward.diff(dim=3), (0, 1)).square().sum(dim=1)  # at the last column and row there is no gradient
    down = F.pad(forward.diff(dim=2), (0, 0, 0, 1)).square().sum(dim=1)
    return astray | (across + down > 0.01 * lengths[0] + 0.002)


def farneback(frames: Frames) -> Tensor:
    """The flow from each frame to the next: uint8 (F, H, W, 3) → float32 (F−1, 2, H, W), pixels right and down."""
    cv2 = opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    flows = [cv2.calcOpticalFlowFarneback(*pair, None, **FARNEBACK) for pair in itertools.pairwise(grey)]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2)


@cache
def opencv() -> Any:
    """The module cv2, or None if it is not installed, of which it warns once."""
    try:
        import cv2
    except ImportError as error:
        warn(f"flow-warp-error is left out, because it needs opencv ({error}): pip install 'zs2[metrics]'")
        return None
    return cv2
