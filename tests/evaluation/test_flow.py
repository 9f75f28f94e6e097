"""The warping error and its parts on known motion, and against SciPy; Farneback's flow; doing without opencv."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers import Fixture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zs2.evaluation.optical_flow import farneback, flow_warp_error, hidden, opencv, warp, warp_error

SIZE = 64


def hills(shift: tuple[float, float] = (0, 0), count: int = 1) -> Tensor:
    """A smooth hill on a flat field, moved by so many pixels right and down a frame: (F, 3, h, w)."""
    y, x = torch.meshgrid(torch.arange(SIZE).double(), torch.arange(SIZE).double(), indexing="ij")
    distances = [torch.hypot(x - 34 - shift[0] * i, y - 30 - shift[1] * i) for i in range(count)]
    return (1 - torch.stack(distances) / 14).clamp(min=0).square()[:, None] * torch.tensor([1.0, 0.5, 0.25])[
        :, None, None
    ]


def texture(shift: tuple[float, float] = (0, 0), count: int = 1) -> np.ndarray:
    """Waves all over the picture, moved likewise: uint8 (F, h, w, 3)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    frames = []
    for i in range(count):
        a, b = x - shift[0] * i, y - shift[1] * i
        frames.append(np.sin(a / 3.1) + np.sin(b / 4.3) + np.sin((a + b) / 5.7) + np.sin((a - 2 * b) / 9.1))
    waves = np.stack(frames)[..., None] * np.array([1.0, 0.8, 0.6])
    return (127.5 + 30 * waves).round().astype(np.uint8)


def uniform(x: float, y: float, count: int = 1) -> Tensor:
    """The same flow everywhere, (F, 2, h, w)."""
    return torch.tensor([x, y], dtype=torch.float32)[:, None, None].expand(count, 2, SIZE, SIZE)


