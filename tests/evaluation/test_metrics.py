"""The metrics of clips against public implementations, what must hold of each, and `python -m zs2.metrics`."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from helpers import CHECKPOINT, TESTS, Fixture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from zs2.checkpoints.hub import DEFAULT_MODEL, STANDARD_CLIP
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
from zs2.evaluation.measure import measure, protocol, rounded
from zs2.evaluation.metrics import (
    METRICS,
    Metric,
    clip_all_pairs,
    clip_first,
    clip_frame_consistency,
    clip_score,
    expected_correlation,
    motion,
    motion_smoothness,
    noise_correlation,
    temporal_flicker,
)
from zs2.evaluation.optical_flow import opencv
from zs2.evaluation.structure import ssim
from zs2.method import LAM_MAX, NOISE_MODELS, Method
from zs2.metrics import main
from zs2.noise.models import noises
from zs2.sample import main as sample
from zs2.system.registry import load
from zs2.video.clip import Clip

NOISE_KINDS = [name for name, row in NOISE_MODELS.items() if row.start is None]
ROOT = TESTS.parent
CLIPS = ("momentum", "flicker")
NAMES = (
    *("clip-score", "clip-frame-consistency", "clip-all-pairs", "clip-first", "motion", "ssim", "ms-ssim"),
    *("temporal-flicker", "motion-smoothness", "flow-warp-error"),
)  # of `measure` without further inputs
ALL = (*NAMES[:7], "lpips", *NAMES[7:])
SEEDS = st.integers(0, 2**31)
fixture = cache(Fixture)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.from_pretrained(CHECKPOINT)


def real(clip: str) -> tuple[np.ndarray, str]:
    """The frames and the prompt of a stored clip."""
    f = fixture("metrics")
    return f[f"{clip}/frames"].numpy(), f.config["clips"][clip]["prompt"]


def noisy(seed: int, count: int, height: int = 12, width: int = 13) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def vectors(seed: int, count: int, dim: int = 5) -> Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


# --- all of a clip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", CLIPS)
def test_every_metric_of_a_real_clip_is_what_code_outside_zs2_computes(scorer, clip):
    """Public implementations (make_metrics.py), and NumPy for motion, flicker and smoothness.

    These frames are too small for MS-SSIM, which test_similarity.py compares with pytorch-msssim.
    """
    pytest.importorskip("cv2")
    got, want = measure(*real(clip), scorer), fixture("metrics").config["clips"][clip]["metrics"]
    assert tuple(got) == NAMES
    frames = real(clip)[0] / 255
    assert frames.shape[1:3] == (64, 64)
    want |= {"ms-ssim": None, "temporal-flicker": 1 - np.abs(np.diff(frames, axis=0)).mean()}
    want["motion-smoothness"] = 1 - np.abs(frames[1] - (frames[0] + frames[2]) / 2).mean()  # of four frames
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert got[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=0)), name


def test_one_frame_has_a_score_and_nothing_else(scorer):
    frames, prompt = real("momentum")
    values = measure(frames[:1], prompt, scorer)
    assert values.pop("clip-score") == rounded(
        clip_score(scorer.embed_frames(frames[:1]), scorer.embed_texts([prompt]))
    )
    assert values == dict.fromkeys(NAMES[1:])


def test_a_still_clip_is_the_most_consistent_and_does_not_move(scorer):
    pytest.importorskip("cv2")
    frames, prompt = real("flicker")
    values = measure(frames[[0, 0, 0]], prompt, scorer)
    assert values.pop("clip-score") == measure(frames[:1], prompt, scorer)["clip-score"]
    assert values.pop("flow-warp-error") < 1e-8
    assert values.pop("ms-ssim") is None
    assert values == pytest.approx({name: METRICS[name].still for name in values}, abs=1e-9)
    assert set(values) == {*NAMES} - {"clip-score", "flow-warp-error", "ms-ssim"}


def test_each_frame_is_scored_by_its_own_prompt_and_the_last_repeats(scorer):
    frames, prompt = real("momentum")
    other = "tropical fish on a green background"
    one_by_one = [measure(frames[i : i + 1], prompt if i == 0 else other, scorer)["clip-score"] for i in range(4)]
    assert min(one_by_one) > 0
    got, alone = measure(frames, [prompt, other], scorer), measure(frames, prompt, scorer)
    assert got["clip-score"] == pytest.approx(np.mean(one_by_one), rel=1e-6)
    assert abs(got["clip-score"] - alone["clip-score"]) > 1
    assert got | {"clip-score": alone["clip-score"]} == alone == measure(frames, [prompt] * 4, scorer)
    partly = measure(frames, ["", other, other, " "], scorer)["clip-score"]  # frames of the empty prompt have no score
    assert partly == pytest.approx(np.mean(one_by_one[1:3]), rel=1e-6)


@pytest.mark.parametrize("count", [0, 5])
def test_no_prompt_and_more_than_frames_are_refused(scorer, count):
    with pytest.raises(InputError, match=rf"^{count} prompts for 4 frames: expected one, or one a frame$"):
        measure(real("momentum")[0], ["red apple"] * count, scorer)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_other_frames_are_refused(scorer, wrong):
    with pytest.raises(InputError, match=r"expected a uint8 array \(F, H, W, 3\)"):
        measure(wrong, "red apple", scorer)


def test_without_opencv_all_else_is_measured(scorer, monkeypatch):
    want = measure(*real("flicker"), scorer)
    monkeypatch.setitem(sys.modules, "cv2", None)  # as Python marks what can't be imported
    opencv.cache_clear()
    with pytest.warns(UserWarning, match=r"flow-warp-error is left out.*pip install 'zs2\[metrics\]'$"):
        got = measure(*real("flicker"), scorer)
    opencv.cache_clear()
    assert got == want | {"flow-warp-error": None}


def test_a_metric_gets_the_inputs_that_its_row_names(scorer):
    received: dict[str, tuple[Any, ...]] = {}

    def note(name: str, *inputs: Any) -> float:
        received[name] = inputs
        return float(len(received))

    rows = {"a": ("texts", "frames"), "b": ("noises", "prompted_images"), "c": ("method",), "d": ("images", "noises")}
    for name, needs in rows.items():
        METRICS.add(Metric(name, name, None, name, needs, partial(note, name)))
    try:
        frames, prompt = real("momentum")
        assert measure(frames, [prompt, ""], scorer).keys() == {*NAMES, "a"}
        noises = torch.zeros(4, 1, 1, 1)
        values = measure(frames, [prompt, ""], scorer, {"noises": noises, "method": None, "lpips": None})
        assert list(values) == list(METRICS)
        assert (values["c"], values["noise-correlation-expected"]) == (None, None)
        assert received["b"][0] is received["d"][1] is noises
        assert received["a"][0].shape == received["b"][1].shape == (1, scorer.text.config.projection_dim)
        assert (received["a"][1].shape, received["d"][0].shape[0]) == (frames.shape, 4)
    finally:
        for name in rows:
            METRICS.remove(name)


def test_an_input_that_there_is_not_is_refused():
    words = r"^unknown input of the metric x 'frame': expected one of frames, images, .*; did you mean 'frames'\?$"
    with pytest.raises(InputError, match=words):
        Metric("x", "x", None, "x", ("frame",), motion)


def test_every_metric_has_a_place_and_says_what_it_needs():
    assert list(METRICS) == [*ALL, "noise-correlation", "noise-correlation-expected"]
    assert [name for name, metric in METRICS.items() if metric.of_noise] == list(METRICS)[-2:]
    assert [name for name, metric in METRICS.items() if metric.of_prompt] == ["clip-score"]
    assert all(load(metric.compute).__doc__ for metric in METRICS.values())


# A number that changes here is another definition: raise the metric's `revision`, then it has another key. LPIPS is
# that of its weights, and the flow that of OpenCV, whose version a protocol has.
DEFINED = {
    "clip-score": 17.7008070,
    "clip-frame-consistency": -0.0398849977,
    "clip-all-pairs": 0.00996715204,
    "clip-first": 0.127345694,
    "motion": 0.047945845,
    "ssim": 0.983593869,
    "ms-ssim": 0.99023687,
    "temporal-flicker": 0.952054155,
    "motion-smoothness": 0.993464052,
    "noise-correlation": -0.674746892,
    "noise-correlation-expected": 0.909020401,
}


def test_another_number_of_the_same_clip_is_another_revision():
    y, x = np.mgrid[:112, :112]
    frames = [
        np.stack([(2 * x + 7 * i) % 256, (2 * y + 5 * i * i) % 256, (x + y + 11 * i) % 256], -1) for i in range(4)
    ]
    embeddings = torch.nn.functional.normalize(torch.sin(torch.arange(32.0).double() ** 1.5).view(4, 8), dim=1)
    inputs = {
        "frames": np.stack(frames).astype(np.uint8),
        "images": embeddings,
        "prompted_images": embeddings,
        "texts": embeddings.flip(0).abs(),
        "noises": torch.cos(torch.arange(512.0).double() * 1.7).view(4, 2, 8, 8),
        "method": Method(lam=0.15),
    }
    metrics = [one for one in METRICS.values() if one.name not in ("lpips", "flow-warp-error")]
    found = {one.definition: load(one.compute)(*(inputs[need] for need in one.needs)) for one in metrics}
    assert found == pytest.approx(DEFINED, rel=1e-5)


def test_a_metric_s_name_has_no_revision_in_it():
    with pytest.raises(InputError, match="a metric is named 'x@2': expected a name without @"):
        Metric("x@2", "x", None, "x", ("frames",), motion)


def test_values_are_kept_to_nine_digits():
    assert [rounded(x) for x in (1 / 3, 100 / 3, 2e-9 / 3, 0.0, None)] == [
        0.333333333,
        33.3333333,
        6.66666667e-10,
        0.0,
        None,
    ]


# --- of embeddings ----------------------------------------------------------------------------------------------------


def test_the_score_takes_the_mean_before_the_maximum():
    texts = torch.eye(2, dtype=torch.float64)[[0, 0]]
    assert clip_score(texts, texts) == pytest.approx(100)
    assert clip_score(-texts, texts) == 0
    half_against = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)]], dtype=torch.float64)
    assert clip_score(half_against, texts) == pytest.approx(25)


@given(SEEDS, st.integers(2, 9))
def test_what_holds_of_all_embeddings(seed, count):
    images, texts = vectors(seed, count), vectors(seed + 1, count)
    order = np.random.default_rng(seed).permutation(count)
    pairs = [images[i] @ images[j] for i in range(count) for j in range(i)]
    assert 0 <= clip_score(images, texts) <= 100
    assert clip_score(images[order], texts[order]) == pytest.approx(clip_score(images, texts))
    assert clip_all_pairs(images) == pytest.approx(sum(pairs).item() / len(pairs), abs=1e-12)
    assert clip_all_pairs(images[order]) == pytest.approx(clip_all_pairs(images), abs=1e-12)
    assert clip_frame_consistency(images.flip(0)) == pytest.approx(clip_frame_consistency(images), abs=1e-12)
    later = 1 + np.random.default_rng(seed).permutation(count - 1)
    assert clip_first(images[[0, *later]]) == pytest.approx(clip_first(images), abs=1e-12)
    for metric in (clip_all_pairs, clip_frame_consistency, clip_first):
        assert metric(images[:2]) == pytest.approx((images[0] @ images[1]).item(), abs=1e-12)
        assert metric(images[[0] * count]) == pytest.approx(1, abs=1e-12)
        assert metric(images[:1]) is None


def test_a_drift_shows_in_first_and_not_in_consecutive_frames():
    angles = torch.linspace(0, math.pi / 2, 10, dtype=torch.float64)
    drift = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert clip_frame_consistency(drift) == pytest.approx(math.cos(math.pi / 18))
    assert clip_first(drift) == pytest.approx(angles[1:].cos().mean().item())
    assert clip_first(drift) < clip_all_pairs(drift) < clip_frame_consistency(drift)


# --- of frames --------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(2, 5))
def test_what_holds_of_all_frames(seed, count):
    frames = noisy(seed, count)
    for metric in (motion, ssim):
        assert metric(frames[::-1]) == pytest.approx(metric(frames), abs=1e-12)
        assert metric(frames[..., ::-1]) == pytest.approx(metric(frames), abs=1e-12)
        assert metric(frames.transpose(0, 2, 1, 3)) == pytest.approx(metric(frames), abs=1e-12)
        assert metric(frames[:1]) is None
    assert 0 < motion(frames) < 1
    assert -1 <= ssim(frames) < 1
    assert motion(255 - frames) == pytest.approx(motion(frames), abs=1e-12)
    assert motion(frames[[0] * count]) == 0
    assert ssim(frames[[0] * count]) == pytest.approx(1, abs=1e-12)


def test_motion_is_the_mean_change_and_black_to_white_is_one():
    black, white = np.zeros((1, 4, 6, 3), np.uint8), np.full((1, 4, 6, 3), 255, np.uint8)
    assert motion(np.concatenate([black, white, black])) == 1
    assert motion(np.concatenate([black, black, white])) == 0.5
    dot = black.copy()
    dot[0, 1, 2, 0] = 51
    assert motion(np.concatenate([dot, black])) == pytest.approx(0.2 / (4 * 6 * 3))


def test_flicker_is_vbench_s():
    """The number is `(255 - numpy.mean(mae_seq(frames)).item()) / 255` of these frames, as its `cal_score` has it.

    `mae_seq` and `calculate_mae` are those of vbench/temporal_flickering.py in github.com/Vchitect/VBench, commit
    fc4620b4d620114b77842c336f7a193c37e8e12e, run with OpenCV 5.0.0 and NumPy 2.4.6 (in float32). `get_frames` only
    reads a video, so it is left out.
    """
    frames = (np.arange(5 * 12 * 13 * 3) ** 2 % 251).astype(np.uint8).reshape(5, 12, 13, 3)
    assert temporal_flicker(frames) == pytest.approx(0.67040809, abs=1e-7)


@given(SEEDS, st.integers(3, 7))
def test_smoothness_compares_every_other_frame_with_its_neighbours(seed, count):
    frames = noisy(seed, count, 4, 5)
    inner = range(1, count - 1, 2)
    want = [np.abs(frames[i] / 255 - (frames[i - 1] / 255 + frames[i + 1] / 255) / 2).mean() for i in inner]
    assert motion_smoothness(frames) == pytest.approx(1 - np.mean(want), abs=1e-12)
    assert motion_smoothness(frames[:2]) is None
    steady = np.stack([np.full((2, 2, 3), 10 * i, np.uint8) for i in range(count)])
    assert motion_smoothness(steady) == pytest.approx(1, abs=1e-12)
    assert temporal_flicker(frames) == 1 - motion(frames)


def test_ssim_of_flat_pictures_is_its_first_factor():
    """Of constants a and b the structure is equal: (2ab + c₁) / (a² + b² + c₁), c₁ = 0.01²."""
    frames = np.stack([np.full((11, 11, 3), value, np.uint8) for value in (51, 102)])
    assert ssim(frames) == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-9)


def test_ssim_needs_frames_as_large_as_its_window():
    assert ssim(noisy(0, 2, 11, 11)) is not None
    assert ssim(noisy(0, 2, 10, 40)) is None
    assert ssim(noisy(0, 2, 40, 10)) is None


# --- of noises --------------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[str, float | None, float | None]] = [
    *(("iid", None, None), ("shared", None, None), ("mixed", None, None), ("mixed", None, 3.0), ("mixed", None, 0.0)),
    *(("progressive", None, None), ("progressive", None, 0.5), ("dnm", None, None)),
    *(("dnm", lam, None) for lam in (0.0, 0.2, 0.8, LAM_MAX)),
    *(("loop", lam, None) for lam in (0.0, 0.2, 0.8, LAM_MAX)),
    *(("freq", lam, None) for lam in (0.0, 0.8, LAM_MAX)),
    ("freenoise", None, None),
]
SIZED = [(0.3, 8, 11), (0.33, 16, 16), (0.07, 100, 20), (0.01, 5, 9), (0.0, 8, 8), (1.0, 7, 5)]


@pytest.mark.parametrize(("noise", "lam", "alpha"), SETTINGS)
def test_noises_correlate_as_theory_says(noise, lam, alpha):
    """Within 4 standard errors (1−ρ²)/√n of one pair, of n = 16,384 numbers, and float32's rounding."""
    given = {name: value for name, value in (("lam", lam), ("alpha", alpha)) if value is not None}
    drawn = torch.stack(list(islice(noises(noise, (4, 64, 64), 5, frames=9, **given), 9)))
    expected = expected_correlation(Method(noise=noise, lam=lam, alpha=alpha), drawn)
    assert abs(noise_correlation(drawn) - expected) < 4 * (1 - expected**2) / math.sqrt(4 * 64 * 64) + 1e-6


