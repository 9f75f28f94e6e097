"""Text2Video-Zero: the noise that needs the sampler, against diffusers' own pipeline on the default checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from helpers import CHECKPOINT, CLIP, LATENTS, Fixture, assert_close, in_float64

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, renoise_at
from zs2.noise.models import stream
from zs2.sample import main
from zs2.sampling.text2video_zero import shift

PROMPT = "panda face on a sky blue background"
SMALL = {"height": 64, "width": 64}  # at most the checkpoint's own size


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, attn="cfa", noise="text2video-zero", device="cpu")


@pytest.fixture(scope="module", params=["float32", "float64"])
def trained(request: pytest.FixtureRequest) -> ZS2:
    """In its own float32, and in float64 as the reference: few steps enlarge float32's rounding."""
    model = ZS2.from_pretrained(CHECKPOINT, attn="cfa", noise="text2video-zero", device="cpu")
    return in_float64(model) if request.param == "float64" else model


@pytest.fixture(scope="module")
def reference() -> Fixture:
    return Fixture("text2video_zero")


def test_the_noise_of_the_reference_is_that_of_the_frames(reference):
    """So that zs2, which draws its own, starts from what diffusers was given."""
    seed = reference.config["clip"]["seed"]
    for k, noise in enumerate(reference["noise"]):
        assert torch.equal(stream(seed, k, tuple(noise.shape))(), noise)


@pytest.mark.parametrize("number", range(3))
def test_it_is_diffusers_text2video_zero(trained, reference, number):
    case, clip = reference.config["cases"][number], reference.config["clip"]
    zero = trained.variant(motion=case["motion"], renoise=case["renoise"])
    assert_close(zero.latents(**clip, steps=case["steps"]), reference[f"{number}/latents"], CLIP)


@pytest.mark.long
def test_the_defaults_are_the_papers(trained, reference):
    assert renoise_at(None, 50) == (44, 47)
    assert trained.method.settings(50, False)["motion"] == [12.0, 12.0]
    case, clip = reference.config["cases"][0], reference.config["clip"]
    assert renoise_at(None, case["steps"]) == tuple(case["renoise"])
    assert_close(trained.latents(**clip, steps=case["steps"]), reference["0/latents"], CLIP)


@pytest.mark.parametrize("steps", range(2, 60))
def test_there_is_a_place_in_any_number_of_steps(steps):
    t0, t1 = renoise_at(None, steps)
    assert 0 <= t0 < t1 < steps


