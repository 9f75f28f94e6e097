"""Optical flow and what it leaves unexplained: the warping error of a clip. Flow is Farneback's, by opencv, an extra.

The metric is the warping error of Lai et al. 2018 (Learning Blind Video Temporal Consistency, arXiv 1808.00449), as
their program computes it; it finds what is hidden as Ruder et al. 2016 do (Artistic Style Transfer for Videos, arXiv
1604.08610). They take the flow from FlowNet2: numbers compare only with those of the same flow.
"""

from __future__ import annotations

import itertools
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zs2.video.formats import Frames

# Farneback 2003, with the settings of OpenCV's own tutorial.
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


def flow_warp_error(frames: Frames) -> float | None:
    """How much of the change between consecutive frames the optical flow does not explain, where nothing is hidden.

    The next frame is drawn back along the flow; the error is the mean square of what then differs, over the visible
    pixels and the colours, pixels in [0, 1], and its mean over pairs of frames: 0 … 1, and about 0 for a still clip.
    The flow is measured in the clip itself. A pair with nothing visible has no error and is left out (the authors'
    program counts it as 0).

    Args: frames: uint8 (F, H, W, 3). Returns: None for one frame, if nothing is visible, or without opencv (said once).
    """
    if len(frames) < 2 or opencv() is None:
        return None
    pictures = torch.tensor(frames).permute(0, 3, 1, 2).double() / 255  # (F, 3, h, w)
    forward, backward = farneback(frames), farneback(frames[::-1]).flip(0)
    return warp_error(pictures, forward, backward)


def warp_error(pictures: Tensor, forward: Tensor, backward: Tensor) -> float | None:
    """`flow_warp_error` for given flows.

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
    """Where a frame's pixels are not to be seen in the next, by Ruder et al.'s two tests, or at the edge of a motion.

    With w the flow and ŵ the flow back from where w points: |w + ŵ|² > 0.01·(|w|² + |ŵ|²) + 0.5, that is, it does not
    lead back; or |∇u|² + |∇v|² > 0.01·|w|² + 0.002 with (u, v) = w.

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
    """The module cv2, or None; then it is said, once, what is missing."""
    try:
        import cv2
    except ImportError as error:
        warnings.warn(
            f"flow-warp-error is left out, for it needs opencv ({error}): pip install 'zs2[metrics]'", stacklevel=2
        )
        return None
    return cv2