def test_every_noise_model_has_a_theory_or_says_that_it_has_none():
    none = ["dnm-search", "text2video-zero", "warp"]
    assert {noise for noise, *_ in SETTINGS} == set(NOISE_KINDS) - set(none)
    assert [expected_correlation(Method(noise=noise), torch.empty(2, 4, 8, 8)) for noise in none] == [None] * 3


@pytest.mark.parametrize(("cutoff", "height", "width"), SIZED)
def test_theory_is_that_of_the_size_of_the_noises(cutoff, height, width):
    """Of few frequencies only some whole number is low, so c² of them need not be: within 5 standard errors."""
    method = Method(noise="freq", lam=0.1, lam_high=1.5, cutoff=cutoff)
    drawn = torch.stack(list(islice(noises("freq", (64, height, width), 3, **method.noise_parameters), 9)))
    expected, n = expected_correlation(method, drawn), 64 * height * width
    assert abs(noise_correlation(drawn) - expected) < 5 * math.sqrt((1 + expected**2) / n / 8)
    of = {(0.3, 8, 11): 3 * 4 / 88, (0.33, 16, 16): 6 * 6 / 256, (0.07, 100, 20): 7 * 2 / 2000, (0.01, 5, 9): 1 / 45}
    share = of.get((cutoff, height, width), cutoff)
    assert expected == pytest.approx(1 - (share * 0.1 + (1 - share) * 1.5) / LAM_MAX)