@pytest.mark.parametrize(
    "attn", [attn if attn == "tma" else pytest.param(attn, marks=pytest.mark.long) for attn in ATTENTION_KINDS]
)
def test_frame_0_is_the_image_of_the_model_with_any_attention(model, attn):
    plain = model.variant(attn="sa", noise="iid").latents(PROMPT, frames=1, steps=6, seed=2, **SMALL)
    clip = model.variant(attn=attn).latents(PROMPT, frames=3, steps=6, seed=2, **SMALL)
    assert_close(clip[:1], plain, CLIP)
    assert (clip[1:] - clip[:1]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert_close(model.latents(PROMPT, frames=1, steps=6, seed=2, **SMALL), plain, CLIP)


def test_frame_0_stays_the_image_of_the_model_where_the_solver_remembers(model):
    """The others join in step 3, and begin without a memory beside it."""
    method, request = {"renoise": (2, 4)}, {"steps": 7, "sampler": "dpm++", "height": 32, "width": 32}
    alone, clip = (model.variant(**method).latents(PROMPT, frames=frames, **request) for frames in (1, 3))
    assert_close(clip[:1], alone, CLIP)
    assert clip.isfinite().all()


def test_where_deep_features_are_made_anew_for_frame_0_it_is_said(model):
    zero = model.variant(renoise=(2, 4))
    with pytest.warns(UserWarning, match="frame 0 is only nearly the model's image"):
        zero.plan(Request(PROMPT, frames=3, steps=8, deep_cache=2))  # they join in step 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero.plan(Request(PROMPT, frames=3, steps=7, deep_cache=2))
        zero.plan(Request(PROMPT, frames=1, steps=8, deep_cache=2))


def test_longer_clips_begin_with_shorter_ones(model):
    long, short = (model.latents(PROMPT, frames=frames, steps=5, **SMALL) for frames in (4, 2))
    assert_close(long[:2], short, CLIP)


def test_a_prompt_for_each_frame(model):
    """Frame 0 alone has the first prompt."""
    both = model.latents([PROMPT, "red apple on a red background"], frames=2, steps=5, **SMALL)
    assert_close(both[:1], model.latents(PROMPT, frames=2, steps=5, **SMALL)[:1], CLIP)


def test_every_step_is_told(model):
    steps = list(model.sample(Request(PROMPT, frames=3, steps=10, **SMALL)))
    assert [step.index for step in steps] == list(range(10))
    assert [len(step.latents) for step in steps] == [3] * 10  # of 10 steps, all frames go on from the first
    assert len(next(iter(model.sample(Request(PROMPT, frames=3, steps=50, **SMALL)))).latents) == 1


def test_given_latents_are_all_frames_noise(model):
    latents = torch.randn(2, *LATENTS, generator=torch.Generator().manual_seed(0))
    want = model.variant(noise="iid").latents(PROMPT, frames=2, steps=3, latents=latents)
    assert torch.equal(model.latents(PROMPT, frames=2, steps=3, latents=latents), want)
    settings = model.settings(model.plan(Request(PROMPT, frames=2, steps=1, latents=latents)), 8)
    assert [settings[name] for name in ("noise", "motion", "renoise")] == [None] * 3


@pytest.mark.parametrize(
    ("pixels", "size", "want"),
    [(0.5, 4, [0, 1, 2, 3]), (128.5, 4, [1, 2, 3, 3]), (-127.5, 4, [0, 0, 1, 2]), (1024.5, 4, [0, 1, 2, 3])],
)
def test_a_shift(pixels, size, want):
    """By whole cells of an axis of four: a cell is 128 of 512 pixels. The border is mirrored, and again after 1024."""
    assert shift(torch.arange(size)[None, None, None].float(), pixels, dim=3).flatten().tolist() == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"renoise": (3, 3)}, "renoise is 3,3: expected two numbers of steps"),
        ({"renoise": (3, 10)}, "renoise is 3,10"),
        ({"renoise": (-1, 3)}, "renoise is -1: expected at least 0"),
        ({"renoise": (1.5, 3)}, "renoise is .1.5, 3.: expected two whole numbers"),
        ({"motion": (1, 2, 3)}, "motion is .1, 2, 3.: expected two numbers"),
        ({"motion": (float("nan"), 2)}, "expected two numbers"),
        ({"motion": 12}, "motion is 12: expected two numbers"),
    ],
)
def test_settings_that_can_not_be_meant(model, options, message):
    with pytest.raises(InputError, match=message):
        model.variant(**options).plan(Request(PROMPT, frames=2, steps=10))


def test_one_step_is_too_few(model):
    with pytest.raises(InputError, match="text2video-zero in 1 step"):
        model.latents(PROMPT, frames=2, steps=1)


@pytest.mark.parametrize(("name", "value"), [("motion", (1, 1)), ("renoise", (1, 2))])
def test_settings_without_effect_are_told(model, name, value):
    with pytest.warns(UserWarning, match=f"{name} has no effect on noise model 'dnm'"):
        model.variant(noise="dnm", **{name: value})
    with pytest.warns(UserWarning, match="lam has no effect on noise model 'text2video-zero'"):
        model.variant(lam=0.3)


@pytest.mark.long
def test_the_command_and_its_replay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--noise", "text2video-zero", "--attn", "cfa", "--motion=-30,60", "--frames", "3", "--steps", "6"]
    assert main([PROMPT, *options, "--out", "clip.webp"]) == 0, capsys.readouterr().err
    made = json.loads(Path("clip.webp.json").read_text())
    assert (made["motion"], made["renoise"], made["lam"]) == ([-30.0, 60.0], [4, 5], None)
    assert main(["--replay", "clip.webp.json", "--out", "again.webp"]) == 0
    assert Path("again.webp").read_bytes() == Path("clip.webp").read_bytes()
    capsys.readouterr()
    assert main([PROMPT, "--renoise", "9,4", "--noise", "text2video-zero"]) == 2
    assert capsys.readouterr().err.startswith("zs2: error: renoise is 9,4: expected two numbers of steps")
