"""A compiled UNet: one graph without a break for every kind of call, and the same numbers.

Graphs are run as they are captured, but in a slow test, where torch's own compiler makes code of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, CLIP, LATENTS, NARROW, assert_close, assert_same_picture
from torch import Tensor, nn

from zs2 import ZS2
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS
from zs2.models.config import UNetConfig
from zs2.models.unet import Residuals, UNet, UNetOutput
from zs2.sampling.conditioning import PickedRows

WIDTH = NARROW["unet"]["cross_attention_dim"]
ONE_LEVEL = {
    "block_out_channels": [16],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
Graphs = list[torch.fx.GraphModule]


def captured() -> tuple[Graphs, dict[str, Any]]:
    """A list of the graphs that will be captured, and the options that compile so. A break in a graph is an error."""
    graphs: Graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    return graphs, {"fullgraph": True, "backend": backend}


@pytest.fixture(autouse=True)
def no_graphs_before() -> None:
    torch.compiler.reset()


@pytest.fixture(scope="module")
def model(narrow: Path) -> ZS2:
    return ZS2.from_pretrained(narrow, device="cpu")


@pytest.fixture(scope="module")
def weights(narrow: Path) -> UNet:
    """A UNet of a single level, which is captured in less time."""
    config = UNetConfig.from_json(json.loads((narrow / "unet" / "config.json").read_text()) | ONE_LEVEL)
    torch.manual_seed(0)
    return UNet(config)


def pair(weights: UNet, kind: str) -> tuple[UNet, UNet, Graphs]:
    """Two UNets on the same weights, of which the second is compiled; the graphs of that."""
    graphs, options = captured()
    unet, compiled = UNet(weights.config, kind), UNet(weights.config, kind)
    for one in (unet, compiled):
        one.load_state_dict(weights.state_dict(), assign=True)
        one.eval().requires_grad_(False)
    compiled.compile(**options)
    return unet, compiled, graphs


def inputs(frames: int) -> tuple[Tensor, Tensor]:
    """Latents and a text of two branches."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * frames, *LATENTS, generator=generator), torch.randn(2, 5, WIDTH, generator=generator)


CALLS: dict[str, Callable[[Any, int, UNetOutput], tuple[Any, dict[str, Any]]]] = {  # the text, and options
    "first chunk": lambda text, frames, first: (text, {}),
    "later chunk": lambda text, frames, first: (text, {"states": first.states}),
    "deep features": lambda text, frames, first: (text, {"deep": first.deep}),
    "a text a frame": lambda text, frames, first: (
        PickedRows(text, torch.tensor([0] * frames + [1] * frames)),
        {"states": first.states},
    ),
}


# Capturing graphs takes seconds: `make test-long` has three of these, make test-slow the others.
LONG = [("tma", "deep features"), ("tma", "a text a frame"), ("tma-two-tap", "later chunk")]
OTHERS = [pair for pair in itertools.product(ATTENTION_KINDS, CALLS) if pair not in LONG]
MARKED = [(LONG, pytest.mark.long), (OTHERS, pytest.mark.slow)]


@pytest.mark.parametrize(("kind", "call"), [pytest.param(*one, marks=mark) for some, mark in MARKED for one in some])
@torch.no_grad()
def test_a_call_is_one_graph_with_3_2_and_1_frames(weights: UNet, kind: str, call: str) -> None:
    unet, compiled, graphs = pair(weights, kind)
    for frames in (3, 2, 1):
        x, context = inputs(frames)
        first = unet(x, 500, context, frames=frames)
        text, options = CALLS[call](unet.text_keys_values(context), frames, first)
        before = len(graphs)
        got, want = (one(x, torch.tensor(500), text, frames=frames, **options) for one in (compiled, unet))
        assert len(graphs) - before <= 1
        assert torch.equal(got.prediction, want.prediction)
        assert torch.equal(got.deep, want.deep)
        for state, other in zip(got.states, want.states, strict=True):
            assert state is other is None or torch.equal(state, other)
    assert graphs


@pytest.mark.long
@torch.no_grad()
def test_a_prompt_that_is_not_projected_and_residuals(weights: UNet) -> None:
    unet, compiled, graphs = pair(weights, "tma")
    x, context = inputs(2)
    skip = torch.randn(4, 16, *LATENTS[1:])
    for residuals in (None, Residuals([skip, -skip], 2 * skip)):
        got, want = (one(x, 500, context, frames=2, residuals=residuals) for one in (compiled, unet))
        assert torch.equal(got.prediction, want.prediction)
    assert len(graphs) == 2


@pytest.mark.long
def test_a_clip_of_a_variant_of_a_compiled_model(narrow: Path, model: ZS2) -> None:
    """The variant has the same weights, is compiled likewise, and makes the clip of a variant that is not."""
    compiled = ZS2.from_pretrained(narrow, device="cpu")
    graphs, options = captured()
    compiled.unet.compile(**options)
    variants = [one.variant(attn="cfa") for one in (compiled, model)]
    got, want = (one.latents("rose", frames=3, chunk=2, steps=2) for one in variants)
    assert torch.equal(got, want)
    assert graphs
    both = zip(compiled.unet.parameters(), variants[0].unet.parameters(), strict=True)
    assert all(weight.data_ptr() == other.data_ptr() for weight, other in both)


def test_compile_is_an_option_of_loading(narrow: Path, model: ZS2) -> None:
    assert model.unet.compiled is None
    assert model.variant(attn="sa").unet.compiled is None
    compiled = ZS2.from_pretrained(narrow, device="cpu", compile=True)
    for one in (compiled, compiled.variant(attn="cfa"), compiled.variant(lam=0.5)):
        assert one.unet.compiled is not None
        assert isinstance(one.unet, UNet)
        assert [*one.unet.state_dict()] == [*model.unet.state_dict()]


def test_where_torch_cannot_compile(model: ZS2, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("torch.compile is not supported on this Python\nmore")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    with pytest.raises(InputError, match=r"torch can't compile here \(torch.compile is not supported on this Python\)"):
        model.variant(attn="sa").unet.compile()


@pytest.mark.slow
def test_torchs_own_compiler_makes_the_same_clip() -> None:
    """Chunks of 2 frames and of 1, so that it meets another number of frames, and states."""
    request = {"frames": 3, "chunk": 2, "steps": 3}
    models = [ZS2.from_pretrained(CHECKPOINT, device="cpu", compile=compile) for compile in (True, False)]
    got, want = (one.latents("rose", **request) for one in models)
    assert_close(got, want, CLIP)
    assert_same_picture(*(torch.from_numpy(one.decode(x)) for one, x in zip(models, (got, want), strict=True)))


@pytest.mark.slow
def test_where_the_compiler_fails_at_the_first_step(model: ZS2) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise OSError("no compiler here")

    compiled = model.variant(attn="sa")
    compiled.unet.compile(backend=broken)
    with pytest.raises(InputError, match=r"torch can't compile here \(.*\): leave compile out"):
        compiled.latents("rose", frames=1, steps=1)
