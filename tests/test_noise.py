"""The noise models: marginals, correlations, streams. Statistics within 5 standard errors of theory, seeds fixed."""

import itertools
import math

import pytest
import torch
from helpers import assert_white
from hypothesis import given
from hypothesis import strategies as st

from zs2.errors import InputError
from zs2.method import LAM_MAX, NOISE_MODELS, PARAMETERS, SEED_MAX, Method
from zs2.noise.models import divergence, noises, stream_seed
from zs2.noise.spectrum import cosines

NOISE_KINDS = [name for name, row in NOISE_MODELS.items() if row.start is None]
SHAPE = (4, 64, 64)
N = math.prod(SHAPE)
FROZEN = {
    0: [3556936837, 0, 802597093, 2818029275, 2603110511],
    SEED_MAX: [2960654580, 4294967295, 3971680655, 3942438110, 3628872876],
}
SEEDS = st.integers(0, SEED_MAX)


def draw(kind, frames, seed=0, shape=SHAPE, **settings):
    if NOISE_MODELS[kind].needs_frames:
        settings["frames"] = frames
    return torch.stack(list(itertools.islice(noises(kind, shape, seed, **settings), frames)))


def around(rho, lag, frames=6):
    """The correlation around a circle whose neighbours have this one: that of AR(1), wrapped, its r found by roots."""
    coefficients = [1.0, *[0.0] * (frames - 1), 1.0]  # r^F + 1
    polynomial = torch.zeros(frames + 1, dtype=torch.float64)
    polynomial[1] += 1
    polynomial[frames - 1] += 1
    polynomial -= rho * torch.tensor(coefficients, dtype=torch.float64)  # r + r^(F−1) − ρ(1 + r^F) = 0
    companion = torch.zeros(frames, frames, dtype=torch.float64)
    companion[1:, :-1] = torch.eye(frames - 1)
    companion[:, -1] = -polynomial[:-1] / polynomial[-1]
    roots = torch.linalg.eigvals(companion)
    r = next(x.real.item() for x in roots if abs(x.imag) < 1e-9 and 0 < x.real < 1)
    return (r**lag + r ** (frames - lag)) / (1 + r**frames)


def mixture(lam, lam_high, low, lag):
    """The mean correlation where the share `low` of all frequencies has λ."""
    return low * (1 - lam / LAM_MAX) ** lag + (1 - low) * (1 - lam_high / LAM_MAX) ** lag


def correlation(x, y):
    return (x.double() * y.double()).mean().item()


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_first_noise_may_be_given(kind):
    """Frame 0 is that noise. Later ones begin at it, in every model whose frames have anything in common."""
    one = torch.ones(4, 8, 8)
    seeded, given = draw(kind, 40, shape=one.shape), draw(kind, 40, shape=one.shape, first=one)
    assert torch.equal(given[0], one)
    assert torch.equal(given[1], seeded[1]) == (kind in ("iid", "freenoise"))
    if kind in ("shared", "freenoise"):  # the latter repeats the noises of its window
        assert any(torch.equal(noise, one) for noise in given[1:])


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_frame_is_standard_normal(kind):
    """Mean, variance and fourth moment of each frame: standard errors 1/√N, √(2/N), √(96/N)."""
    # the search picks its draws, so that its frames are normal only nearly: its moments get the looser bound below
    slack = 3.0 if kind == "dnm-search" else 1.0
    for frame in draw(kind, 8, seed=7, lam=0.3).double():
        assert abs(frame.mean()) < slack * 5 / math.sqrt(N)
        assert abs(frame.var() - 1) < slack * 5 * math.sqrt(2 / N)
        assert abs((frame**4).mean() - 3) < slack * 5 * math.sqrt(96 / N)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("iid", {}, lambda lag: 0.0),
        ("shared", {}, lambda lag: 1.0),
        ("mixed", {}, lambda lag: 0.5),
        ("mixed", {"alpha": 2.0}, lambda lag: 0.8),
        ("progressive", {}, lambda lag: (2 / math.sqrt(5)) ** lag),
        ("progressive", {"alpha": 1.0}, lambda lag: 0.5 ** (lag / 2)),
        ("dnm", {"lam": 0.0}, lambda lag: 1.0),
        ("dnm", {"lam": 0.01}, lambda lag: (1 - 0.01 / LAM_MAX) ** lag),
        ("dnm", {"lam": 0.5}, lambda lag: (1 - 0.5 / LAM_MAX) ** lag),
        ("dnm", {"lam": LAM_MAX}, lambda lag: 0.0),
        ("loop", {"lam": 0.0}, lambda lag: 1.0),
        ("loop", {"lam": 0.5}, lambda lag: around(1 - 0.5 / LAM_MAX, lag)),
        ("loop", {"lam": LAM_MAX}, lambda lag: 0.0),
        ("freq", {"lam": 0.3, "lam_high": 0.3}, lambda lag: (1 - 0.3 / LAM_MAX) ** lag),
        ("freq", {"lam": 0.0, "lam_high": LAM_MAX, "cutoff": 0.5}, lambda lag: 0.25),
        ("freq", {"lam": LAM_MAX, "lam_high": 0.0, "cutoff": 0.5}, lambda lag: 0.75),
        ("freq", {"lam": 0.2, "lam_high": 0.8}, lambda lag: mixture(0.2, 0.8, 1 / 16, lag)),
        ("freenoise", {}, lambda lag: 0.0),
        ("warp", {"motion": (4, 0)}, lambda lag: max(0.0, 1 - lag / 2)),  # of a latent, which is 8 pixels, half is left
        ("warp", {"motion": (-3, 5)}, lambda lag: max(0.0, 1 - lag * 3 / 8) * max(0.0, 1 - lag * 5 / 8)),
    ],
)
def test_correlation_of_every_pair_of_frames(kind, settings, expected):
    """The standard error of a correlation r over N samples is √((1+r²)/N)."""
    frames = draw(kind, 6, seed=11, **settings)
    for i, j in itertools.combinations(range(6), 2):
        r = expected(j - i)
        assert abs(correlation(frames[i], frames[j]) - r) < 5 * math.sqrt((1 + r * r) / N), (i, j)


