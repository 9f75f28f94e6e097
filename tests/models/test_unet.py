"""The UNet's seams: residuals of a ControlNet, states by index. (Against diffusers: test_parity.py.)"""

from __future__ import annotations

import pytest
import torch
from helpers import CHECKPOINT, LATENTS, assert_close

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.models.unet import Residuals, UNet


@pytest.fixture(scope="module")
def unet() -> UNet:
    return Checkpoint(CHECKPOINT).unet("tma", 0.9)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of two frames and a text."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *LATENTS, generator=generator), torch.randn(1, 5, 192, generator=generator)


def skips(unet: UNet, x: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor]:
    """The feature maps that the way down keeps."""
    kept: list[torch.Tensor] = []
    handles = [unet.conv_in.register_forward_hook(lambda module, args, out: kept.append(out))]
    handles += [down.register_forward_hook(lambda module, args, out: kept.extend(out)) for down in unet.down_blocks]
    unet(x, 500, context, frames=2)
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def test_residuals_are_added_to_the_skips_and_the_middle(unet: UNet, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """As hooks add them: a skip's where a layer on the way up meets it, the middle's behind the middle level."""
    x, context = inputs
    maps = skips(unet, x, context)
    generator = torch.Generator().manual_seed(1)
    added = [one.std() * torch.randn(one.shape, generator=generator) for one in maps]
    middle = maps[-1].std() * torch.randn(maps[-1].shape, generator=generator)
    got = unet(x, 500, context, frames=2, residuals=Residuals(added, middle)).prediction

    handles = [unet.mid_block.register_forward_hook(lambda module, args, out: out + middle)]
    resnets = [resnet for up in unet.up_blocks for resnet in up.resnets]
    for resnet, residual in zip(resnets, reversed(added), strict=True):

        def before(module: object, args: tuple[torch.Tensor, ...], residual: torch.Tensor = residual) -> object:
            features, skip = args[0].split([args[0].shape[1] - residual.shape[1], residual.shape[1]], dim=1)
            return torch.cat([features, skip + residual], dim=1), *args[1:]

        handles.append(resnet.register_forward_pre_hook(before))
    want = unet(x, 500, context, frames=2).prediction
    for handle in handles:
        handle.remove()
    plain = unet(x, 500, context, frames=2).prediction
    assert_close(got, want, 1e-6)
    assert (got - plain).abs().max() > 0.1 * plain.abs().max()
    nothing = Residuals([torch.zeros_like(one) for one in maps], torch.zeros_like(middle))
    assert torch.equal(unet(x, 500, context, frames=2, residuals=nothing).prediction, plain)
    with pytest.raises(InputError, match=f"{len(added) - 1} residuals for {len(added)} skips: expected one each"):
        unet(x, 500, context, frames=2, residuals=Residuals(added[1:], middle))


@torch.no_grad()
def test_each_block_has_its_own_state(unet: UNet, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Blocks are numbered in the order in which a call meets them, and a state is that of the block of its number."""
    x, context = inputs
    met: list[int] = []
    blocks = unet.transformer_blocks()
    handles = [block.register_forward_pre_hook(lambda module, args: met.append(module.index)) for block in blocks]
    states = unet(x, 500, context, frames=2).states
    for handle in handles:
        handle.remove()
    assert met == list(range(len(blocks))) == list(range(len(states)))
    for block, state in zip(blocks, states, strict=True):
        assert state is not None
        assert (state.shape[0], state.shape[2]) == (1, block.norm1.normalized_shape[0])
