"""Clips of any length: in chunks, streamed, with the memory that was planned. (The scan: test_momentum.py.)"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, CLIP, LATENTS, REDUCTION, assert_close, in_float64
from hypothesis import given
from hypothesis import strategies as st

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS
from zs2.sampling.decoding import OVERLAP, TILE, decode, spans, tiled

PROMPT = "red apple on a sky blue background"
SAME = 1e-6  # of the largest latent, after all steps, with weights in float64
SMALL = {"steps": 2, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu", lam=0.5, mu=0.9)


@pytest.fixture(scope="module")
def exact(narrow: Path) -> ZS2:
    return in_float64(ZS2.from_pretrained(narrow, device="cpu", lam=0.5, mu=0.9))


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sa", "tma"])
def test_chunks_carry_what_the_solver_remembers(exact, attn):
    other = exact.variant(attn=attn)
    clip = {**SMALL, "steps": 5, "frames": 5, "sampler": "dpm++"}
    whole = other.latents(PROMPT, **clip, chunk=5)
    for chunk in (1, 3):
        assert_close(other.latents(PROMPT, **clip, chunk=chunk), whole, SAME)
    assert whole.shape[1] == exact.unet.config.in_channels
    ddim = other.latents(PROMPT, **{**clip, "sampler": "ddim"}, chunk=5)
    assert (ddim - whole).abs().max() > 0.05 * whole.abs().max()


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.long), 5.0])
@pytest.mark.parametrize("attn", ATTENTION_KINDS)
def test_chunks_make_the_latents_of_the_whole_clip(model, exact, attn, guidance):
    other = exact.variant(attn=attn)
    clip = {**SMALL, "frames": 9, "guidance": guidance}
    whole = other.latents(PROMPT, **clip, chunk=9)
    for chunk in (1, 3, 8):
        assert_close(other.latents(PROMPT, **clip, chunk=chunk), whole, SAME)
    single = model.variant(attn=attn)  # in float32
    assert_close(single.latents(PROMPT, **clip, chunk=3), single.latents(PROMPT, **clip, chunk=9), CLIP)


def test_chunks_of_text2video_zero_and_of_prompt_travel(exact):
    zero = exact.variant(attn="cfa", noise="text2video-zero")
    travel = [PROMPT, PROMPT, "rose", "panda face on a sky blue background"]
    for variant, prompt, steps in ((zero, PROMPT, 6), (exact, travel, 2), (zero, travel, 6)):
        clip = {**SMALL, "steps": steps, "frames": 5}
        whole = variant.latents(prompt, **clip, chunk=5)
        assert_close(variant.latents(prompt, **clip, chunk=2), whole, SAME)


def test_a_chunk_is_what_the_unet_is_given_and_stands_in_the_settings(model):
    rows = []
    handle = model.unet.conv_in.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    clip = model(PROMPT, frames=5, steps=1, height=16, width=16, chunk=2)
    handle.remove()
    assert rows == [4, 4, 2]
    assert clip.settings["chunk"] == 2
    assert model(PROMPT, frames=2, steps=1, height=16, width=16).settings["chunk"] == 2
    assert model(PROMPT, frames=2, steps=1, height=16, width=16, chunk=9).settings["chunk"] == 2


@pytest.mark.parametrize(("chunk", "message"), [(0, "chunk is 0: expected from 1 to"), ("a", "chunk is 'a'")])
def test_chunks_that_can_not_be_meant(chunk, message):
    with pytest.raises(InputError, match=message):
        Request(PROMPT, chunk=chunk)


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {"attn": "tma"},
        {"noise": "text2video-zero", "attn": "tma"},
        *(pytest.param({"attn": attn}, marks=pytest.mark.long) for attn in ATTENTION_KINDS if attn != "tma"),
        pytest.param({"noise": "mixed"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_stream_begins_with_the_frames_of_the_clip(model, variant):
    """Whether it is to end or not, and bit for bit where the chunks are the same."""
    sampler = "dpm++" if variant in ({"attn": "tma"}, {"noise": "text2video-zero", "attn": "tma"}) else "ddim"
    other = model.variant(**variant)
    steps = 6 if other.method.noise == "text2video-zero" else 3
    clip = {**SMALL, "steps": steps, "sampler": sampler, "guidance": 3.0, "seed": 3, "chunk": 2}
    want = other([PROMPT, "rose"], frames=5, **clip).frames
    streamed = list(other.stream([PROMPT, "rose"], frames=5, **clip))
    assert np.array_equal(np.stack(streamed), want)
    endless = list(itertools.islice(other.stream([PROMPT, "rose"], **clip), 7))
    assert np.array_equal(np.stack(endless[:4]), want[:4])
    assert np.abs(endless[4].astype(int) - want[4]).max() <= 1


def test_frames_come_before_later_ones_are_begun(model):
    rows = []
    handle = model.unet.conv_in.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    stream = model.stream(PROMPT, chunk=3, guidance=1.0, **SMALL)
    assert rows == []
    for want in ([3, 3],) * 3 + ([3] * 4,):
        assert next(stream).shape == (32, 32, 3)
        assert rows == want
    handle.remove()


def test_a_state_device_that_is_the_models_own_has_no_effect(model):
    clip = {**SMALL, "frames": 3, "chunk": 1}
    want = np.stack(list(model.stream(PROMPT, **clip)))
    with pytest.warns(UserWarning, match="state_device cpu has no effect: the model is there, too"):
        frames = model.stream(PROMPT, **clip, state_device="cpu")
    assert np.array_equal(np.stack(list(frames)), want)


def test_only_a_stream_has_no_end(model):
    with pytest.raises(InputError, match="frames is None: expected a number"):
        model(PROMPT, frames=None)


# --- decoding ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(2, 200), st.data())
def test_tiles_cover_an_axis_and_overlap(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    found = spans(length, tile, overlap)
    assert found[0][0] == 0
    assert sum(found[-1]) == length
    for (start, size), (following, _) in itertools.pairwise(found):
        assert start < following <= start + size - overlap


@pytest.mark.parametrize("size", [(40, 40), (17, 50), (64, 100)])
def test_tiles_of_what_depends_on_nothing_else_are_the_whole(size):
    z = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))

    def enlarged(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(z, scale_factor=4, mode="nearest")

    assert_close(tiled(enlarged, z, 4, tile=80, overlap=16), enlarged(z), 1e-6)


def test_a_frame_decoded_in_tiles_is_near_the_whole(model):
    """Near: a tile has other statistics than the frame. These are small, an eighth of the real ones' width."""
    z = model.latents(PROMPT, frames=1, steps=4, height=128, width=96, chunk=1) / model.vae.config.scaling_factor
    whole, tiles = model.vae.decode(z), tiled(model.vae.decode, z, REDUCTION, tile=96, overlap=32)
    assert tiles.shape == whole.shape
    assert (tiles - whole).abs().max() > 0
    assert (tiles - whole).square().mean().sqrt() < 0.2 * whole.std()


@pytest.mark.long
def test_only_large_frames_are_decoded_in_tiles_and_that_is_said(exact):
    z = torch.zeros(1, LATENTS[0], 1024 // REDUCTION + 1, 1024 // REDUCTION)
    with pytest.warns(
        UserWarning, match=f"frames of 1024x{1024 + REDUCTION} are decoded in overlapping tiles, which is approximate"
    ):
        assert decode(exact.vae, z, 1).shape == (1, 1024 + REDUCTION, 1024, 3)
    assert (TILE % 8, OVERLAP % 8) == (0, 0)  # of a VAE's reduction