# --- looking up -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_no_flow_changes_nothing(height, width, seed):
    picture = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(warp(picture, torch.zeros(2, 2, height, width)), picture, atol=1e-12, rtol=0)


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_whole_pixels_move_the_picture_and_the_border_is_repeated(right, down):
    picture = torch.rand(1, 1, 12, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flow = torch.tensor([right, down])[None, :, None, None].expand(1, 2, 12, 17)
    rows = (torch.arange(12) + down).clamp(0, 11)
    columns = (torch.arange(17) + right).clamp(0, 16)
    assert torch.allclose(warp(picture, flow), picture[:, :, rows][..., columns], atol=1e-12, rtol=0)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_between_pixels_it_is_bilinear(right, down):
    """A function that is bilinear in x and y is looked up without error."""
    y, x = torch.meshgrid(torch.arange(10).double(), torch.arange(15).double(), indexing="ij")
    function = lambda x, y: 2 + 3 * x - y + x * y / 4  # noqa: E731
    flow = torch.tensor([right, down], dtype=torch.float64)[None, :, None, None].expand(1, 2, 10, 15)
    got = warp(function(x, y)[None, None], flow)[0, 0, 1:-1, 1:-1]
    assert torch.allclose(got, function(x + right, y + down)[1:-1, 1:-1], atol=1e-10, rtol=0)


# --- the error, of known flow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (-4, 3)])
def test_the_true_flow_explains_the_motion_and_a_wrong_one_does_not(shift):
    frames = hills(shift, 4)
    true, still = uniform(*shift, count=3), uniform(0, 0, count=3)
    assert warp_error(frames, true, -true) < 1e-20
    unexplained = (frames[1:] - frames[:-1]).square().mean().item()
    assert warp_error(frames, still, -still) == pytest.approx(unexplained, rel=1e-12)
    assert unexplained > 1e-4
    assert warp_error(frames, -true, true) > unexplained  # backwards is worse than nothing


def test_half_pixels_are_explained_as_well_as_interpolation_can():
    frames = hills((1.5, -0.5), 3)
    true, still = uniform(1.5, -0.5, count=2), uniform(0, 0, count=2)
    assert warp_error(frames, true, -true) < warp_error(frames, still, still) / 100


def moving_square() -> tuple[Tensor, Tensor, Tensor, tuple[slice, slice]]:
    """A square of 16 pixels that moves by 8 to the right, over a field: frames, flow, flow back, what it will cover."""
    rows, before, after = slice(20, 36), slice(16, 32), slice(24, 40)
    generator = torch.Generator().manual_seed(0)
    field = torch.rand(3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    square = torch.rand(3, 16, 16, generator=generator, dtype=torch.float64)
    frames = torch.stack([field, field])
    frames[0, :, rows, before] = frames[1, :, rows, after] = square
    forward, backward = torch.zeros(1, 2, SIZE, SIZE), torch.zeros(1, 2, SIZE, SIZE)
    forward[0, 0, rows, before], backward[0, 0, rows, after] = 8, -8
    return frames, forward, backward, (rows, slice(32, 40))


def test_what_a_square_will_cover_is_hidden_and_its_edge_is_too():
    _, forward, backward, (rows, covered) = moving_square()
    (mask,) = hidden(forward, backward)
    assert mask[rows, covered].all()
    edge = torch.zeros(SIZE, SIZE, dtype=torch.bool)  # where the flow differs from that of the pixel right or below
    edge[rows, [15, 31]] = True
    edge[[19, 35], 16:32] = True
    edge[rows, covered] = True
    assert torch.equal(mask, edge)


def test_a_square_over_a_field_is_explained_but_for_what_it_covers():
    frames, forward, backward, (rows, covered) = moving_square()
    assert warp_error(frames, forward, backward) < 1e-20
    left = (frames[:1] - warp(frames[1:], forward)).square().mean(dim=1)[0]
    assert left[rows, covered].mean() > 0.05
    left[rows, covered] = 0
    assert left.max() < 1e-20


def test_a_flow_that_does_not_lead_back_is_hidden_from_about_a_pixel_or_a_seventh_of_it():
    """|w + ŵ|² > 0.01·(|w|² + |ŵ|²) + 0.5: of no flow, and a flow back of b pixels, b² > 0.5 / 0.99."""
    for back, is_hidden in ((0.70, False), (0.72, True), (-0.72, True)):
        assert hidden(uniform(0, 0), uniform(0, back)).all().item() is is_hidden
    for back, is_hidden in ((-10.0, False), (-8.6, False), (-8.4, True), (10.0, True)):
        assert hidden(uniform(10, 0), uniform(back, 0)).all().item() is is_hidden


def test_a_pair_with_nothing_visible_is_left_out():
    frames, true = hills((3, 0), 3), uniform(3, 0, count=2)
    astray = -true.clone()
    astray[1] = 9
    assert warp_error(frames, uniform(0, 0, count=2), uniform(9, 0, count=2)) is None
    flow = torch.stack([torch.zeros(2, SIZE, SIZE), true[1]])
    only = (frames[1] - frames[0]).square().mean().item()
    assert warp_error(frames, flow, torch.stack([torch.zeros(2, SIZE, SIZE), astray[1]])) == pytest.approx(only)


@pytest.mark.parametrize("clip", ["momentum", "flicker"])
def test_real_clips_against_scipy(clip):
    f = Fixture("metrics")
    pictures = f[f"{clip}/frames"].permute(0, 3, 1, 2).double() / 255
    forward, backward = (f[f"{clip}/{name}"].permute(0, 3, 1, 2) for name in ("forward", "backward"))
    want = f.config["clips"][clip]
    assert warp_error(pictures, forward, backward) == pytest.approx(want["metrics"]["flow-warp-error"], rel=1e-9)
    assert 1 - hidden(forward, backward).double().mean().item() == pytest.approx(want["visible"], abs=1e-9)


# --- Farneback's flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(3, 0), (0, 2), (-2.5, 1.5)])
def test_farneback_finds_a_translation(shift):
    pytest.importorskip("cv2")
    frames = texture(shift, 3)
    flow = farneback(frames)
    assert (flow.shape, flow.dtype) == ((2, 2, SIZE, SIZE), torch.float32)
    inside = flow[:, :, 12:-12, 12:-12]
    for channel, pixels in enumerate(shift):
        assert (inside[:, channel] - pixels).abs().max() < 0.15
    change = (np.diff(frames.astype(float) / 255, axis=0) ** 2).mean()
    assert flow_warp_error(frames) < change / 20


@pytest.mark.parametrize("clip", ["momentum", "flicker"])
def test_farneback_of_real_clips_is_as_it_was(clip):
    pytest.importorskip("cv2")
    f = Fixture("metrics")
    frames = f[f"{clip}/frames"].numpy()
    for got, want in ((farneback(frames), "forward"), (farneback(frames[::-1]).flip(0), "backward")):
        assert (got.permute(0, 2, 3, 1) - f[f"{clip}/{want}"]).abs().max() < 1e-3


def test_a_still_clip_has_about_no_warping_error():
    """Farneback's flow of a still picture is not quite 0 at its border."""
    pytest.importorskip("cv2")
    f = Fixture("metrics")
    for picture in (f["momentum/frames"][0].numpy(), f["flicker/frames"][0].numpy(), texture()[0]):
        assert flow_warp_error(np.stack([picture] * 3)) < 1e-7
    assert flow_warp_error(np.full((3, 40, 40, 3), 90, np.uint8)) < 1e-20


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (5, 40)])
def test_any_size_can_be_measured(size):
    pytest.importorskip("cv2")
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    error = flow_warp_error(frames)
    assert error is None or 0 <= error <= 1
    assert flow_warp_error(frames[:1]) is None


# --- without opencv ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_opencv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as Python marks what can't be imported
    opencv.cache_clear()
    yield
    opencv.cache_clear()


@pytest.mark.usefixtures("no_opencv")
def test_without_opencv_the_metric_is_none_and_it_is_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [flow_warp_error(texture(count=2)) for _ in range(3)] == [None] * 3
    (warning,) = caught
    assert str(warning.message).startswith("flow-warp-error is left out, because it needs opencv (")
    assert str(warning.message).endswith("pip install 'zs2[metrics]'")


@pytest.mark.usefixtures("no_opencv")
def test_one_frame_needs_no_opencv():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flow_warp_error(texture()) is None
