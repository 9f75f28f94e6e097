"""ControlNet: its residuals are those of diffusers, over chunks of frames too, and they steer the UNet."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from fixtures import tiny
from helpers import MODULE, Fixture, assert_close

from zs2.errors import InputError
from zs2.models.controlnet import ControlNet, ControlNetConfig, added_up
from zs2.models.unet import Residuals

FIXTURE = Fixture("controlnet")


def network(kind: str, attn: str = "sa", mu: float = 0.5) -> ControlNet:
    return FIXTURE.load(ControlNet(ControlNetConfig.from_json(FIXTURE.config[kind]), attn, mu), kind)


def embedded(control: ControlNet, case: str) -> torch.Tensor | None:
    """What SDXL adds to the time embedding."""
    if control.add_embedding is None:
        return None
    height, width = (int(side) for side in FIXTURE[f"{case}/ids"][0, :2])
    return control.added_embedding(FIXTURE[f"{case}/pooled"], (height, width))


@pytest.mark.parametrize("size", ["even", "odd"])
@pytest.mark.parametrize("kind", tiny.CONTROLS)
def test_residuals(kind: str, size: str) -> None:
    control, case = network(kind), f"{kind}/{size}"
    hint, t = control.encode_hints(FIXTURE[f"{case}/hint"]), int(FIXTURE[f"{case}/t"])
    x, context, added = FIXTURE[f"{case}/x"], FIXTURE[f"{case}/context"], embedded(control, case)
    got, states = control(x, t, context, hint, frames=2, scale=0.7, added=added)
    assert len(states) == len(control.transformer_blocks())
    for i, skip in enumerate(got.skips):
        assert_close(skip, FIXTURE[f"{case}/skip {i}"], MODULE)
    assert f"{case}/skip {len(got.skips)}" not in FIXTURE.tensors
    assert_close(got.middle, FIXTURE[f"{case}/middle"], MODULE)
    shallow, _ = control(x, t, context, hint, frames=2, scale=0.7, added=added, shallow=True)
    assert torch.equal(shallow.skips[0], got.skips[0])
    assert (len(shallow.skips), shallow.middle) == (1, None)


@pytest.mark.parametrize("attn", ["tma", "cfa", "tma-two-tap"])
def test_residuals_of_chunks_are_those_of_the_whole(attn: str) -> None:
    """And a frame sees those before it: the residuals are not those of self-attention."""
    control, frames = network("sd", attn), 4
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(shape, generator=generator) for shape in ((2 * frames, 4, 4, 6), (2, 6, 16)))
    hint = control.encode_hints(tiny.hint(1, frames, 8, 12).permute(0, 3, 1, 2) / 255)
    whole, _ = control(x, 50, context, hint, frames=frames)
    states, middles = (), []
    for first, last in pairwise((0, 1, 3, 4)):
        chunk = x.unflatten(0, (2, frames))[:, first:last].flatten(0, 1)
        piece, states = control(chunk, 50, context, hint[first:last], frames=last - first, states=states)
        middles.append(piece.middle.unflatten(0, (2, -1)))
    assert_close(torch.cat(middles, dim=1).flatten(0, 1), whole.middle, MODULE)
    alone, _ = network("sd")(x, 50, context, hint, frames=frames)
    assert not torch.allclose(whole.middle, alone.middle, rtol=1e-3)


def test_residuals_of_several_are_added() -> None:
    ones = [Residuals([torch.full((1,), 2.0**i), torch.ones(1)], torch.full((1,), 3.0**i)) for i in range(3)]
    total = added_up(ones)
    assert [*map(float, (*total.skips, total.middle))] == [7, 3, 13]
    assert added_up([Residuals(one.skips[:1], None) for one in ones]).middle is None
    assert added_up([]) is None


def test_hints_of_another_size_are_an_error() -> None:
    control = network("sd")
    hint = control.encode_hints(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"hints are \(1, 8, 4, 4\): expected \(frames, c, h, w\) with \(2, 4, 6\)"):
        control(torch.zeros(2, 4, 4, 6), 1, torch.zeros(1, 6, 16), hint, frames=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is of 'UNet2DConditionModel', not of ControlNetModel"),
        ({"global_pool_conditions": True}, "global_pool_conditions = True is not supported"),
        ({"controlnet_conditioning_channel_order": "bgra"}, "controlnet_conditioning_channel_order = 'bgra'"),
        ({"conditioning_channels": 1}, "conditioning_channels = 1 is not supported, only 3"),
        ({"mid_block_type": None}, "mid_block_type = None is not supported"),
        ({"layers_per_block": [1, 1]}, r"layers_per_block is \[1, 1\]: expected a whole number"),
        ({"conditioning_embedding_out_channels": None}, "conditioning_embedding_out_channels is None"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not supported"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim = 8 is not supported"),
        ({"num_attention_heads": 4}, "num_attention_heads = 4 is not supported"),
    ],
)
def test_another_architecture_is_an_error(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ControlNetConfig.from_json(tiny.CONTROLS["sd"] | changes)


def test_an_unknown_key_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"config.json: zs2 does not know union_control"):
        ControlNetConfig.from_json(tiny.CONTROLS["sd"] | {"union_control": True})


def test_momentum_changes_and_weights_stay() -> None:
    control = network("xl", "sa")
    other = control.with_momentum(network("xl", "tma").momentum)
    assert control.with_momentum(control.momentum) is control
    assert other.config is control.config
    shared = zip(control.parameters(), other.parameters(), strict=True)
    assert all(one.data_ptr() == two.data_ptr() for one, two in shared)
