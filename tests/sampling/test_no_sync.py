"""A step never waits for the host: on the device `meta`, which has no values to wait for, it meets no other device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zs2 import ZS2, Request
from zs2.method import ATTENTION_KINDS
from zs2.models.prompt_encoder import PromptEncoder
from zs2.sampling.sampler import Chunk, Sampler


class OneDevice(TorchDispatchMode):
    """Fails where an operator takes or makes a tensor elsewhere than on `meta`, such as a copy to or from the host.
    (`.item()` and `bool()` fail on `meta` by themselves.)"""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = {str(t.device) for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        assert places <= {"meta"}, f"{func} meets {places}"
        return out


class NoNumbers(TorchFunctionMode):
    """Fails where Python's numbers are made to a tensor, which copies them to the device; no operator shows it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            assert isinstance(args[0], torch.Tensor), f"{func} meets {args[0]}"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_else() -> Iterator[None]:
    """Within, everything is on `meta` and stays there."""
    with NoNumbers(), OneDevice():
        yield


@pytest.fixture(scope="module")
def model(narrow: Path) -> ZS2:
    here = ZS2.from_pretrained(narrow, device="cpu", lam=0.5)
    towers = [(copy.deepcopy(encoder).to("meta"), tokenizer) for encoder, tokenizer in here.text.towers]
    parts = (copy.deepcopy(here.unet).to("meta"), copy.deepcopy(here.vae).to("meta"))
    return ZS2(*parts, PromptEncoder(towers), here.schedule, method=here.method)


# What a kind of attention does depends on the states that it gets, on the branches, and on which blocks are computed: a
# clip has all of them in four steps. How it is guided, solved and prompted is the same with every kind.
EVERY = {"steps": 4, "guidance_interval": (0, 0.5), "deep_cache": 2}
OPTIONS = [
    {"steps": 3},
    {"steps": 3, "guidance": 1.0},
    {"steps": 4, "sampler": "dpm++", "deep_cache": 2},
    {"steps": 6, "guidance_interval": (0.2, 0.8), "deep_cache": 3},
    {"steps": 4, "prompt": ["rose", "rose", "rocket", "rocket"], "guidance_interval": (0, 0.5)},
]


@pytest.mark.parametrize(
    ("attn", "options"),
    [
        ("tma", EVERY),
        *(pytest.param(kind, EVERY, marks=pytest.mark.long) for kind in ATTENTION_KINDS if kind != "tma"),
        *(pytest.param("tma", one, marks=pytest.mark.long) for one in OPTIONS),
    ],
    ids=str,
)
def test_no_step_of_a_chunk_meets_the_host(model, attn, options):
    """In as few steps as have one of each kind: a first, a last, guided or not, with deep features anew or not."""
    request = Request(**({"prompt": "rose", "frames": 4, "chunk": 2} | options))
    sampler = Sampler(model.variant(attn=attn).plan(request))
    for first in (0, 2):
        sampler.conditioning.frames(first, 2, request.guidance)  # the text is encoded and projected once a clip
        sampler.conditioning.frames(first, 2, 1.0)
    x = sampler.plan.initial_noise().to("meta")
    chunks = [Chunk(first, x[first : first + 2]) for first in (0, 2)]
    with torch.no_grad():
        for i in range(request.steps):
            states = ()
            for chunk in chunks:
                if isinstance(request.prompt, list):  # prompts that differ from chunk to chunk are projected anew
                    sampler.conditioning.frames(chunk.first, 2, request.guided(i))
                with nothing_else():
                    states = sampler.step(i, chunk, states)
    assert [(len(chunk.latents), chunk.latents.device.type) for chunk in chunks] == [(2, "meta")] * 2


def test_what_would_meet_the_host_is_found(model):
    """The test's own test: numbers made to tensors, tensors to numbers, and copies."""
    x, here = torch.zeros(2, device="meta"), torch.zeros(2)
    for meet in (
        lambda: torch.tensor([500], device="meta"),
        lambda: torch.as_tensor(500, device="meta"),
        lambda: here.to("meta"),
        lambda: torch.zeros(2) + 1,
        lambda: here.add(1),
    ):
        with pytest.raises(AssertionError, match="meets"), nothing_else():
            meet()
    for wait in (lambda: x.sum().item(), lambda: bool(x.isfinite().all()), lambda: x.cpu(), lambda: x.nonzero()):
        with pytest.raises(RuntimeError), nothing_else():
            wait()
