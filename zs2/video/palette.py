"""The 256 colours of a GIF's frame: a histogram is split where its variance is largest, then refined by k-means.

The splits are Wan, Wong and Prusinkiewicz's (1990, ACM TOMS 16:4), the refinement is Lloyd's. It also moves the
colours that are missed least to where the error is largest: Lloyd's alone ends in the nearest local optimum. All work
is on the occupied cells of a histogram, of which there are a few thousand, whatever the frame's size.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = 256
BITS = 6, 5  # of each channel, in the histogram: the finer one if at most CELLS are occupied
CELLS = 10_000
ROUNDS = 6  # of k-means
MOVES = 4  # of them move colours too; with more of either it gains less than 0.1 dB
MOVED = 16  # colours at a time, at most

Array = NDArray[Any]


def paletted(frame: NDArray[np.uint8]) -> Image.Image:
    """A frame (H, W, 3) in at most 256 colours of its own, not dithered. One of at most 256 colours stays exact."""
    points, weights, cell = _histogram(frame.reshape(-1, 3))
    colours = points
    if len(points) > COLOURS:
        colours = _refined(_split(points, weights), points, weights).round()
        cell = _distances(colours, points).argmin(axis=1)[cell]
    image = Image.fromarray(cell.astype(np.uint8).reshape(frame.shape[:2]), mode="P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def _histogram(pixels: Array) -> tuple[Array, Array, Array]:
    """The mean colours of the occupied cells, how many pixels each has, and the cell of each pixel.

    A cell is one colour if the pixels are few, or alike.
    """
    channels = np.ascontiguousarray(pixels.T)
    for bits in BITS:
        cell = _packed(channels >> (8 - bits), bits)
        number = np.bincount(cell, minlength=1 << 3 * bits)
        occupied = np.flatnonzero(number)
        if len(occupied) <= CELLS:
            break
    if len(occupied) <= COLOURS or len(pixels) <= CELLS:
        found, cell, number = np.unique(_packed(channels, 8), return_inverse=True, return_counts=True)
        points = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
        return points.astype(np.float32), number.astype(float), cell
    weights = number[occupied].astype(float)
    sums = [np.bincount(cell, channel)[occupied] for channel in channels]
    points = (np.stack(sums, axis=1) / weights[:, None]).astype(np.float32)
    index = np.zeros(len(number), np.int32)
    index[occupied] = np.arange(len(occupied))
    return points, weights, index[cell]


def _packed(channels: Array, bits: int) -> Array:
    """Three channels (3, n) in one number."""
    red, green, blue = channels.astype(np.int32)
    return np.asarray((red << 2 * bits) | (green << bits) | blue)


def _split(points: Array, weights: Array) -> Array:
    """Means (≤ 256, 3) of clusters: the one of the largest variance is split until there are enough."""
    order = count()  # decides between equal variances

    def cluster(points: Array, weights: Array) -> tuple[Any, ...]:
        mean, variance = _moments(points, weights)
        return -variance.sum(), next(order), points, weights, mean, variance

    clusters = [cluster(points, weights)]
    while len(clusters) < COLOURS and len(clusters[0][2]) > 1:
        for part in _halves(*heapq.heappop(clusters)[2:]):
            heapq.heappush(clusters, cluster(*part))
    return np.array([mean for *_, mean, _ in clusters])


def _halves(points: Array, weights: Array, mean: Array, variance: Array) -> list[tuple[Array, Array]]:
    """Points and weights of a cluster of these moments, split at its mean along its widest axis. Points must differ."""
    axis = variance.argmax()
    below = points[:, axis] - mean[axis : axis + 1] <= 0  # in float64, so that the largest is above the mean
    return [(points[part], weights[part]) for part in (below, ~below)]


def _moments(points: Array, weights: Array) -> tuple[Array, Array]:
    """The mean, and the sum of squared distances from it along each axis."""
    mean = weights @ points / weights.sum()
    return mean, weights @ (points - mean) ** 2


def _refined(colours: Array, points: Array, weights: Array) -> Array:
    """The colours after ROUNDS of k-means. A colour that no point is nearest to stays, unless it is moved."""
    every = np.arange(len(points))
    for turn in range(ROUNDS):
        distances = _distances(colours, points)
        nearest = distances.argmin(axis=1)
        total = _sums(weights, nearest)
        means = _sums(weights[:, None] * points, nearest) / np.maximum(total, 1)[:, None]
        colours = np.where(total[:, None] > 0, means, colours).astype(points.dtype)
        if turn < MOVES:
            error = distances[every, nearest]
            distances[every, nearest] = np.inf
            missed = _sums(weights * (distances.min(axis=1) - error), nearest)
            _move(colours, missed, nearest, points, weights)
    return colours


def _move(colours: Array, missed: Array, nearest: Array, points: Array, weights: Array) -> None:
    """Move, in place, up to MOVED colours: each takes a part of a cluster, if half its error is more than is missed.

    missed: how much the error grows without each colour, at most.
    nearest: the colour of each point.
    """
    error = _sums(weights * ((points - colours[nearest]) ** 2).sum(axis=1), nearest)
    order = zip(missed.argsort(kind="stable"), (-error).argsort(kind="stable")[:MOVED], strict=False)
    for unmissed, cluster in order:
        inside = nearest == cluster
        if missed[unmissed] >= error[cluster] / 2 or inside.sum() < 2:
            break
        one = points[inside], weights[inside]
        colours[[cluster, unmissed]] = [_moments(*part)[0] for part in _halves(*one, *_moments(*one))]


def _sums(values: Array, index: Array) -> Array:
    """The sum of the values, or of each of their columns, that have each index below COLOURS."""
    columns = [np.bincount(index, column, minlength=COLOURS) for column in np.atleast_2d(values.T)]
    return np.stack(columns, axis=1) if values.ndim == 2 else columns[0]


def _distances(colours: Array, points: Array) -> Array:
    """The squared distances (points, colours), less those of the points from 0."""
    # one product with a column of ones: a sum after it would pass over all distances once more
    ones = np.ones((len(points), 1), points.dtype)
    factors = np.concatenate([-2 * colours.T, (colours**2).sum(axis=1)[None]])
    return np.asarray(np.concatenate([points, ones], axis=1) @ factors)
