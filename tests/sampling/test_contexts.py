"""Contexts that are given instead of prompts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLIP, MODULE, assert_close, write_tiny

from zs2 import ZS2, Clip, Request, replay
from zs2.errors import InputError
from zs2.models.prompt_encoder import Encoded
from zs2.sample import main
from zs2.sampling.prompt_syntax import parse

OPTIONS: dict[str, Any] = {"frames": 3, "steps": 2, "seed": 3}


@pytest.fixture(scope="module", params=["sd", "xl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ZS2:
    folder = write_tiny(tmp_path_factory.mktemp("model") / "m", request.param)
    return ZS2.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("guidance", [7.5, 1, 0])
def test_the_context_of_a_prompt_makes_the_clip_of_the_prompt(model: ZS2, guidance: float) -> None:
    options = OPTIONS | {"guidance": guidance}
    by_prompt = model.latents("a cat" if guidance else "", negative_prompt="sad" if guidance != 1 else "", **options)
    context = {"context": model.text(["a cat"])} if guidance else {}
    negative = {"negative_context": model.text([], ["sad"])} if guidance != 1 else {}
    assert_close(model.latents("", **context, **negative, **options), by_prompt, CLIP)
    if guidance == 7.5:
        assert_close(model.latents("", negative_prompt="sad", **context, **options), by_prompt, CLIP)
        assert_close(model.latents("a cat", **negative, **options), by_prompt, CLIP)


def test_a_context_may_have_a_row_a_frame(model: ZS2) -> None:
    rows = model.text(["a cat", "the dog sat"])
    by_prompt = model.latents(["a cat", "the dog sat"], **OPTIONS)
    whole = model.latents("", context=rows, **OPTIONS)
    assert_close(whole, by_prompt, CLIP)
    assert_close(model.latents("", context=rows, chunk=1, **OPTIONS), whole, MODULE)
    frames = [torch.from_numpy(frame).float() for frame in model.stream("", context=rows, chunk=2, **OPTIONS)]
    assert_close(torch.stack(frames), torch.from_numpy(model("", context=rows, **OPTIONS).frames).float(), 0.01)


def test_a_context_may_be_longer_than_one_chunk(model: ZS2) -> None:
    """The negative prompt is then padded, as with prompts that long."""
    long = " ".join(["cat"] * model.tokenizer.max_length)
    rows = model.text([parse(long)], chunks=2)
    by_prompt = model.latents(long, prompt_syntax="a1111", **OPTIONS)
    assert_close(model.latents("", context=rows, prompt_syntax="a1111", **OPTIONS), by_prompt, CLIP)
    memory = [model.plan(Request("", context=one, **OPTIONS)).memory.text for one in (rows, model.text(["a"]))]
    assert memory[0] == 2 * memory[1]
    with pytest.raises(InputError, match="expected equally many"):
        model.latents("", context=model.text(["a"]), negative_prompt=long, prompt_syntax="a1111", **OPTIONS)


def test_the_settings_have_a_digest_of_a_context(model: ZS2, tmp_path: Path) -> None:
    rows = model.text(["a cat"])
    clips = [
        model("", context=rows, **OPTIONS),
        model("", context=Encoded(rows.context + 1, rows.pooled), **OPTIONS),
        model("", negative_context=rows, **OPTIONS),
    ]
    assert len({clip.settings["context"] for clip in clips}) == 3
    assert clips[2].settings["negative_context"] == clips[0].settings["context"]
    assert re.fullmatch(r"[0-9a-f]{64}", clips[0].settings["context"])
    clips[0].save(tmp_path / "a.webp")
    assert main(["--replay", str(tmp_path / "a.webp")]) == 2


def test_a_clip_of_a_context_is_replayed_in_python(model: ZS2, tmp_path: Path) -> None:
    rows, file = model.text(["a cat"]), tmp_path / "a.webp"
    clip = model.variant(noise="mixed")("", context=rows, fps="29.97", **OPTIONS)
    clip.save(file)
    again = replay(model, file, context=rows)
    assert (again.frames == clip.frames).all()
    assert (again.settings, again.fps) == (clip.settings, clip.fps)
    with pytest.raises(InputError, match="made from a context: give the same in Python"):
        replay(model, file)
    with pytest.raises(InputError, match="the clip was made from another context: give the same"):
        replay(model, file, context=model.text(["a dog"]))
    no_latents = pytest.raises(InputError, match="the clip was made from no latents: leave it out")
    with no_latents, pytest.warns(UserWarning, match="the seed has no effect"):
        replay(model, file, context=rows, latents=torch.zeros(3, *model.plan(Request("", **OPTIONS)).latent_shape))
    with pytest.raises(TypeError, match=r"replay\(\) has no keyword 'seed'"):
        replay(model, file, seed=1)


def test_a_clip_of_the_command_is_replayed_in_python(narrow: Path, tmp_path: Path) -> None:
    words = ["--model", str(narrow), "--device", "cpu", "--steps", "2", "--frames", "2", "--attn", "cfa", "--seed", "5"]
    assert main([*words, "--out", str(tmp_path / "a.webp"), "fox face"]) == 0
    model = ZS2.from_pretrained(narrow, device="cpu")
    clip = Clip.open(tmp_path / "a.webp")
    again = replay(model, tmp_path / "a.webp")
    assert (again.frames == clip.frames).all()
    assert again.settings == clip.settings
    half = ZS2.from_pretrained(narrow, device="cpu", dtype="bfloat16")
    with pytest.raises(InputError, match="made with dtype float32 and compile False, the model has bfloat16"):
        replay(half, tmp_path / "a.webp")


def test_a_wrong_context_is_named(model: ZS2) -> None:
    rows = model.text(["a cat", "a dog"])
    tokens, width = rows.context.shape[1:]
    cases: list[tuple[Any, str]] = [
        ("a cat", "context is 'a cat': expected a tensor"),
        (rows.context[:, :-1], f"context is (2, {tokens - 1}, {width}): expected (rows, {tokens}·k, {width})"),
        (rows.context[..., :-1], f"context is (2, {tokens}, {width - 1})"),
        (rows.context[0, 0], f"context is ({width},)"),
        (rows.context[:0], f"context is (0, {tokens}, {width})"),
        (replace(rows, context=rows.context.int()), "context: expected floating-point numbers"),
        (replace(rows, context=rows.context / 0), "none of them NaN or infinite"),
        (Encoded(rows.context.repeat(2, 1, 1), None if rows.pooled is None else rows.pooled.repeat(2, 1)), "4 rows"),
    ]
    pooled = torch.zeros(2, 7) if rows.pooled is None else None
    cases.append(
        (replace(rows, pooled=pooled), "the pooled text of context is " + ("None" if pooled is None else "(2"))
    )
    for context, message in cases:
        with pytest.raises(InputError, match=re.escape(message)):
            model.latents("", context=context, **OPTIONS)
    with pytest.raises(InputError, match="negative_context has 2 rows: expected from 1 to 1"):
        model.latents("", negative_context=rows, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a", "context": True}, "the prompt has no effect where a context is given"),
        ({"prompt": "", "context": True, "clip_skip": 1}, "the clip_skip has no effect"),
        ({"prompt": "", "context": True, "guidance": 0}, "the context has no effect where the guidance is 0"),
        ({"prompt": "a", "negative_context": True, "negative_prompt": "b"}, "the negative prompt has no effect"),
        ({"prompt": "a", "negative_context": True, "guidance": 1}, "the negative context has no effect"),
    ],
)
def test_what_has_no_effect_warns(options: dict[str, Any], message: str) -> None:
    row = torch.zeros(1, 77, 8)
    given = {name: row if value is True else value for name, value in options.items()}
    with pytest.warns(UserWarning, match=message):
        Request(**given)