@pytest.mark.parametrize("lam", [0.05, 0.25, 0.5, 1.0, 1.6])
def test_closed_form_has_the_divergence_that_is_asked_for(lam):
    """E[D] = λ; a frame's D has variance of at most E[exp(2p)·(p+1)²]/N < 100/N."""
    frames = draw("dnm", 9, seed=3, lam=lam)
    measured = [divergence(p, x) for p, x in itertools.pairwise(frames)]
    assert abs(sum(measured) / 8 - lam) < 5 * math.sqrt(100 / N / 8)


@pytest.mark.parametrize(
    ("lam", "alpha"), [(0, 0.984), (0.01, 0.984), (0.05, 0.933), (0.1, 0.9), (0.2, 0.784), (0.5, 0.494), (1.6, 0.0)]
)
def test_search_ends_where_the_published_one_does(lam, alpha):
    """The mean squared correlation of consecutive frames is the listing's α (measured apart), within 0.03."""
    squares = []
    for seed in range(4):
        frames = draw("dnm-search", 5, seed=seed, lam=lam)
        assert frames.isfinite().all()
        squares += [
            correlation(x, y) ** 2 / (correlation(x, x) * correlation(y, y)) for x, y in itertools.pairwise(frames)
        ]
    # the chosen z correlates with exp(previous), hence a little with the frame before
    assert abs(sum(squares) / len(squares) - alpha) < 0.03 + 0.02 * (1 - alpha)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("shared", {}),
        ("dnm", {"lam": 0.0}),
        ("loop", {"lam": 0.0}),
        ("freq", {"lam": 0.0, "lam_high": 0.0}),
        ("freq", {"lam": 0.0, "cutoff": 1.0}),
        ("freq", {"lam_high": 0.0, "cutoff": 0.0}),
        ("warp", {"motion": (0.0, 0.0)}),
    ],
)
def test_a_model_that_says_it_is_still_has_one_noise(kind, settings):
    row = NOISE_MODELS[kind]
    assert row.still(**{**row.defaults, **settings})
    assert draw(kind, 4, seed=3, **settings).unique(dim=0).shape[0] == 1


def test_search_never_reaches_a_still_clip_and_the_closed_form_does():
    assert draw("dnm", 3, lam=0).unique(dim=0).shape[0] == 1
    assert draw("dnm-search", 3, lam=0).unique(dim=0).shape[0] == 3


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_frame_0_is_the_noise_of_the_seed_and_longer_clips_begin_with_shorter_ones(kind):
    long, short = draw(kind, 5, seed=42, lam=0.4), draw(kind, 3, seed=42, lam=0.4)
    assert torch.equal(long[0], torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(42)))
    if not NOISE_MODELS[kind].needs_frames:
        assert torch.equal(long[:3], short)
    assert torch.equal(draw(kind, 3, seed=42, lam=0.4), short)
    assert long.dtype == torch.float32
    assert long.device.type == "cpu"


