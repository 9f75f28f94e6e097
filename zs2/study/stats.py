"""Means and paired differences with their intervals, and rank correlations. It needs NumPy alone.

Clips of one prompt are not independent of each other, so whole prompts are resampled, each with all its seeds: the
cluster bootstrap (Davison & Hinkley 1997, section 3.8; Cameron, Gelbach & Miller 2008). Intervals are percentiles of
RESAMPLES means (Efron & Tibshirani 1993, chapter 13), expanded for the number of prompts (Hesterberg 2015, arXiv
1411.5279): with 8 prompts plain 95 % percentiles cover 89 %, expanded ones 94 %, and with 5 they cover 92 %. The
resampling is seeded, so a report has the same bytes again.

Fewer than FEWEST prompts have no interval. All n resampled prompts are the least one in n⁻ⁿ of the resamples, and with
4 or fewer this is more than the tail, so that the ends would be the least and the greatest prompt whatever lies
between: they cover 50, 75 and 88 % with 2, 3 and 4 prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
FEWEST = 5  # prompts that have an interval
Key = tuple[int, int]  # prompt, seed
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Args:
        low, high: the ends of the interval; None with fewer than FEWEST prompts, which tell little about other prompts.
        clips: how many clips it rests on. prompts: how many prompts were resampled.
    """

    value: float
    low: float | None
    high: float | None
    clips: int
    prompts: int

    @property
    def none_seen(self) -> bool:
        """For a difference: whether the interval covers 0. False without an interval."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def mean(values: Mapping[Key, float | None]) -> Estimate | None:
    """The mean over all clips that have a value; None if there are none."""
    sums, counts = _clusters(values)
    if not len(sums):
        return None
    estimate = float(sums.sum() / counts.sum())
    chosen = _resampled(len(sums))
    low, high = _interval(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1), len(sums))
    return Estimate(estimate, low, high, int(counts.sum()), len(sums))


def difference(values: Mapping[Key, float | None], base: Mapping[Key, float | None]) -> Estimate | None:
    """The mean of values − base over the (prompt, seed) that both have: each pair has the same prompt and noise."""
    return mean({key: _minus(value, base.get(key)) for key, value in values.items()})


def common(levels: Sequence[Mapping[Key, float | None]]) -> list[dict[Key, float]]:
    """For each level (of λ, say) the values of those (prompt, seed) for which all levels have a value."""
    known = [{key: value for key, value in level.items() if value is not None} for level in levels]
    return [{key: value for key, value in level.items() if all(key in other for other in known)} for level in known]


def rank_correlation(levels: Sequence[Mapping[Key, float | None]], others: Sequence[float]) -> Estimate | None:
    """Spearman's rank correlation between the means of some levels and other figures for the same levels.

    Only the (prompt, seed) that all levels have are used, and prompts are resampled. Ties have their mean rank. Levels
    that are all equal have no order and a correlation of 0. None if the levels have no (prompt, seed) in common.
    """
    complete = common(levels)
    if not complete[0]:
        return None
    clusters = [_clusters(level) for level in complete]
    sums = np.stack([sums for sums, _ in clusters])  # (levels, prompts)
    counts = clusters[0][1]
    chosen = _resampled(len(counts))
    means = sums[:, chosen].sum(axis=2) / counts[chosen].sum(axis=1)  # (levels, resamples)
    resampled = _spearman(means.T, np.asarray(others, float))
    low, high = _interval(resampled, len(counts))
    value = float(_spearman((sums.sum(axis=1) / counts.sum())[None], np.asarray(others, float))[0])
    return Estimate(value, low, high, sum(map(len, complete)), len(counts))


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _clusters(values: Mapping[Key, float | None]) -> tuple[Floats, Floats]:
    """The sum and the number of the values of each prompt, in the order of prompts."""
    sums: dict[int, float] = {}
    counts: dict[int, float] = {}
    for (prompt, _), value in sorted(values.items()):
        if value is not None:
            sums[prompt] = sums.get(prompt, 0.0) + value
            counts[prompt] = counts.get(prompt, 0.0) + 1
    return np.array(list(sums.values()), float), np.array(list(counts.values()), float)


@cache
def _resampled(prompts: int) -> NDArray[np.int64]:
    """Which prompts are in each resample: (RESAMPLES, prompts)."""
    return np.random.default_rng(SEED).integers(0, prompts, (RESAMPLES, prompts))


def _interval(resampled: Floats, prompts: int) -> tuple[float | None, float | None]:
    if prompts < FEWEST:
        return None, None
    tail = 100 * _tail(prompts)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _tail(prompts: int) -> float:
    """The share of resamples beyond each end of an interval: Φ(−t·√(n/(n−1))) for n prompts, with Student's quantile t.

    With it, a percentile interval is as wide as Student's where means are normal. t by Abramowitz & Stegun 26.7.5.
    """
    z, v = NormalDist().inv_cdf((1 + LEVEL) / 2), prompts - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * (prompts / v) ** 0.5)


def _spearman(rows: Floats, others: Floats) -> Floats:
    """Pearson's correlation of the ranks of each row (n, levels) with those of the others (levels,)."""
    a, b = _ranks(rows), _ranks(others[None])
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(rows)), where=size > 0)


def _ranks(rows: Floats) -> Floats:
    """Ranks within each row, from 0. Ties have their mean rank."""
    less = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
    same = (rows[:, None, :] == rows[:, :, None]).sum(axis=2)
    return less + (same - 1) / 2