def test_a_theory_that_depends_on_the_size_needs_it():
    row = NOISE_MODELS["freq"]
    assert row.needs_size
    with pytest.raises(TypeError, match=r"height.*width"):
        load(row.correlation)(**row.defaults)


def test_a_noise_correlation_is_pearsons():
    drawn = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    want = np.mean([np.corrcoef(drawn[i].flatten(), drawn[i + 1].flatten())[0, 1] for i in range(3)])
    assert noise_correlation(drawn) == pytest.approx(want, abs=1e-9)
    assert noise_correlation(7 + 3 * drawn.half().float()) == pytest.approx(want, abs=1e-3)
    assert noise_correlation(torch.cat([drawn[:1], -drawn[:1]])) == pytest.approx(-1)
    assert noise_correlation(drawn[:1]) is None


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips as zs2 makes them. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    brief = ["--steps", "1", "--frames", "2", "--size", "16x16", "--lam", "0.5"]
    assert sample(["red apple", *brief, "--out", str(folder / "apple.webp")]) == 0
    clip = Clip.open(folder / "apple.webp")
    for name in ("apple.gif", "frames"):
        clip.save(folder / name)
    travel = clip.settings | {"prompt": ["red apple", "blue star"]}
    Clip(clip.frames, clip.fps, travel).save(folder / "travel.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else -1
    return status, *capsys.readouterr()


def failed(capsys: pytest.CaptureFixture[str], *arguments: object, words: tuple[str, ...]) -> None:
    """Assert that the command ends with one line that has these words, and nothing else."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("zs2: error: ")
    assert len(line) < 700
    for word in words:
        assert word in line


def test_the_table(made, capsys, scorer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, out, err = run(capsys, made / "apple.webp", made / "travel.png")
    assert (status, err) == (0, "")
    head, *rows, empty, clip, left_out, advice = out.splitlines()
    assert head.split() == [*NAMES, "clip"]
    assert empty == ""
    assert clip == f"CLIP: {DEFAULT_MODEL}, which came with a model: its scores compare only with each other."
    assert "next to the motion" in advice
    assert left_out == "LPIPS is left out: give its weights with --lpips FILE."
    for row, name in zip(rows, ("apple.webp", "travel.png"), strict=True):
        *numbers, path = row.split()
        assert path == str(made / name)
        values = measure(Clip.open(made / name).frames, Clip.open(made / name).settings["prompt"], scorer)
        assert numbers == ["—" if value is None else f"{value:.4f}" for value in values.values()]
        assert row.index(path) == head.index("clip", head.index("error"))  # the columns stand in line


def test_json(made, capsys, scorer):
    status, out, err = run(capsys, made / "travel.png", made / "frames", made / "apple.webp", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["protocol"] == protocol(scorer, DEFAULT_MODEL)
    assert found["protocol"]["metrics"] == list(METRICS)
    travel, folder, apple = found["clips"]
    assert [row["clip"] for row in found["clips"]] == [str(made / n) for n in ("travel.png", "frames", "apple.webp")]
    assert travel["prompt"] == ["red apple", "blue star"]
    assert folder["metrics"] == apple["metrics"] == measure(Clip.open(made / "apple.webp").frames, "red apple", scorer)
    assert travel["metrics"] == measure(Clip.open(made / "travel.png").frames, ["red apple", "blue star"], scorer)


def test_one_frame_has_dashes(made, capsys, tmp_path):
    Clip(Clip.open(made / "apple.webp").frames[:1], settings={"prompt": "red apple"}).save(tmp_path / "one.png")
    status, out, _ = run(capsys, tmp_path / "one.png", "--clip", CHECKPOINT)
    assert status == 0
    assert out.splitlines()[1].split()[1:-1] == ["—"] * 9


def test_the_empty_prompt_has_no_score_but_all_else(made, capsys, tmp_path):
    Clip(Clip.open(made / "apple.webp").frames, settings={"prompt": ""}).save(tmp_path / "empty.webp")
    status, out, _ = run(capsys, tmp_path / "empty.webp", "--clip", CHECKPOINT)
    assert status == 0
    assert [value == "—" for value in out.splitlines()[1].split()[:2]] == [True, False]


def test_what_can_not_be_measured_is_told_in_one_line(made, capsys, tmp_path):
    shutil.copytree(made, tmp_path / "here")
    here = tmp_path / "here"
    Image.new("RGB", (8, 8)).save(here / "holiday.png")
    frames = Clip.open(here / "apple.webp").frames
    for name, prompt in {"none": None, "number": 5, "mixed": ["a", 5], "nothing": []}.items():
        Clip(frames, settings={"prompt": prompt}).save(here / f"{name}.webp")
    Clip(frames, settings={"prompt": ["a", "b", "c"]}).save(here / "many.webp")
    good = here / "apple.webp"
    for wrong, words in {
        "apple.gif": ("apple.gif: .gif is lossy: expected .webp, .png, .apng or a folder",),
        "gone.webp": ("gone.webp: no such file",),
        "holiday.png": ("holiday.png: no settings of zs2",),
        "apple.webp.sheet.png": ("apple.webp.sheet.png is 396x200, its settings say 16x16", "not a contact sheet"),
        "apple.webp.json": ("apple.webp.json: no clip: expected .webp",),
        **{f"{n}.webp": (f"{n}.webp: its settings have no prompt",) for n in ("none", "number", "mixed", "nothing")},
    }.items():
        failed(capsys, good, here / wrong, words=words)
    failed(capsys, here / "many.webp", "--clip", CHECKPOINT, words=("3 prompts for 2 frames",))
    failed(capsys, good, "--clip", "no/such/clip", words=("no such model: 'no/such/clip'",))
    failed(capsys, good, "--clip", here, words=(str(here), "has no CLIP that can score"))
    failed(capsys, good, "--device", "typewriter", words=("'typewriter'", "try cpu"))
    failed(capsys, words=("CLIP",))


def command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=600)


@pytest.mark.long
def test_as_a_command_beside_the_clip(made):
    done = command("-m", "zs2.metrics", "apple.webp", cwd=made)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].endswith("  apple.webp")


@pytest.mark.long
def test_a_clip_of_another_model_asks_for_openais(made, tmp_path):
    clip = Clip.open(made / "apple.webp")
    Clip(clip.frames, settings=clip.settings | {"model": "mine"}).save(tmp_path / "mine.webp")
    offline: dict[str, Any] = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    words = ["-m", "zs2.metrics", "mine.webp", str(made / "apple.webp")]
    process = Forked(words, tmp_path, os.environ | offline)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert f"{STANDARD_CLIP} was not downloaded before" in err
    assert len(err.splitlines()) == 1


def test_help_and_wrong_clips_answer_without_torch(made):
    code = """if True:
        import sys
        from zs2.metrics import main
        for arguments in (["--help"], [], ["apple.gif"], ["gone.webp"]):
            try:
                main(arguments)
            except SystemExit:
                pass
        print("torch" in sys.modules)
    """
    done = command("-c", code, cwd=made)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    for word in ("--clip", "--json", "--device", STANDARD_CLIP, DEFAULT_MODEL, "zs2[metrics]"):
        assert word in "".join(done.stdout.split())