@pytest.mark.parametrize("kind", [kind for kind in NOISE_KINDS if kind != "shared"])
def test_seeds_give_different_clips(kind):
    one, other = draw(kind, 3, seed=1, lam=1.0), draw(kind, 3, seed=2, lam=1.0)
    assert max(abs(correlation(x, y)) for x, y in zip(one, other, strict=True)) < 5 / math.sqrt(N)


def test_frame_streams_are_frozen():
    """These numbers decide every clip ever made: they must not change."""
    assert [stream_seed(0, i) for i in (-1, 0, 1, 2, 3)] == FROZEN[0]
    assert [stream_seed(SEED_MAX, i) for i in (-1, 0, 1, 2, 3)] == FROZEN[SEED_MAX]


@given(SEEDS, st.integers(-1, 10**6), st.integers(-1, 10**6))
def test_no_two_frames_of_a_clip_share_a_stream(seed, i, j):
    assert 0 <= stream_seed(seed, i) <= SEED_MAX
    if i != j and 0 not in (i, j):
        assert stream_seed(seed, i) != stream_seed(seed, j)


@given(st.sampled_from(["dnm", "progressive", "mixed"]), st.floats(0, LAM_MAX), SEEDS)
def test_any_setting_gives_finite_noise(kind, lam, seed):
    assert draw(kind, 4, seed, shape=(1, 2, 2), lam=lam, alpha=lam).isfinite().all()


@pytest.mark.parametrize("lam", [-0.01, 1.65, math.nan, math.inf])
def test_lam_out_of_range(lam):
    with pytest.raises(InputError, match=r"lam is .*from 0 .* to √e"):
        noises("dnm", SHAPE, 0, lam=lam)


@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_alpha_out_of_range(alpha):
    with pytest.raises(InputError, match="alpha is"):
        noises("mixed", SHAPE, 0, alpha=alpha)


NO_VALUES = {
    "too large": 10**400,
    "too long to write": 10**5000,
    "true": True,
    "not a number": math.nan,
    "infinite": math.inf,
    "a text": "9" * 5000,
    "a list": [0] * 5000,
}


