"""The 256 colours of a GIF's frame: a histogram is split where its variance is largest, then refined by k-means.

The splits are Wan, Wong and Prusinkiewicz's (1990, ACM TOMS 16:4), the refinement is Lloyd's. All work is on the
occupied cells of a histogram of 32 × 32 × 32 colours, of which there are a few thousand, whatever the frame's size.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = 256
BITS = 5  # of each channel, in the histogram: with 6 it gains 0.4 dB and takes four times as long
ROUNDS = 2  # of k-means: with 4 it gains less than 0.05 dB

Array = NDArray[Any]


def paletted(frame: NDArray[np.uint8]) -> Image.Image:
    """A frame (H, W, 3) in at most 256 colours of its own, not dithered. One of at most 256 colours stays exact."""
    pixels = frame.reshape(-1, 3)
    cell = _packed(pixels >> (8 - BITS), BITS)  # of each pixel
    number = np.bincount(cell, minlength=1 << 3 * BITS)
    occupied = np.flatnonzero(number)
    colours, index = (np.array([]), np.array([])) if len(occupied) > COLOURS else _exact(pixels)
    if not len(colours):
        weights = number[occupied].astype(float)
        sums = [np.bincount(cell, channel, minlength=len(number))[occupied] for channel in pixels.T]
        points = np.stack(sums, axis=1) / weights[:, None]
        colours = _refined(_split(points, weights), points, weights).round()
        nearest = np.zeros(len(number), np.uint8)
        nearest[occupied] = _nearest(colours, points)
        index = nearest[cell]
    image = Image.fromarray(index.astype(np.uint8).reshape(frame.shape[:2]), mode="P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def _packed(values: Array, bits: int) -> Array:
    """Three channels in one number."""
    red, green, blue = values.astype(np.int32).T
    return np.asarray((red << 2 * bits) | (green << bits) | blue)


def _exact(pixels: Array) -> tuple[Array, Array]:
    """The colours and each pixel's index, or no colours if there are more than COLOURS."""
    found, index = np.unique(_packed(pixels, 8), return_inverse=True)
    if len(found) > COLOURS:
        return np.array([]), index
    return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1), index


def _split(points: Array, weights: Array) -> Array:
    """Means (≤ 256, 3) of clusters: the one of the largest variance is split at its mean, along its widest axis."""
    order = count()  # decides between equal variances
    clusters = [(0.0, next(order), *_moments(points, weights), points, weights)]
    while len(clusters) < COLOURS and len(clusters[0][4]) > 1:
        _, _, mean, variance, inside, heavy = heapq.heappop(clusters)
        axis = variance.argmax()
        below = inside[:, axis] <= mean[axis]
        for part in (below, ~below):
            mean, variance = _moments(inside[part], heavy[part])
            heapq.heappush(clusters, (-variance.sum(), next(order), mean, variance, inside[part], heavy[part]))
    return np.array([cluster[2] for cluster in clusters])


def _moments(points: Array, weights: Array) -> tuple[Array, Array]:
    """The mean, and the sum of squared distances from it along each axis."""
    mean = weights @ points / weights.sum()
    return mean, weights @ (points - mean) ** 2


def _refined(colours: Array, points: Array, weights: Array) -> Array:
    """The colours after ROUNDS of k-means. A colour that no point is nearest to stays."""
    for _ in range(ROUNDS):
        nearest = _nearest(colours, points)
        total = np.bincount(nearest, weights, minlength=len(colours))
        sums = np.stack([np.bincount(nearest, weights * axis, minlength=len(colours)) for axis in points.T], axis=1)
        colours = np.where(total[:, None] > 0, sums / np.maximum(total, 1)[:, None], colours)
    return colours


def _nearest(colours: Array, points: Array) -> Array:
    """The index of the colour nearest to each point."""
    return np.asarray(((colours**2).sum(axis=1) - 2 * points @ colours.T).argmin(axis=1))
