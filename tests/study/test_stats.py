"""The statistics of a study: by hand, and by their properties."""

from __future__ import annotations

import numpy as np
import pytest

from zs2.study.stats import FEWEST, _tail, common, difference, mean, rank_correlation

AUTHORS = [0.0204, 0.0393, 0.0457, 0.0586, 0.0633, 0.0752]


def clips(rows):
    """Rows of prompts with a value a seed → {(prompt, seed): value}."""
    return {(p, s): value for p, row in enumerate(rows) for s, value in enumerate(row)}


def test_a_mean_by_hand():
    """The last prompt is in a resample k times of five by Binomial(5, 1/5), and the tail of an interval is 0.00098: no
    time in 0.328 of the resamples, five times in 0.00032 of them, four times in 0.0064."""
    got = mean(clips([[1, 3], [0, 4], [2, 2], [2], [7, 7]]))
    assert (got.value, got.clips, got.prompts) == (pytest.approx(28 / 9), 9, 5)
    same = mean(clips([[0, 0], [0, 0], [0, 0], [0, 0], [5, 5]]))
    assert (same.value, same.low, same.high, same.clips, same.prompts) == (1, 0, 4, 10, 5)


def test_prompts_count_by_their_clips():
    got = mean(clips([[1, 1, 1], [5]]))
    assert (got.value, got.clips, got.prompts) == (2, 4, 2)


def test_values_that_are_missing_do_not_count():
    assert mean(clips([[1, None], [None], [3]])) == mean({(0, 0): 1, (2, 0): 3})
    assert mean({}) is None
    assert mean({(0, 0): None}) is None


@pytest.mark.parametrize("prompts", range(1, 8))
def test_few_prompts_have_no_interval(prompts):
    """Where all resampled prompts are the least one in more resamples than the tail has, an interval is no more than
    the least and the greatest prompt."""
    got = mean(clips([[i, i] for i in range(prompts)]))
    assert got.value == (prompts - 1) / 2
    only_ends = prompts < 2 or prompts**-prompts > _tail(prompts)
    assert only_ends == (prompts < FEWEST) == (got.low is None) == (got.high is None)
    assert got.none_seen is (prompts >= FEWEST and got.low <= 0)
    if not only_ends:
        assert 0 < got.low < got.value < got.high < prompts - 1


def test_a_difference_is_of_pairs():
    base = clips([[1, 20], [300, 4000], [7], [8], [9]])
    more = {key: value + 2 for key, value in base.items() if key != (1, 1)} | {(9, 9): 1.0}
    got = difference(more, base)
    assert (got.value, got.low, got.high, got.clips) == (2, 2, 2, 6)  # however different the prompts are
    assert not got.none_seen


def test_no_difference_seen():
    got = difference(clips([[1.0], [2.0], [3.0], [3.0], [3.0]]), clips([[1.5], [1.5], [3.0], [3.0], [3.0]]))
    assert got.value == 0
    assert got.none_seen


def test_the_same_numbers_again_and_in_any_order():
    rows = np.random.default_rng(3).normal(size=(8, 2)).tolist()
    values = clips(rows)
    assert mean(values) == mean(dict(reversed(values.items())))
    shifted = mean({key: value * 2 + 5 for key, value in values.items()})
    plain = mean(values)
    for got, want in ((shifted.value, plain.value), (shifted.low, plain.low), (shifted.high, plain.high)):
        assert got == pytest.approx(2 * want + 5)


def test_intervals_cover_what_they_should():
    """Of 400 studies of 8 prompts whose 2 seeds share half of their noise. Plain percentiles would cover 89 % of them,
    and percentiles of clips that are taken as independent 83 %."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        prompts = random.normal(size=(8, 1))
        got = mean(clips((prompts + random.normal(size=(8, 2))).tolist()))
        covered += got.low <= 0 <= got.high
    assert 0.92 <= covered / 400 <= 0.97


@pytest.mark.parametrize(("prompts", "student"), [(16, 2.1314), (31, 2.0423)])
def test_intervals_are_as_wide_as_student_s_where_means_are_normal(prompts, student):
    rows = np.random.default_rng(1).normal(size=(prompts, 1))
    got = mean(clips(rows.tolist()))
    assert (got.high - got.low) / 2 == pytest.approx(student * rows.std(ddof=1) / prompts**0.5, rel=0.04)


def test_rank_correlation_by_hand():
    """ρ = 1 − 6·Σd²/(n·(n²−1)) with d = 0, 0, 1, −1, 0, 0 is 1 − 12/210; with ties by SciPy 1.17.1's spearmanr."""
    sweep = [0.1, 0.2, 0.4, 0.3, 0.5, 0.6]
    got = rank_correlation([clips([[x + i] for i in range(5)]) for x in sweep], AUTHORS)
    assert got.value == pytest.approx(1 - 12 / 210)
    assert (got.low, got.high) == pytest.approx((got.value, got.value))
    assert (got.clips, got.prompts) == (30, 5)
    tied = rank_correlation([clips([[x], [x]]) for x in (1, 1, 2, 2, 3, 0)], AUTHORS)
    assert tied.value == pytest.approx(0.08827348295047496)


def test_rank_correlation_of_levels_that_are_alike_is_none():
    got = rank_correlation([clips([[1.0], [2.0], [3.0], [4.0], [5.0]])] * 6, AUTHORS)
    assert (got.value, got.low, got.high) == (0, 0, 0)


def test_rank_correlation_uses_clips_that_all_levels_have():
    levels = [clips([[x], [x]]) for x in range(6)]
    levels[0][(5, 0)] = -100.0
    levels[3][(1, 0)] = None
    assert common(levels) == [{(0, 0): x} for x in range(6)]
    got = rank_correlation(levels, AUTHORS)
    assert (got.value, got.clips, got.prompts, got.low) == (1, 6, 1, None)
    assert rank_correlation([{(0, 0): 1.0}, {(1, 0): 1.0}], [1, 2]) is None