@pytest.mark.parametrize("kind", NO_VALUES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_what_no_parameter_can_be(name, kind):
    """One short line, whatever it is: it may come from a file."""
    value = NO_VALUES[kind] if PARAMETERS[name].length == 1 else (NO_VALUES[kind],) * 2
    with pytest.raises(InputError, match=f"^{name} is ") as error:
        Method(**{"noise": "text2video-zero", name: value}).settings(50, from_latents=False)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("seed", [-1, SEED_MAX + 1, 1.5, "1"])
def test_bad_seed(seed):
    with pytest.raises(InputError, match=r"seed is .*from 0 to 4294967295"):
        noises("iid", SHAPE, seed)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'shared'"):
        noises("sharde", SHAPE, 0)


# A moved, zoomed or turned noise, and what the particles do most: move, split, merge, and come in.
MOVEMENTS = [
    {"motion": (5, -3)},
    {"motion": (0, 0), "zoom": 1.1},
    {"motion": (0, 0), "zoom": 0.85},
    {"motion": (0, 0), "rotate": 7.0},
    {"motion": (3, 2), "zoom": 1.03, "rotate": -2.0},
]


@pytest.mark.parametrize("settings", MOVEMENTS)
def test_warped_noise_is_white_in_every_frame(settings):
    """Mean, variance, fourth moment, and the correlation of neighbours along both axes."""
    for frame in draw("warp", 4, seed=9, shape=(4, 32, 32), **settings).double():
        assert_white(frame)


def test_warped_noise_follows_the_movement():
    """A shift by whole latents is exact: 16 pixels of 512 are one latent of 32. A half turn in two frames, too."""
    frames = draw("warp", 4, seed=5, shape=(4, 32, 32), motion=(16, -32))
    for before, frame in itertools.pairwise(frames):
        torch.testing.assert_close(frame[:, 2:, :-1], before[:, :-2, 1:], atol=1e-5, rtol=0)
    turned = draw("warp", 3, seed=5, shape=(4, 32, 32), motion=(0, 0), rotate=90.0)
    torch.testing.assert_close(turned[1], turned[0].rot90(-1, (1, 2)), atol=1e-5, rtol=0)  # clockwise
    torch.testing.assert_close(turned[2], turned[0].flip(1, 2), atol=1e-5, rtol=0)


def test_slow_movements_add_up():
    """A hundredth of a latent a frame is less than a cell of the fine grid. After 100 frames it is one latent."""
    frames = draw("warp", 101, seed=2, shape=(1, 16, 16), motion=(0.32, 0))
    first, last = frames[0], frames[100]
    torch.testing.assert_close(last[:, :, :-1], first[:, :, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("lam", [0.01, 0.6])
def test_a_loop_has_no_seam(frames, lam):
    """The last frame is as near to the first as neighbours are. The whole correlation matrix is circulant."""
    clip = draw("loop", frames, seed=4, lam=lam).flatten(1).double()
    measured = clip @ clip.T / N
    rho = 1 - lam / LAM_MAX
    for i in range(frames):
        other = (i + 1) % frames
        expected = rho if other != i else 1.0
        assert abs(measured[i, other] - expected) < 5 * math.sqrt((1 + expected**2) / N)
        turned = measured.roll((-i, -i), (0, 1))[0]
        assert (turned - measured[0]).abs().max() < 10 * math.sqrt(2 / N)


def test_low_frequencies_are_shared_and_high_ones_new():
    """Band by band, against a cosine transform by its definition."""
    frames = draw("freq", 3, seed=6, shape=(4, 16, 16), lam=0.0, lam_high=LAM_MAX, cutoff=0.25).double()
    place = torch.arange(16, dtype=torch.float64)
    basis = (math.pi * (place + 0.5) * place[:, None] / 16).cos()
    basis /= basis.norm(dim=1, keepdim=True)
    spectra = torch.einsum("ui,vj,fcij->fcuv", basis, basis, frames)
    for before, spectrum in itertools.pairwise(spectra):
        torch.testing.assert_close(spectrum[:, :4, :4], before[:, :4, :4], atol=1e-5, rtol=0)
        assert abs(correlation(spectrum[:, 4:], before[:, 4:])) < 5 / math.sqrt(4 * 12 * 16)


@pytest.mark.parametrize("n", [1, 2, 7, 16, 64, 129])
def test_the_cosines_are_an_orthonormal_basis(n):
    basis = cosines(n)
    for product in (basis @ basis.T, basis.T @ basis):
        torch.testing.assert_close(product, torch.eye(n), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"lam": 0.0}, {"lam": 1.6, "lam_high": 0.2}, {"lam_high": 0.5, "cutoff": 0.3}]
)
def test_noise_of_frequencies_is_white(settings):
    """Each coefficient of every frame has variance 1 over 4,096 channels, and no neighbour is known from another.

    5 standard errors of one of 308 coefficients, of the mean over all, and of the correlations along both axes.
    """
    for frame in draw("freq", 4, seed=12, shape=(4096, 14, 22), **settings).double():
        spectrum = cosines(14).double() @ frame @ cosines(22).double().T
        assert ((spectrum**2).mean(dim=0) - 1).abs().max() < 5 * math.sqrt(2 / 4096)
        assert spectrum.mean(dim=0).abs().max() < 5 / math.sqrt(4096)
        n = frame.numel()
        assert abs((frame**2).mean() - 1) < 5 * math.sqrt(2 / n)
        assert abs((frame[:, 1:] * frame[:, :-1]).mean()) < 5 / math.sqrt(n * 13 / 14)
        assert abs((frame[:, :, 1:] * frame[:, :, :-1]).mean()) < 5 / math.sqrt(n * 21 / 22)


@pytest.mark.parametrize("window", [4, 6, 16])
def test_freenoise_repeats_its_window_in_shuffled_blocks(window):
    frames, block = draw("freenoise", 3 * window, seed=8, shape=(1, 2, 2), window=window), window // 4
    clip = [tuple(frame.flatten().tolist()) for frame in frames]
    assert torch.equal(frames[:window], draw("iid", window, seed=8, shape=(1, 2, 2)))
    assert len(set(clip)) == window
    for start in range(window, len(clip) - block + 1, block):
        assert sorted(clip[start : start + block]) == sorted(clip[start - window : start - window + block])
    assert all(before != frame for before, frame in itertools.pairwise(clip))
    if window == 16:
        blocks = [clip[start : start + block] for start in range(0, len(clip), block)]
        assert any(b != a for a, b in zip(blocks, blocks[4:], strict=False))  # the order changes


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("freq", {"lam_high": -0.1}),
        ("freq", {"cutoff": 1.5}),
        ("freenoise", {"window": 3}),
        ("freenoise", {"window": 10**9}),
        ("warp", {"zoom": 0.0}),
        ("warp", {"zoom": math.nan}),
        ("warp", {"rotate": math.inf}),
    ],
)
def test_parameters_out_of_range(kind, settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))} is .*from "):
        noises(kind, SHAPE, 0, **settings)


def test_a_loop_needs_the_number_of_frames():
    with pytest.raises(InputError, match="'loop' needs the number of frames"):
        noises("loop", SHAPE, 0)
