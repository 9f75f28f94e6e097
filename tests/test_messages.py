"""What Python says of the API, and of a keyword that a call does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, LAM, NAME, SIDE

import zs2
from zs2 import ZS2, Clip
from zs2.errors import InputError


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda _: ZS2.from_pretrained("sd15", latm=0.1),
            "from_pretrained() has no keyword 'latm'; did you mean 'lam'?",
        ),
        (lambda _: ZS2.from_pretrained("sd15", steps=3), "has no keyword 'steps'; give it to model(steps=3)"),
        (lambda model: model("rose", step=3), "model() has no keyword 'step'; did you mean 'steps'?"),
        (lambda model: model.latents("rose", fps=3), "model.latents() has no keyword 'fps'; give it to model(fps=3)"),
        (
            lambda model: model.stream("rose", framse=3),
            "model.stream() has no keyword 'framse'; did you mean 'frames'?",
        ),
        (lambda model: model("rose", lam=0.3), "model() has no keyword 'lam'; give it to model.variant(lam=0.3)"),
        (lambda model: model("rose", noise="iid"), "give it to model.variant(noise='iid')"),
        (lambda model: model("rose", device="cpu"), "give it to ZS2.from_pretrained(device='cpu')"),
        (lambda model: model("rose", guidance_scale=3), "did you mean 'guidance'?"),
        (lambda model: model.latents("rose", num_frames=3), "did you mean 'frames'?"),
        (lambda model: model.stream("rose", muu=1), "did you mean 'mu'?"),
        (lambda model: model.variant(nois="iid"), "model.variant() has no keyword 'nois'; did you mean 'noise'?"),
        (lambda model: model.variant(steps=3), "give it to model(steps=3)"),
        (lambda model: model("rose", q=[3]), "model() has no keyword 'q'"),
        (lambda model: model("rose", num_inference_steps=3), "did you mean 'steps'?"),  # a word of it
        (lambda model: model("rose", generator=3), "did you mean 'seed'?"),  # what other programs call it
        (lambda model: model.variant(attention="sa"), "did you mean 'attn'?"),
    ],
)
def test_an_unknown_keyword_is_answered_with_the_one_that_is_meant(model: ZS2, call: Callable, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(model)
    assert str(caught.value).endswith(words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.text("rose"), "texts are 'rose': expected a list of them"),  # not letter by letter
        (lambda model: model.text(["rose"], "blurry"), "texts are 'blurry': expected a list of them"),
        (lambda model: model.text(["rose", 3]), r"texts are \['rose', 3\]: expected a list of them"),
        (lambda model: model.text([]), "no text to encode"),
        (lambda model: model.tokenizer.encode("rose"), "texts are 'rose': expected a list of them"),
        (lambda model: model.plan("rose"), "request is 'rose': expected a Request"),
        (lambda model: next(model.sample("rose")), "request is 'rose': expected a Request"),
        (
            lambda model: model.decode(torch.zeros(1, 3, 8, 8)),
            r"latents are \(1, 3, 8, 8\): expected a tensor \(frames",
        ),
        (lambda model: model.decode(3), "latents are 3: expected a tensor"),
        (lambda model: model.decode(model.latents("rose", frames=1, steps=1), chunk=0), "chunk is 0"),
        (lambda _: ZS2.from_pretrained(CHECKPOINT, vae=5), "vae is 5: expected a folder"),
        (
            lambda _: Clip(np.zeros((1, 4, 4, 3), np.uint8), settings=3),
            "settings are 3, 1 character: expected a JSON obj",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(model: ZS2, call: Callable, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(model)


def test_a_warning_points_to_the_line_of_the_caller(model: ZS2) -> None:
    calls: list[Callable] = [
        lambda: ZS2.from_pretrained(CHECKPOINT, prediction="v"),
        lambda: model("zeppelin", frames=1, steps=1),
        lambda: model("rose", frames=1, steps=1, strength=0.5),
        lambda: model.variant(noise="iid", lam=0.3)("rose", frames=1, steps=1),
        lambda: next(model.stream("rose " * 40, steps=1)),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="has no effect|names none|tokens") as caught:
            call()
        assert {Path(one.filename).name for one in caught} == {Path(__file__).name}


def test_dir_is_the_api() -> None:
    assert dir(zs2) == ["Clip", "FAST", "Request", "Step", "ZS2", "__version__", "replay"]
    assert all(hasattr(zs2, name) for name in dir(zs2))
    assert zs2.FAST["steps"] == 20
    with pytest.raises(AttributeError, match="'zs2' has no attribute 'Video'"):
        zs2.Video  # noqa: B018


def test_a_model_says_what_it_is(model: ZS2) -> None:
    assert repr(model) == f"<ZS2('{NAME}', attn='tma', mu=0.98, noise='dnm', lam={LAM}): {SIDE}x{SIDE}, float32 on cpu>"
    other = repr(model.variant(attn="sa", noise="mixed"))
    assert other == f"<ZS2('{NAME}', attn='sa', noise='mixed', alpha=1.0): {SIDE}x{SIDE}, float32 on cpu>"
    parts = ZS2(model.unet, model.vae, model.text, model.schedule)
    assert repr(parts) == f"<ZS2(…, attn='tma', mu=0.98, noise='dnm', lam=0.01): {SIDE}x{SIDE}, float32 on cpu>"


def test_code_without_a_name_is_warned_too() -> None:
    """Code that `exec` runs has no `__name__` in its globals."""
    with pytest.warns(UserWarning, match="no effect"):
        exec("from zs2 import Request\nRequest('rose', strength=0.5)", {})
