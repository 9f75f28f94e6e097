"""How many operators a UNet step of Stable Diffusion 1.5's size launches. On a GPU each launch costs time.

On the device `meta`, in float16. Views and empty allocations launch nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import TESTS
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zs2.models.config import UNetConfig
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.system.modules import without_weights

LAYERS = 16  # transformer blocks of SD 1.5


class Launches(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, returns = str(func), func._schema.returns
        view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not view and "empty" not in name and "view" not in name:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


class OneAttention(TorchFunctionMode):
    """Attention as the one operator that it is on a GPU. On `meta` it is many."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.launches.counts["attention"] += 1
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@functools.cache
def launches(unet: UNet, frames: int) -> tuple[Launches, Launches]:
    """The operators of a step of two branches, of a first chunk and of a later one."""
    half = {"dtype": torch.float16, "device": "meta"}
    x = torch.empty(2 * frames, unet.config.in_channels, 64, 64, **half)
    t = torch.tensor(500, device="meta")
    counted, states = [], ()
    with torch.no_grad():
        text = unet.text_keys_values(torch.empty(2, 77, unet.config.cross_attention_dim, **half))
        for _ in range(2):
            with Launches() as launches, OneAttention(launches):
                states = unet(x, t, text, frames=frames, states=states).states
            counted.append(launches)
    return counted[0], counted[1]


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS.parent / "benchmarks")
        from sd15 import UNET
    with without_weights():
        return {kind: UNet(UNetConfig.from_json(UNET), kind).half() for kind in ("sa", "cfa", "tma", "tma-two-tap")}


def test_a_step_of_self_attention(unets: dict[str, UNet]) -> None:
    first, later = launches(unets["sa"], 8)
    assert first.counts == later.counts
    assert first.counts["attention"] == 2 * LAYERS
    assert first.total <= 651  # torch 2.13 has so many


@pytest.mark.parametrize("frames", [1, 2, 8, 64])
@pytest.mark.long
def test_what_momentum_adds_to_a_step(unets: dict[str, UNet], frames: int) -> None:
    """A layer of `tma` adds a cast, an operator a frame after the first, a copy of the state, and a cast back."""
    alone, _ = launches(unets["sa"], frames)
    first, later = launches(unets["tma"], frames)
    assert first.total - alone.total == LAYERS * (frames + 2)
    assert later.total - alone.total == LAYERS * (frames + 3)
    if frames == 8:
        assert later.total <= 1.30 * alone.total


@pytest.mark.parametrize(("kind", "operators"), [("cfa", (1, 0)), ("tma-two-tap", (3, 3))])
@pytest.mark.long
def test_what_other_kinds_add_whatever_the_frames(
    unets: dict[str, UNet], kind: str, operators: tuple[int, int]
) -> None:
    for frames in (2, 8):
        alone, _ = launches(unets["sa"], frames)
        counted = launches(unets[kind], frames)
        assert tuple(one.total - alone.total for one in counted) == tuple(LAYERS * number for number in operators)


def test_what_a_process_adds_to_tell_the_others() -> None:
    """Its share: a cast, an operator a frame, and a copy; away from the clip's start a zero state too."""
    h = torch.empty(2 * 8, 64, 320, dtype=torch.float16, device="meta")
    for first, operators in ((True, 9), (False, 11)):
        with Launches() as counted:
            momentum("tma", mu=0.98).share(h, 8, None, first=first)
        assert counted.total == operators, counted.counts
