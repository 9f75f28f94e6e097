"""Prompt schedules: which prompt each frame has, the contexts between two prompts, and the files that hold them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLIP, MODULE, assert_close, write_tiny

from zs2 import ZS2, Clip, Request
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.sample_requests import clip_requests
from zs2.errors import InputError
from zs2.evaluation.measure import prompts_of
from zs2.sample import main
from zs2.sampling.conditioning import Conditioning
from zs2.sampling.prompt_syntax import Blend
from zs2.video.clip import read_settings
from zs2.video.unfinished import shortened


@pytest.fixture(scope="module", params=["sd", "xl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ZS2:
    folder = write_tiny(tmp_path_factory.mktemp("model") / "m", request.param)
    return ZS2.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("prompt", "mode", "expected"),
    [
        ({0: "a", 4: "b"}, None, ["a", Blend("a", "b", 0.25), Blend("a", "b", 0.5), Blend("a", "b", 0.75), "b", "b"]),
        ({0: "a", 4: "b"}, "cut", ["a", "a", "a", "a", "b", "b"]),
        ({2: "a", 3: "b"}, "linear", ["a", "a", "a", "b", "b", "b"]),
        ({5: "b", 1: "a"}, "linear", ["a", "a", *(Blend("a", "b", n / 4) for n in (1, 2, 3)), "b"]),
        ({"0": "a", "5": "a"}, None, ["a"] * 6),
        ({3: "a"}, None, ["a"] * 6),
        ({0: "a", 10: "b"}, None, ["a", *(Blend("a", "b", n / 10) for n in range(1, 6))]),
        ({0: "a", 2: "", 4: "b"}, None,
         ["a", Blend("a", "", 0.5), "", Blend("", "b", 0.5), "b", "b"]),
    ],
)  # fmt: skip
def test_each_frame_has_its_prompt(prompt: dict[Any, str], mode: str | None, expected: list[str | Blend]) -> None:
    request = Request(prompt, frames=6, travel_mode=mode)
    assert request.prompts(0, 6) == expected
    assert request.prompts(2, 3) == expected[2:5]
    assert Request(prompt, frames=None, travel_mode=mode).prompts(0, 6) == expected


@pytest.mark.parametrize(
    ("prompt", "mode", "message"),
    [
        ({}, None, "the prompts have no key"),
        ({-1: "a"}, None, "a key of the prompts is -1: expected each frame once, from 0"),
        ({0.5: "a"}, None, "a key of the prompts is 0.5: expected the index of a frame"),
        ({"x": "a"}, None, "a key of the prompts is 'x'"),
        ({True: "a"}, None, "a key of the prompts is True"),
        ({1: "a", "1": "b"}, None, "a key of the prompts is '1': expected each frame once"),
        ({0: 7}, None, "expected texts"),
        ({0: "a", 7: "b", 9: "c"}, None, "the prompt of frame 9 has no effect in a clip of 6 frames"),
        ({0: "a", 5: "b", 6: "c"}, None, "the prompt of frame 6 has no effect"),
        ({0: "a", 6: "b"}, "cut", "the prompt of frame 6 has no effect"),
        ({0: "a"}, "jump", "unknown travel_mode 'jump': expected one of linear, cut"),
    ],
)
def test_a_wrong_schedule_is_named(prompt: dict[Any, str], mode: str | None, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Request(prompt, frames=6, travel_mode=mode)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], {0: "a"}])
def test_a_mode_without_effect_warns_and_is_not_recorded(prompt: Any) -> None:
    with pytest.warns(UserWarning, match="travel_mode has no effect"):
        assert Request(prompt, travel_mode="cut").travel_mode is None


def test_between_two_prompts_contexts_are_interpolated_token_by_token(model: ZS2) -> None:
    """By hand; and the prompts themselves to the bit."""
    request = Request({0: "a cat", 4: "the dog sat"}, "sad", frames=5)
    conditioning = Conditioning(model.image_model, request, (16, 16))
    got = conditioning.frames(0, 5, 7.5)
    ends = model.text(["a cat", "the dog sat"], ["sad"])
    shares = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    context = ends.context[1] + shares[:, None, None] * (ends.context[2] - ends.context[1])
    expected = model.unet.text_keys_values(torch.cat([ends.context[:1].expand(5, -1, -1), context]))
    for (keys, values), (wanted_keys, wanted_values) in zip(got.text, expected, strict=True):
        assert_close(keys, wanted_keys, MODULE)
        assert_close(values, wanted_values, MODULE)
    if ends.pooled is not None:
        pooled = ends.pooled[1] + shares[:, None] * (ends.pooled[2] - ends.pooled[1])
        expected_added = model.unet.added_embedding(torch.cat([ends.pooled[:1].expand(5, -1), pooled]), (16, 16))
        assert got.added is not None
        assert_close(got.added, expected_added, MODULE)


def test_a_schedule_is_prompts_a_frame_where_they_agree(model: ZS2) -> None:
    options: dict[str, Any] = {"frames": 4, "steps": 2, "seed": 3}
    cut = model.latents({0: "a cat", 2: "the dog sat"}, travel_mode="cut", **options)
    assert torch.equal(cut, model.latents(["a cat", "a cat", "the dog sat"], **options))
    steep = model.latents({1: "a cat", 2: "the dog sat"}, **options)
    assert torch.equal(steep, cut)
    linear = model.latents({0: "a cat", 2: "the dog sat"}, **options)
    assert_close(linear[0], cut[0], CLIP)  # rounding: the number of projected texts differs
    assert not torch.equal(linear[1], cut[1])


def test_chunks_and_streams_make_the_same_clip(model: ZS2) -> None:
    room = model.tokenizer.max_length
    prompt = {0: "a (cat:1.3)", 2: " ".join(["dog"] * room), 5: "sat"}  # of one and two chunks of tokens
    options: dict[str, Any] = {"steps": 1, "seed": 3, "prompt_syntax": "a1111"}
    whole = model.latents(prompt, frames=6, **options)
    for chunk in (1, 4):
        assert_close(model.latents(prompt, frames=6, chunk=chunk, **options), whole, MODULE)
    assert_close(model.latents(prompt, frames=4, **options), whole[:4], MODULE)
    frames = model(prompt, frames=6, **options).frames
    stream = model.stream(prompt, chunk=2, **options)
    for frame, streamed in zip(frames, stream, strict=False):
        assert abs(frame.astype(int) - streamed.astype(int)).max() <= 1


def test_interpolated_prompts_are_in_the_memory_plan(model: ZS2) -> None:
    def text(prompt: Any, **more: Any) -> int:
        return model.plan(Request(prompt, frames=8, steps=1, **more)).memory.text

    one = text("a") // 2
    assert text({0: "a", 7: "b"}) == 9 * one
    assert text({0: "a", 7: "b"}, chunk=4) == 5 * one
    assert text({0: "a", 7: "b"}, travel_mode="cut") == 3 * one
    assert text({0: "a"}) == 2 * one


# --- files ------------------------------------------------------------------------------------------------------------

FILES = [
    ("0: panda\n15: fox", {0: "panda", 15: "fox"}),
    ("0:panda\n 15 :  fox  ", {0: "panda", 15: "fox"}),
    ("# mine\n\n15: fox\n0: panda", {15: "fox", 0: "panda"}),
    ('0: ""\n3: 熊猫 🐼', {0: "", 3: "熊猫 🐼"}),
    ("0: a: b\n3: at 12:30", {0: "a: b", 3: "at 12:30"}),
    ("00: a\n007: b", {0: "a", 7: "b"}),
    ("panda\nfox", ["panda", "fox"]),
    ("16:9 photo\n12:30 at noon", ["16:9 photo", "12:30 at noon"]),
    ("2 cats: sat", ["2 cats: sat"]),
    ("٣: panda", ["٣: panda"]),
    ("0: panda\nfox", "line 2: 'fox' has no frame, other lines have: expected `FRAME: prompt` on every line"),
    ("panda\n\n3: fox", "line 1: 'panda' has no frame"),
    ("0: panda\n0: fox", "line 2: frame 0 has a prompt already"),
    ("0: panda\n3:", "line 2: frame 3 has no prompt: write \"\""),
    ("0: panda --seed 3", "line 1: '--seed 3' can't stand here"),
    ("0: panda\n-3: fox", "line 2: '-3: fox' has no frame"),
    ("0: panda\n99: fox\n100: cat", "the prompt of frame 100 has no effect"),
    ("0: São Paulo".encode("latin-1"), "line 1: the bytes e3 6f 20 50"),
    ("0: a\n5: b".encode("utf-16"), {0: "a", 5: "b"}),
    ("0: a\n5: b".encode("utf-16-be"), "NUL bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), FILES)
def test_files_of_schedules(tmp_path: Path, content: str | bytes, expected: Any) -> None:
    file = tmp_path / "travel.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = {"travel": str(file), "frames": 20}
    if isinstance(expected, str):
        with pytest.raises(InputError, match=re.escape(expected)):
            list(clip_requests(options, OwnSettings()))
        return
    [(_, request)] = clip_requests(options, OwnSettings())
    assert request.prompt == (dict(sorted(expected.items())) if isinstance(expected, dict) else expected)


def test_a_clip_of_a_schedule_is_replayed_and_measured(tmp_path: Path, narrow: Path) -> None:
    file, out = tmp_path / "travel.txt", tmp_path / "a.webp"
    file.write_text("0: red apple\n4: blue star\n")
    words = ["--model", str(narrow), "--device", "cpu", "--steps", "1", "--frames", "5"]
    for mode in ([], ["--travel-mode", "cut"]):
        assert main([*words, "--travel", str(file), *mode, "--out", str(out), "--overwrite"]) == 0
        settings = read_settings(out)
        assert settings["prompt"] == {"0": "red apple", "4": "blue star"}
        assert settings["travel_mode"] == (mode[1] if mode else None)
        again = tmp_path / f"again{len(mode)}.webp"
        assert main(["--replay", str(out), "--model", str(narrow), "--out", str(again)]) == 0
        assert again.read_bytes() == out.read_bytes()
        scored = prompts_of("a", settings, 5)
        assert scored == ["red apple"] * (4 if mode else 3) + ["blue star"] * (1 if mode else 2)
    frames = Clip.open(out).frames
    assert (frames[0] != frames[4]).any()


@pytest.mark.parametrize("mode", [None, "cut"])
def test_a_stream_that_ends_early_keeps_the_prompts_that_count(mode: str | None) -> None:
    settings = {"frames": 10, "prompt": {"0": "a", "4": "b", "7": "c", "12": "d"}, "travel_mode": mode}
    whole = Request({0: "a", 4: "b", 7: "c", 12: "d"}, frames=13, travel_mode=mode)
    for count in range(1, 11):
        short = shortened(settings | {"frames": 13}, count)
        assert short["frames"] == count
        request = Request(short["prompt"], frames=count, travel_mode=mode if len(short["prompt"]) > 1 else None)
        assert request.prompts(0, count) == whole.prompts(0, count)
        with_next = [*settings["prompt"]][: len(short["prompt"]) + 1]
        if len(with_next) > len(short["prompt"]):  # one more would have no effect
            with pytest.raises(InputError, match="no effect"):
                Request({key: settings["prompt"][key] for key in with_next}, frames=count, travel_mode=mode)
