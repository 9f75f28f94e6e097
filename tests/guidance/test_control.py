"""Clips under ControlNets: frame 0 is the picture of diffusers' pipelines, and each option does its work."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny
from helpers import CLIP, Fixture, assert_close, assert_same_picture, write_tiny

from zs2 import ZS2, Clip, Request
from zs2.ablate import main as ablate
from zs2.errors import InputError
from zs2.guidance.controls import Control, edges
from zs2.guidance.steering import Hints
from zs2.sample import main as sample
from zs2.sampling.memory import blocks, planned_memory
from zs2.video.reading import InputClip

FIXTURE = Fixture("controlnet")
HEIGHT, WIDTH = tiny.PICTURE["height"], tiny.PICTURE["width"]
OPTIONS = {key: tiny.PICTURE[key] for key in ("prompt", "seed", "guidance", "height", "width")}
OPTIONS["steps"] = tiny.CONTROLLED_STEPS


def hints(control: int, frames: int = 1) -> np.ndarray[Any, Any]:
    """The picture of a fixture's control, and others behind it."""
    first = tiny.hint(460 + control, 1, HEIGHT, WIDTH)
    return torch.cat([first, tiny.hint(470 + control, frames - 1, HEIGHT, WIDTH)]).numpy()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The models of tiny.py, by kind, with ControlNets."""
    place = tmp_path_factory.mktemp("models")

    @cache
    def folder(kind: str, control: bool) -> Path:
        if control:
            return tiny.write_control(place / f"control {kind}", kind, FIXTURE.weights(kind))
        return write_tiny(place / kind, kind)

    @cache
    def model(kind: str, *controls: str) -> ZS2:
        networks = [folder(control, True) for control in controls]
        return ZS2.from_pretrained(folder(kind, False), device="cpu", controlnet=networks, mu=0.7, lam=0.5)

    model.folder = folder
    return model


@pytest.mark.parametrize("name", tiny.CONTROLLED)
def test_frame_0_is_the_picture_of_diffusers(load: Any, name: str) -> None:
    kind, controls, options = tiny.CONTROLLED[name]
    model, asked = load(kind, *controls), OPTIONS | options
    latents = model.latents(**asked, frames=1, control=[hints(i) for i in range(len(controls))])
    assert_close(latents, FIXTURE[f"{name}/latents"], CLIP)
    assert_same_picture(torch.from_numpy(model.decode(latents))[0], FIXTURE[f"{name}/picture"])
    clip = model.latents(**asked, frames=3, control=[hints(i, 3) for i in range(len(controls))])
    assert_close(clip[:1], latents, CLIP)


def changed(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3 * other.abs().max())


def test_every_frame_has_its_own_hint(load: Any) -> None:
    model, asked = load("sd", "sd").variant(attn="sa"), OPTIONS | {"frames": 3, "control_scale": 20.0}
    clip = hints(0, 3)
    one = model.latents(**asked, control=clip)
    other = model.latents(**asked, control=np.stack([clip[0], clip[2], clip[2]]))
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert changed(one[1], other[1])


def test_one_picture_is_the_hint_of_all_frames(load: Any) -> None:
    model, asked = load("sd", "sd"), OPTIONS | {"frames": 3, "control_scale": 20.0}
    still = hints(0)
    assert_close(
        model.latents(**asked, control=still[0]), model.latents(**asked, control=still.repeat(3, axis=0)), CLIP
    )


def test_no_control_is_the_plain_clip(load: Any) -> None:
    model, asked = load("sd", "sd"), OPTIONS | {"frames": 2}
    plain = load("sd").latents(**asked)
    assert torch.equal(model.latents(**asked), plain)
    assert torch.equal(model.latents(**asked, control=hints(0, 2), control_scale=0), plain)
    assert changed(model.latents(**asked, control=hints(0, 2), control_scale=20), plain)


def test_attention_in_the_controls_is_that_of_the_unet_or_another(load: Any) -> None:
    asked = OPTIONS | {"frames": 3, "control": hints(0, 3), "control_scale": 20.0}
    folders = load.folder("sd", False), load.folder("sd", True)
    model = ZS2.from_pretrained(folders[0], device="cpu", controlnet=folders[1], mu=0.7, lam=0.5)
    for block in model.image_model.controls[0].transformer_blocks():
        out = block.attn1.to_out[0]
        out.weight = torch.nn.Parameter(50 * out.weight, requires_grad=False)  # so that attention over frames shows
    same = model.latents(**asked)
    assert torch.equal(model.latents(**asked, control_attn="tma"), same)
    other = model.latents(**asked, control_attn="sa")
    assert torch.equal(other[0], same[0])
    assert (other[2] - same[2]).abs().max() > 1e-5  # the runs before were equal to the bit
    assert [block.momentum.mu for block in model.image_model.controls[0].transformer_blocks()] == [0.7, 0.7]


@pytest.mark.parametrize("noise", ["dnm", "text2video-zero"])
def test_a_control_is_called_with_the_frames_and_the_step_of_the_unet(load: Any, noise: str) -> None:
    """Some kinds of attention count frames and steps. So clips are the same in chunks."""
    model = load("sd", "sd").variant(attn="extended", anchors=(0, 2), noise=noise)
    asked = OPTIONS | {"frames": 4, "control": hints(0, 4), "control_scale": 20.0}
    calls: dict[Any, list[Any]] = {model.unet: [], model.image_model.controls[0]: []}

    def note(network: Any, _: Any, call: dict[str, Any]) -> None:
        calls[network].append([call["first"], call["frames"], float(call["progress"])])

    handles = [network.register_forward_pre_hook(note, with_kwargs=True) for network in calls]
    try:
        parts = model.latents(**asked, chunk=2)
    finally:
        for handle in handles:
            handle.remove()
    of_unet, of_control = calls.values()
    assert of_control == of_unet
    assert {first for first, *_ in of_unet} == {0, 2}
    assert {progress for *_, progress in of_unet} >= {0, 1}
    assert_close(parts, model.latents(**asked), CLIP)


def test_deep_cache_takes_the_first_residual_only(load: Any) -> None:
    """Steps that reuse deep features call no block of the ControlNet, and are near the exact clip."""
    model, asked = load("sd", "sd"), OPTIONS | {"frames": 2, "control": hints(0, 2), "control_scale": 20.0}
    calls: list[int] = []
    handle = model.image_model.controls[0].mid_block.register_forward_hook(lambda *_: calls.append(1))
    try:
        exact = model.latents(**asked)
        assert len(calls) == 4
        near = model.latents(**asked, deep_cache=2)
        assert len(calls) == 6
    finally:
        handle.remove()
    assert 0 < (near - exact).abs().max() < (exact - load("sd").latents(**OPTIONS, frames=2)).abs().max()


def test_hints_are_encoded_once(load: Any) -> None:
    network = load("sd", "sd").image_model.controls[0]
    control = Control(InputClip(hints(0, 4)), 1.0, (0.0, 1.0), "frames")
    for keep_all in (True, False):
        kept = Hints(network, control, (HEIGHT, WIDTH), keep_all=keep_all)
        first = kept.frames(0, 2)
        assert first.shape == (2, 8, HEIGHT // 2, WIDTH // 2)
        assert kept.frames(0, 2) is first
        assert kept.frames(2, 2) is not first
        assert (kept.frames(0, 2) is first) == keep_all


@pytest.mark.parametrize(
    ("start", "end", "on"), [(0, 1, "1111"), (0, 0.5, "1100"), (0.25, 0.75, "0110"), (0.3, 1, "0011")]
)
def test_a_control_is_on_in_whole_steps(start: float, end: float, on: str) -> None:
    control = Control(InputClip(hints(0)), 1.0, (start, end), "frames")
    assert "".join(str(int(control.is_on(step, 4))) for step in range(4)) == on


def test_canny() -> None:
    cv2 = pytest.importorskip("cv2")
    frames = np.zeros((2, 24, 32, 3), np.uint8)
    frames[:, 6:18, 8:24, 1] = 200
    found = edges(frames)
    assert (found.dtype, found.shape) == (np.uint8, frames.shape)
    assert np.array_equal(found[0, ..., 2], cv2.Canny(frames[0], 100, 200))
    assert set(np.unique(found)) == {0, 255}
    clip = Control(InputClip(frames), 1.0, (0.0, 1.0), "canny")
    assert np.array_equal(clip.frames(1, 1, (24, 32))[0], found[1])


def test_canny_without_opencv_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the options are read, before any model is."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    words = "control_from canny needs OpenCV: pip install 'zs2[control]'"
    with pytest.raises(InputError, match=re.escape(words)):
        Request("a", frames=1, control=hints(0), control_from="canny")
    Clip(hints(0), 8).save(tmp_path / "hints.png")
    line = ["--control", "nothing", str(tmp_path / "hints.png"), "--control-from", "canny", "--frames", "1"]
    assert sample(["rose", *line, "--out", str(tmp_path / "clip.gif")]) == 2
    assert words in capsys.readouterr().err
    assert ablate(["--noise", "dnm", *line, "--out", str(tmp_path / "study")]) == 2
    assert words in capsys.readouterr().err


def test_the_memory_plan_counts_controls(load: Any) -> None:
    model, asked = load("sd", "sd"), OPTIONS | {"frames": 4}
    plain = planned_memory(load("sd").plan(load("sd")._request("model()", **asked)))
    unused = planned_memory(model.plan(model._request("model()", **asked)))
    used = planned_memory(model.plan(model._request("model()", **asked, control=hints(0, 4))))
    assert plain.control == unused.control == 0
    assert (
        unused.weights
        == used.weights
        == plain.weights + sum(4 * weight.numel() for weight in model.image_model.controls[0].parameters())
    )
    assert (used.control > 0, used.states > unused.states, used.text > unused.text) == (True, True, True)
    for kind, control in (("sd", "sd"), ("xl", "xl"), ("xl", "xl small")):
        network = load(kind, control).image_model.controls[0]
        states = network(
            torch.zeros(1, 4, 4, 6),
            1,
            torch.zeros(1, 3, network.config.cross_attention_dim),
            network.encode_hints(torch.zeros(1, 3, 8, 12)),
            frames=1,
            added=None if network.add_embedding is None else torch.zeros(1, 32),
        )[1]
        assert [(state.shape[2], state.shape[1]) for state in states] == blocks(network.config, (4, 6))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no network": ({"controls": (), "control": hints(0)}, r"1 control for 0 ControlNets: expected ZS2.from_pretrained"),
    "two clips": ({"control": [hints(0), hints(1)]}, "2 controls for 1 ControlNet: expected a clip for each"),
    "a short clip": ({"control": hints(0, 2), "frames": 3}, r"control \S+ has 2 frames, the clip has 3"),
    "a scale": ({"control": hints(0), "control_scale": "x"}, "control_scale is 'x': expected a finite number"),
    "scales": (
        {"control": hints(0), "control_scale": [1, 2]},
        "control_scale has 2 values for 1 control: expected one",
    ),
    "an interval": (
        {"control": hints(0), "control_interval": (0.5, 0.5)},
        "control_interval is 0.5: expected two shares",
    ),
    "no step": ({"control": hints(0), "control_interval": (0.3, 0.6)}, "control_interval 0.3,0.6 holds none of the 4"),
    "no step of a source's": (
        {"control": hints(0), "source": hints(0), "strength": 0.5, "control_interval": (0, 0.5)},
        "control_interval 0,0.5 holds none of the steps 3 to 4 of 4, which strength 0.5 leaves",
    ),
    "a kind": (
        {"control": hints(0), "control_from": "pose"},
        "unknown control_from 'pose': expected one of frames, canny",
    ),
    "attention": ({"control": hints(0), "control_attn": "x"}, "unknown attention kind 'x'"),
    "no clip": ({"control": "missing.gif"}, "missing.gif: no such file"),
    "nothing": ({"control": []}, "control is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_one_line(load: Any, case: str) -> None:
    options, words = WRONG[case]
    asked = OPTIONS | {"frames": 1} | options
    model = load("sd", *asked.pop("controls", ("sd",)))
    with pytest.raises(InputError, match=words) as error:
        model.latents(**asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["control_scale", "control_interval", "control_from", "control_attn"])
def test_an_option_without_control_warns(load: Any, name: str) -> None:
    value = {"control_scale": 2.0, "control_interval": (0, 0.5), "control_from": "canny", "control_attn": "sa"}[name]
    with pytest.warns(UserWarning, match=f"{name} has no effect without control"):
        clip = load("sd")(**OPTIONS | {"steps": 1}, frames=1, **{name: value})
    assert clip.settings[name] is None


def test_a_control_of_another_family_is_refused(load: Any) -> None:
    with pytest.raises(InputError, match="is of another family: it has text of width 24, the model 16"):
        ZS2.from_pretrained(load.folder("sd", False), device="cpu", controlnet=load.folder("xl", True))


@pytest.mark.parametrize("place", [5, None, {"a": 1}])
def test_a_control_that_is_no_place_is_refused(load: Any, place: Any) -> None:
    with pytest.raises(InputError, match=r"controlnet is .*: expected a folder in the diffusers layout"):
        ZS2.from_pretrained(load.folder("sd", False), device="cpu", controlnet=place)


def test_the_settings_record_networks_and_hints(load: Any) -> None:
    clip = load("sd", "sd", "sd 1")(**OPTIONS | {"steps": 2}, frames=1, control=[hints(0), hints(1)], control_scale=2)
    settings = clip.settings
    assert [set(one) for one in settings["control"]] == [{"sha256", "range"}] * 2
    assert [set(one) for one in settings["controlnet"]] == [{"sha256", "config"}] * 2
    assert settings["control"][0] != settings["control"][1]
    assert settings["controlnet"][0] != settings["controlnet"][1]
    assert (settings["control_scale"], settings["control_interval"]) == ([2.0, 2.0], None)
