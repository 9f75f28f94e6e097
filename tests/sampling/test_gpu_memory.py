"""The memory plan of a GPU: what counts there, what is free, and what is advised where it is too little.

Plans need only the shapes, dtypes and devices of weights, so those on CUDA are fake tensors.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from simulated_device import AVAILABLE, simulated_device
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.models.image_model import ImageModel
from zs2.models.prompt_encoder import PromptEncoder
from zs2.sampling.memory import PROCESS, WORKSPACE, planned_memory
from zs2.sampling.plan import SamplingPlan
from zs2.system.free_memory import free_memory

FAKE = FakeTensorMode()


@pytest.fixture(scope="module")
def model(narrow: Path) -> ZS2:
    return ZS2.from_pretrained(narrow, device="cpu")


def moved(model: ImageModel, device: str) -> ImageModel:
    """The model with fake weights on a device."""

    def fake(module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        for one in module.modules():
            for name, weight in one.named_parameters(recurse=False):
                with FAKE:
                    empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                one._parameters[name] = nn.Parameter(empty, requires_grad=False)
        return module

    towers = [(fake(encoder), tokenizer) for encoder, tokenizer in model.text.towers]
    return ImageModel(fake(model.unet), fake(model.vae), PromptEncoder(towers), model.schedule)


def plan(model: ZS2, device: str, **options: int) -> SamplingPlan:
    here = model.plan(Request("rose", frames=6, **options))
    return replace(here, model=moved(here.model, device), state_device=torch.device(device))


def test_what_counts_on_cuda(model: ZS2) -> None:
    """Frames are on the host, the libraries have a workspace, and convolutions reorder as on a CPU."""
    cpu, cuda, mps = (vars(planned_memory(plan(model, device, chunk=4))) for device in ("cpu", "cuda", "mps"))
    assert (cpu["process"], cuda["process"], mps["process"]) == (PROCESS, WORKSPACE, 0)
    assert cpu["frames"] == 2 * 6 * 3 * 64 * 64
    assert cuda["frames"] == mps["frames"] == 0
    same = ("weights", "latents", "text", "states", "deep")
    assert [cuda[name] for name in same] == [cpu[name] for name in same] == [mps[name] for name in same]
    assert cuda["unet"] == cpu["unet"] >= mps["unet"]
    assert cuda["decoding"] == cpu["decoding"] > mps["decoding"]


def test_what_is_free_on_mps_is_the_recommended_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 5 * 2**30)
    assert free_memory(torch.device("mps")) == 5 * 2**30


@pytest.mark.skipif(not AVAILABLE, reason=f"torch {torch.__version__} can't take a device from Python")
@pytest.mark.parametrize(
    ("device", "options", "advice"),
    [
        ("sim", {}, "half precision, or --stream"),
        ("sim", {"stream": True}, "half precision, or --state-device cpu"),
        ("sim", {"stream": True, "state_device": "cpu"}, "half precision"),
        ("cpu", {}, "half precision, or --stream"),
        ("cpu", {"stream": True}, "half precision"),
    ],
)
def test_where_not_one_frame_fits_what_is_advised_is_not_on_already(
    narrow: Path, monkeypatch: pytest.MonkeyPatch, device: str, options: dict[str, str], advice: str
) -> None:
    monkeypatch.setattr("zs2.sampling.memory.free_memory", lambda device, sharing: 2**20)
    with simulated_device():
        model = ZS2.from_pretrained(narrow, device=device)
        with pytest.raises(InputError, match=f"not even one frame at a time fits: try a smaller size, {advice}$"):
            model.plan(Request("rose"), **options)
