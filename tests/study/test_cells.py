"""The cells of a study: which ones the presets and grids hold, what they are called, and which one is the reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, LAM_MAX, NOISE_MODELS, AttentionKind, Method, NoiseModel
from zs2.study.cells import (
    PRESETS,
    Cell,
    cell,
    corners,
    grid,
    kinds_with,
    merge,
    number,
    paper,
    preset,
    reference,
)
from zs2.study.experiments import EXPERIMENTS
from zs2.study.options import parser
from zs2.study.planning import plan
from zs2.study.results import sweep_point

NOISE_KINDS = [name for name, row in NOISE_MODELS.items() if row.start is None]
NOISES = tuple(NOISE_MODELS)
lams = st.floats(0, LAM_MAX)
mus = st.floats(0, 1)
pixels = st.floats(-100, 100)
alphas = st.none() | st.floats(0, 1e6)
levels = mus | st.tuples(mus, mus) | st.tuples(mus, mus, mus)
any_cell = st.builds(
    cell,
    *(st.sampled_from(NOISES), lams, st.sampled_from(tuple(ATTENTION_KINDS)), levels, alphas, st.none() | levels),
    *(st.none() | lams, st.none() | mus, st.none() | st.tuples(pixels, pixels)),
)


def ids(cells: list[Cell]) -> list[str]:
    return [one.id for one in cells]


def test_paper_holds_the_two_ablations_both_baselines_and_the_controls():
    assert ids(preset("paper")) == [
        "dnm-0.1_tma-0.98",  # the full method
        "iid_tma-0.98",  # the noise model, ablated
        "dnm-0.1_sa",  # the attention, ablated: μ = 0
        "dnm-0.1_cfa",  # and μ = 1
        "iid_sa",  # per-frame DDIM
        "text2video-zero_cfa",  # Text2Video-Zero
        "shared_cfa",
        "shared_sa",
        "dnm-search-0.1_tma-0.98",  # its closed form, AR(1) noise at the same ρ, is the full method
        "mixed-1_tma-0.98",
        "progressive-2_tma-0.98",
        "frozen",
    ]


def test_lambda_and_mu_are_the_sweeps_of_the_authors():
    lam = [(c.noise, c.lam, c.attn, c.mu) for c in preset("lambda")]
    assert lam == [("dnm", value, "tma", 0.98) for value in (0, 0.05, 0.1, 0.15, 0.2, 0.25)]
    mu = [(c.noise, c.lam, c.attn, c.mu) for c in preset("mu")]
    middle = [("dnm", 0.1, "tma", value) for value in (0.25, 0.5, 0.75, 0.9)]
    assert mu == [("dnm", 0.1, "sa", None), *middle, ("dnm", 0.1, "cfa", None)]


def test_reproduce_has_the_cells_of_all_experiments_and_of_paper():
    cells = preset("reproduce", 0.15, 0.98)
    tags = {one.id: one.presets for one in cells}
    assert {*ids(paper(0.15, 0.98))} <= tags.keys()
    for one in EXPERIMENTS:
        assert bool(one.missing and not one.needs and not one.on_models) != bool(one.cells(0.15, 0.98)), one.name
        assert all("reproduce" in tags[each.id] for each in one.cells(0.15, 0.98)), one.name
    assert [one.lam for one in EXPERIMENTS[0].cells(0.15, 0.98)] == [0, 0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 1]
    assert ids(EXPERIMENTS[1].cells(0.1, 0.98)) == ids(preset("mu"))
    assert reference(cells).id == "dnm-0.15_tma-0.98"  # the study's own λ, not that of the sweep
    assert len(cells) == 24


def test_presets_share_the_cells_that_they_have_in_common():
    cells = merge(one for name in ("paper", "lambda", "mu", "motion") for one in preset(name))
    assert len(cells) == 12 + 5 + 4 + 3
    assert len(set(ids(cells))) == len(cells)
    presets = {one.id: one.presets for one in cells}
    assert presets["dnm-0.1_tma-0.98"] == ("paper", "lambda", "motion")
    assert presets["dnm-0.1_sa"] == presets["dnm-0.1_cfa"] == ("paper", "mu", "motion")
    assert presets["dnm-0.05_tma-0.98"] == ("lambda",)
    assert presets["frozen"] == ("paper", "motion")
    labels = {one.id: one.label for one in cells}
    assert labels["dnm-0.1_tma-0.98"] == "full method: DNM + TMA"
    assert len(set(labels.values())) == len(cells)


def test_a_preset_at_another_lam_and_mu():
    assert ids(preset("paper", 0.2, 0.5))[:4] == ["dnm-0.2_tma-0.5", "iid_tma-0.5", "dnm-0.2_sa", "dnm-0.2_cfa"]
    assert ids(preset("lambda", 0.2, 0.5))[1] == "dnm-0.05_tma-0.5"
    assert ids(preset("mu", 0.2, 0.5))[1] == "dnm-0.2_tma-0.25"
    assert preset("paper", 0.2, 0.5)[0].label == "full method: DNM + TMA (λ=0.2, μ=0.5)"


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_no_label_says_momentum_where_there_is_none(mu):
    """At μ = 0 and 1 momentum is another kind. What compares with it is refused, and other presets name what it is."""
    for name in PRESETS:
        if name in ("paper", "reproduce"):
            with pytest.raises(
                InputError, match=f"mu is {mu:g}: there tma is .* preset {name} compares it: expected a μ"
            ):
                preset(name, mu=mu)
        else:
            for one in preset(name, mu=mu):
                assert ("tma" in one.label.removeprefix("without TMA").lower()) == one.attn.startswith("tma")


def test_two_papers_differ_only_where_lam_has_an_effect():
    """So that the cells that a study has already are not made again, nor under another name."""
    usual, other = preset("paper"), preset("paper", lam=0.2)
    assert [one for one in usual if one not in other] == [one for one in usual if one.lam is not None]
    both = merge([*usual, *other])
    assert len(set(ids(both))) == len({one.label for one in both}) == 12 + 4


def test_an_unknown_preset():
    with pytest.raises(
        InputError,
        match="unknown preset 'lamda': expected one of paper, lambda, mu, motion, reproduce; did you mean 'la",
    ):
        preset("lamda")


def test_a_grid_is_the_product_with_each_cell_once():
    noise, attn, lam, mu = ["dnm", "iid"], ["tma", "sa"], [0.05, 0.2], [0.5, 0.98]
    assert ids(grid(noise, attn, lam, mu)) == [
        *("dnm-0.05_tma-0.5", "dnm-0.05_tma-0.98", "dnm-0.05_sa"),
        *("dnm-0.2_tma-0.5", "dnm-0.2_tma-0.98", "dnm-0.2_sa"),
        *("iid_tma-0.5", "iid_tma-0.98", "iid_sa"),
    ]
    assert ids(grid(["mixed", "progressive"], ["sa"], [0.1], [0.98], [1, 2.5])) == [
        *("mixed-1_sa", "mixed-2.5_sa", "progressive-1_sa", "progressive-2.5_sa"),
    ]
    assert len(grid(NOISES, ATTENTION_KINDS, [0.1], [0.98])) == len(NOISES) * len(ATTENTION_KINDS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cell("dnm", 0.1, "tma", 0), cell("dnm", 0.1, "sa", 0.98)),
        (cell("dnm", 0.1, "tma", 1), cell("dnm", 0.1, "cfa", 0.98)),
        (cell("dnm", 0.1, "tma-two-tap", 0), cell("dnm", 0.1, "sa", 0.98)),
        (cell("iid", 0.1, "sa", 0.1), cell("iid", 0.2, "sa", 0.2)),
        (cell("mixed", 0.1, "sa", 0.1, 1), cell("mixed", 0.2, "sa", 0.1)),
        (cell("progressive", 0.1, "sa", 0.1, 2), cell("progressive", 0.2, "sa", 0.1)),
        (cell("dnm", 0, "tma", 0.98), cell("dnm", -0.0, "tma", 0.98)),
        (cell("dnm", 0, "tma", 0.98, mu_end=0.98), cell("dnm", 0, "tma", 0.98)),
        (cell("dnm", 0, "tma", (0.98,)), cell("dnm", 0, "tma", 0.98)),
        (cell("freq", 0, "sa", 0, lam_high=LAM_MAX, cutoff=0.25), cell("freq", 0, "sa", 0)),
        (cell("dnm", 0, "sa", 0, lam_high=0.1, cutoff=0.5), cell("dnm", 0, "sa", 0)),
    ],
)
def test_cells_that_amount_to_the_same_are_one(one, other):
    assert one == other


def test_a_momentum_by_level_and_by_step_has_an_id_of_its_own():
    made = grid(["dnm"], ["tma", "sa"], [0.1], [0.98, (0.98, 0.5)], mu_end=[None, 0.0])
    assert ids(made) == [
        *("dnm-0.1_tma-0.98", "dnm-0.1_tma-0.98-to-0", "dnm-0.1_tma-0.98-0.5", "dnm-0.1_tma-0.98-0.5-to-0"),
        "dnm-0.1_sa",
    ]
    assert made[3].label == "dnm λ=0.1 + tma μ=0.98,0.5 μ₁=0"
    assert [sweep_point(one) for one in made] == [(0.1, 0.98), None, None, None, (0.1, 0.0)]
    assert reference(made) == made[0]
    assert cell("dnm", 0.1, "tma", 0, mu_end=1).attn == "tma"  # not self-attention


def test_frequencies_have_ids_of_their_own():
    made = grid(["freq", "dnm"], ["sa"], [0.1], [0.98], lam_high=[None, 0.0, LAM_MAX], cutoff=[None, 0.5])
    assert ids(made) == [
        *("freq-0.1_sa", "freq-0.1-cutoff-0.5_sa", "freq-0.1-high-0_sa", "freq-0.1-high-0-cutoff-0.5_sa"),
        "dnm-0.1_sa",
    ]
    assert made[3].label == "freq λ=0.1 λₕ=0 c=0.5 + sa"
    assert made[3].method == {"noise": "freq", "attn": "sa", "lam": 0.1, "lam_high": 0.0, "cutoff": 0.5}


def test_pixels_that_were_searched_have_an_id_of_their_own():
    usual = cell("text2video-zero", 0.1, "cfa", 0.98)
    assert cell("text2video-zero", 0.1, "cfa", 0.98, motion=(12, 12)) == usual
    assert (usual.id, usual.motion, usual.noise_label) == ("text2video-zero_cfa", None, "text2video-zero")
    made = cell("warp", 0.1, "sa", 0.98, motion=(20.5, -0.0))
    assert (made.id, made.label) == ("warp-motion-20.5-0_sa", "warp δ=20.5,0 + sa")
    assert made.method == {"noise": "warp", "attn": "sa", "motion": (20.5, 0.0)}
    assert made.noise_label == "warp δ = 20.5,0"
    assert [cell("warp", 0.1, "sa", 0.98, motion=(x, x)).still for x in (0, 1)] == [True, False]
    assert cell("dnm", 0.1, "sa", 0.98, motion=(1, 1)) == cell("dnm", 0.1, "sa", 0.98)


def test_the_two_tap_momentum_of_1_is_no_cross_frame_attention():
    """It attends to the frame before."""
    assert cell("dnm", 0.1, "tma-two-tap", 1).id == "dnm-0.1_tma-two-tap-1"


@given(any_cell, any_cell)
def test_two_cells_have_one_id_and_one_label_only_if_they_are_the_same(one, other):
    assert (one.id == other.id) == (one.label == other.label) == (one == other)


@given(lams, lams)
def test_no_two_numbers_are_written_alike(x, y):
    assert (number(x) == number(y)) == (x == y)
    assert float(number(x)) == x


@pytest.mark.parametrize(("noise", "attn"), list(product(NOISES, ATTENTION_KINDS)))
def test_a_cell_is_the_method_that_it_was_made_of(noise, attn):
    """No value that has an effect is lost; λ, μ and a that have none are not in the cell."""
    alpha = 3.0 if noise in ("mixed", "progressive") else None
    one = cell(noise, 0.3, attn, 0.7, alpha)
    wanted = Method(attn, 0.7, noise, 0.3, alpha).settings(25, from_latents=False)
    assert Method(**one.method).settings(25, from_latents=False) == wanted
    assert (one.noise, one.attn) == (noise, attn)
    assert (one.lam, one.alpha, one.mu) == (wanted["lam"], wanted["alpha"], wanted["mu"])


def test_the_frozen_frame_has_no_setting_without_effect():
    """Frame 0 is the same in all variants."""
    still = paper(0.2, 0.5)[-1]
    assert still == paper()[-1]
    assert (still.frozen, still.lam, still.alpha, still.mu) == (True, None, None, None)


def test_an_id_is_a_name_for_files():
    assert all(c.isascii() and (c.isalnum() or c in "-_.") for one in paper() for c in one.id)
    assert cell("dnm", 1e-7, "tma", 1 / 3).id == "dnm-1e-07_tma-0.3333333333333333"


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (preset("paper"), "dnm-0.1_tma-0.98"),
        (preset("lambda"), "dnm-0.1_tma-0.98"),
        (preset("mu"), "dnm-0.1_tma-0.9"),  # the nearest that there is
        ([*preset("mu"), *preset("paper")], "dnm-0.1_tma-0.98"),
        ([*preset("lambda"), *preset("paper", 0.2)], "dnm-0.2_tma-0.98"),  # the one that the ablations are of
        (grid(["iid", "dnm"], ["sa", "tma"], [0.3, 0.2], [0.5]), "dnm-0.2_tma-0.5"),
        (grid(["iid"], ["sa", "tma"], [0.1], [0.98]), "iid_tma-0.98"),
        (grid(["iid", "dnm"], ["sa"], [0.1], [0.98]), "dnm-0.1_sa"),
        ([paper()[-1], *grid(["iid"], ["sa"], [0.1], [0.98])], "iid_sa"),
    ],
)
def test_the_reference_is_the_full_method_or_what_is_nearest_it(cells, wanted):
    assert reference(merge(cells)).id == wanted


# --- kinds that are added ---------------------------------------------------------------------------------------------


@pytest.fixture
def added() -> Iterator[None]:
    """A noise model and an attention kind, added as a user would. Neither computes anything here."""
    rules = {"correlation": lambda lam, alpha: alpha - lam, "still": lambda lam, alpha: lam == 0}
    NOISE_MODELS.add(NoiseModel("drift", "a noise that drifts", "none:none", {"lam": 0.2, "alpha": 0.5}, **rules))
    ATTENTION_KINDS.add(AttentionKind("pair", "two frames", "none:none", {"mu": 0.3}, {("mu", 0.5): "cfa"}))
    yield
    NOISE_MODELS.remove("drift")
    ATTENTION_KINDS.remove("pair")


def test_a_kind_that_is_added_is_what_its_row_says(added):
    one = cell("drift", 0.1, "pair", 0.98)
    assert (one.id, one.label) == ("drift-0.1-0.5_pair-0.98", "drift λ=0.1 a=0.5 + pair μ=0.98")
    assert (one.lam, one.alpha, one.mu, one.still) == (0.1, 0.5, 0.98, False)
    assert one.noise_label == "drift λ = 0.1 a = 0.5"
    assert cell("drift", 0, "pair", 0.98).still
    assert cell("iid", 0.1, "pair", 0.5) == cell("iid", 0.1, "cfa", 0.98)
    assert kinds_with("alpha") == ["mixed", "progressive", "drift"]
    assert kinds_with("mu") == ["tma", "tma-two-tap", "pair"]


def test_a_kind_that_is_added_can_be_planned(added, recwarn):
    words = ["--noise", "drift", "iid", "--attn", "pair", "--lam", "0.1", "--mu", "0.7", "--alpha", "2"]
    options = vars(parser().parse_args(words))
    assert ids(plan({"out": "s"} | options, None).cells) == ["drift-0.1-2_pair-0.7", "iid_pair-0.7"]
    assert not recwarn.list


def test_a_kind_that_there_is_not_raises():
    for noise, attn in (("drift", "sa"), ("iid", "pair")):
        with pytest.raises(InputError, match="unknown"):
            cell(noise, 0.1, attn, 0.98)


PAPER, FULL_METHOD = preset("paper"), preset("lambda")[2]
FOUR = [PAPER[i] for i in (0, 1, 2, 4)]
GRID = [cell(noise, 0.2, attn, 0.5) for noise in ("dnm", "iid") for attn in ("tma", "sa")]
OTHERS = [cell("iid", 0.1, "tma", 0.5), cell("mixed", 0.1, "tma", 0.98), cell("dnm", 0.2, "tma", 0.98)]


@pytest.mark.parametrize(
    ("cells", "full", "wanted"),
    [
        (PAPER, PAPER[0], FOUR),
        ([*OTHERS, *reversed(PAPER)], PAPER[0], FOUR),  # i.i.d. noise + TMA at another μ is no corner
        ([*OTHERS, PAPER[0], PAPER[1]], PAPER[0], [PAPER[0], *OTHERS]),
        (PAPER[:3], PAPER[0], PAPER[:3]),
        (PAPER[:1], PAPER[0], PAPER[:1]),
        (preset("lambda"), FULL_METHOD, [FULL_METHOD, *(one for one in preset("lambda") if one != FULL_METHOD)][:4]),
        (GRID, GRID[0], [GRID[0], GRID[2], GRID[1], GRID[3]]),
        ([PAPER[4], PAPER[1]], PAPER[4], [PAPER[4], PAPER[1]]),  # a reference that lacks both parts
    ],
)
def test_the_corners_are_the_reference_without_its_parts(cells, full, wanted):
    assert corners(cells, full) == wanted


def test_places_in_the_authors_sweeps():
    """μ = 0 is self-attention, μ = 1 cross-frame attention."""
    one = [*preset("lambda"), *preset("mu")]
    assert [sweep_point(x) for x in one] == [
        *((lam, 0.98) for lam in (0, 0.05, 0.1, 0.15, 0.2, 0.25)),
        *((0.1, mu) for mu in (0, 0.25, 0.5, 0.75, 0.9, 1)),
    ]
    others = (cell("iid", 0.1, "tma", 0.98), cell("dnm", 0.1, "tma-two-tap", 0.5), paper()[-1])
    assert [sweep_point(x) for x in others] == [None] * 3
