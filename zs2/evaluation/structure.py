"""Structural similarity of consecutive frames, at one scale and at several. NumPy alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from zs2.video.formats import Frames

Floats = NDArray[np.float64]

SIGMA = 1.5  # of the Gaussian window
RADIUS, SMALL_RADIUS = 5, 3  # windows of 11 × 11, and of 7 × 7
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales: Wang et al. 2003, the finest first


def ssim(frames: Frames) -> float | None:
    """Mean structural similarity of consecutive frames: −1 … 1, 1 for a still clip.

    Wang et al. 2004 (Image Quality Assessment): a Gaussian window of 11 × 11, σ = 1.5, K = 0.01 and 0.03, pixels in
    [0, 1]; the mean over the places where the window fits, and over the three colours. It is scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`.
    None for frames smaller than the window.
    """
    if len(frames) < 2 or min(frames.shape[1:3]) < 2 * RADIUS + 1:
        return None
    return float(np.mean([_likeness(x, y, RADIUS)[0].mean() for x, y in pairwise(_planes(frames))]))


def ms_ssim(frames: Frames) -> float | None:
    """Mean multi-scale structural similarity of consecutive frames: 0 … 1, 1 for a still clip.

    Wang et al. 2003 (Multi-scale structural similarity): contrast and structure at five scales, each half of the one
    before, and luminance at the last; each to the power of its weight, and multiplied. The window is 7 × 7, since five
    scales of 11 × 11 need more than 160 pixels. It is pytorch-msssim's `ms_ssim(win_size=7, data_range=1)`.
    None for frames of 96 pixels or less along a side, where the window does not fit into the last scale.
    """
    if len(frames) < 2 or min(frames.shape[1:3]) <= 2 * SMALL_RADIUS * 2 ** (len(WEIGHTS) - 1):
        return None
    return float(np.mean([_multi_scale(x, y) for x, y in pairwise(_planes(frames))]))


def _planes(frames: Frames) -> list[Floats]:
    """uint8 (F, h, w, 3) → pixels in [0, 1], (3, h, w) each."""
    return [np.ascontiguousarray(frame.transpose(2, 0, 1)) / 255 for frame in frames]


def _likeness(a: Floats, b: Floats, radius: int) -> tuple[Floats, Floats]:
    """Two pictures (3, h, w) → the similarity of each place where the window fits, and its part without luminance."""
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    window /= window.sum()
    moments = np.stack([a, b, a * a, b * b, a * b])  # (5, 3, h, w)
    for axis in (2, 3):
        moments = sliding_window_view(moments, len(window), axis) @ window  # in the end (5, 3, h-2r, w-2r)
    mean_a, mean_b, aa, bb, ab = moments
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure, structure


def _multi_scale(a: Floats, b: Floats) -> float:
    """The multi-scale similarity of two pictures (3, h, w): the mean over colours. A negative factor counts as 0."""
    product = np.ones(3)
    for i, weight in enumerate(WEIGHTS):
        if i:
            a, b = _halved(a), _halved(b)
        similarity, structure = _likeness(a, b, SMALL_RADIUS)
        factor = similarity if i == len(WEIGHTS) - 1 else structure
        product *= factor.mean(axis=(1, 2)).clip(min=0) ** weight
    return float(product.mean())


def _halved(x: Floats) -> Floats:
    """Means of 2 × 2 pixels, (c, h, w). An odd side gets a row of zeros at both ends, of which the last is left out."""
    (_, h, w), odd = x.shape, [side % 2 for side in x.shape[1:]]
    x = np.pad(x, ((0, 0), (odd[0], odd[0]), (odd[1], odd[1])))[:, : h + odd[0], : w + odd[1]]
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean(axis=(2, 4))
