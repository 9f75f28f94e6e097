"""Deep features taken over from step to step (DeepCache): what is computed, and that the whole UNet agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, assert_close, in_float64

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS
from zs2.sampling.ddim import DDIM
from zs2.sampling.memory import planned_memory

PROMPT = "red apple on a sky blue background"
SMALL = {"height": 32, "width": 32, "guidance": 3.0}
SAME = 1e-5


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu", lam=0.5, mu=0.9)


@pytest.fixture(scope="module")
def exact(narrow: Path) -> ZS2:
    return in_float64(ZS2.from_pretrained(narrow, device="cpu", lam=0.5, mu=0.9))


def replacing(unet, features):
    """Run the whole UNet, but give its last resnet these deep features: what taking them over has to amount to."""

    def before(module, inputs):
        x, *rest = inputs
        return (torch.cat([features, x[:, features.shape[1] :]], dim=1), *rest)

    return unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(before)


@pytest.mark.parametrize("attn", ATTENTION_KINDS)
@torch.no_grad()
def test_what_is_taken_over_replaces_what_would_be_computed(model, attn):
    unet = model.variant(attn=attn).unet
    text = unet.text_keys_values(model.text([PROMPT], [""]).context)
    x, y = (torch.randn(6, unet.config.in_channels, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    whole = unet(x, 700, text, frames=3)
    again = unet(x, 700, text, frames=3, deep=whole.deep)
    assert torch.equal(whole.prediction, again.prediction)
    assert again.deep is whole.deep

    got = unet(y, 600, text, frames=3, deep=whole.deep)
    handle = replacing(unet, whole.deep)
    want = unet(y, 600, text, frames=3)
    handle.remove()
    assert_close(got.prediction, want.prediction, SAME)
    exact = unet(y, 600, text, frames=3).prediction
    assert (got.prediction - exact).abs().max() > 0.01 * want.prediction.abs().max()  # and not what it would be
    blocks = len(unet.up_blocks[-1].attentions[-1].transformer_blocks) if unet.up_blocks[-1].attentions else 0
    met = len(got.states) - blocks  # the first block that the call meets
    assert not any(state is not None for state in got.states[:met])
    for state, other in zip(got.states[met:], want.states[met:], strict=True):
        assert (state is None) == (other is None)
        assert state is None or torch.equal(state, other)


@torch.no_grad()
def test_features_and_states_of_something_else_are_refused(model):
    text = model.unet.text_keys_values(model.text([PROMPT], []).context)
    x = torch.randn(2, model.unet.config.in_channels, 4, 4)
    output = model.unet(x, 700, text, frames=2)
    with pytest.raises(InputError, match="deep features of 2 latents for 1: expected the same"):
        model.unet(x[:1], 700, text, frames=1, deep=output.deep)
    count = len(output.states)
    with pytest.raises(InputError, match=f"{count - 1} states for {count} transformer blocks: expected one each"):
        model.unet(x, 600, text, frames=2, states=output.states[1:])


def test_a_clip_against_one_by_hand(model):
    """Deep features are made in steps 0, 2 and 4 of 5, of which 2 and 3 are guided."""
    request = {**SMALL, "frames": 2, "steps": 5, "seed": 3, "guidance": 7.5, "guidance_interval": (0.4, 0.8)}
    made = []
    handle = model.unet.mid_block.register_forward_hook(lambda module, args, out: made.append(len(out)))
    got = model.latents(PROMPT, **request, deep_cache=2)
    handle.remove()
    assert made == [2, 4, 2]

    latents, deep = model.plan(Request(PROMPT, **request)).initial_noise(), None
    context, solver = model.text([PROMPT], [""]).context, DDIM(model.schedule, 5)
    for i, t in enumerate(solver.timesteps):
        guided = i in (2, 3)
        deep = None if i in (0, 2, 4) else deep
        with torch.no_grad():
            x = torch.cat([latents] * 2) if guided else latents
            made_now = model.unet(x, t, context if guided else context[1:], frames=2, deep=deep)
        output, deep = made_now.prediction, made_now.deep
        if guided:
            u, c = output.chunk(2)
            output = u + 7.5 * (c - u)
        latents, _ = solver.step(i, latents, output, None)
    assert_close(got, latents, SAME)


def test_where_guidance_begins_all_is_computed_and_where_it_ends_the_prompts_features_go_on(model):
    made, all_rows = [], []
    handles = [
        model.unet.mid_block.register_forward_hook(lambda module, args, out: made.append(len(out))),
        model.unet.conv_in.register_forward_hook(lambda module, args, out: all_rows.append(len(out))),
    ]
    model.latents(PROMPT, **SMALL, frames=2, steps=6, deep_cache=6, guidance_interval=(0.3, 0.7))
    for handle in handles:
        handle.remove()
    assert all_rows == [2, 2, 4, 4, 4, 2]
    assert made == [2, 4]


@pytest.mark.parametrize(
    ("attn", "noise", "sampler"),
    [
        *((kind, "dnm", "dpm++") for kind in ATTENTION_KINDS),
        *((kind, "text2video-zero", "ddim") for kind in ("cfa", "tma")),
    ],
)
def test_chunks_and_streams_are_the_whole_clip(exact, attn, noise, sampler):
    """Of the steps, 0, 2 and 3 compute all, the first without guidance; 1 and 5 are without it, 4 with it."""
    other = exact.variant(attn=attn, noise=noise)
    clip = {**SMALL, "steps": 6, "frames": 5, "seed": 2, "deep_cache": 3, "sampler": sampler}
    clip["guidance_interval"] = (0.2, 0.8)
    prompt = [PROMPT, PROMPT, "rose"]
    whole = other.latents(prompt, **clip, chunk=5)
    for chunk in (1, 2):
        assert_close(other.latents(prompt, **clip, chunk=chunk), whole, SAME / 10)
    want = other(prompt, **clip, chunk=2)
    assert want.settings["deep_cache"] == 3
    assert np.array_equal(np.stack(list(other.stream(prompt, **clip, chunk=2))), want.frames)


def test_one_is_exact_and_more_is_another_clip(model):
    clip = {**SMALL, "frames": 2, "steps": 6}
    exact = model.latents(PROMPT, **clip)
    assert torch.equal(model.latents(PROMPT, **clip, deep_cache=1), exact)
    near, far = (model.latents(PROMPT, **clip, deep_cache=every) for every in (2, 6))
    assert 0 < (near - exact).norm() < (far - exact).norm()


def test_a_deep_cache_that_can_not_be_meant_or_has_no_effect():
    for wrong in (0, -1, 1.5, "a", None):
        with pytest.raises(InputError, match="deep_cache is"):
            Request(PROMPT, deep_cache=wrong)
    with pytest.warns(UserWarning, match="deep_cache has no effect on a single step"):
        Request(PROMPT, steps=1, deep_cache=2)


def test_the_plan_has_room_for_deep_features(model):
    def deep(**request):
        return planned_memory(model.plan(Request(PROMPT, frames=6, chunk=2, **request))).deep

    area = model.unet.config.sample_size[0] * model.unet.config.sample_size[1]
    one = model.unet.config.block_out_channels[0] * area * 4
    assert deep() == 0
    assert deep(deep_cache=2) == 12 * one
    assert deep(deep_cache=2, guidance=1.0) == 6 * one
    assert planned_memory(model.plan(Request(PROMPT, frames=6, chunk=2, deep_cache=2), stream=True)).deep == 4 * one
