"""Attention and torch's fused kernels: what is cast to float32 and what is not, and that the kernels take what comes.

(What attention computes: test_parity.py.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import TESTS
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zs2.method import ATTENTION_KINDS
from zs2.models.attention import attend, fused
from zs2.models.config import UNetConfig
from zs2.models.unet import UNet
from zs2.system.modules import without_weights

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


class Seen(TorchFunctionMode):
    """Keeps the queries, keys and values that attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.append(args[:3])
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Keeps the names of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def inputs(dtype: torch.dtype, heads: int = 2, size: int = 40, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple((scale * torch.randn(2, 9, heads * size, generator=generator)).to(dtype) for _ in range(3))


@HALF
def test_upcast_casts_nothing_for_a_fused_kernel_and_all_for_the_plain_product(dtype: torch.dtype) -> None:
    q, k, v = inputs(dtype)
    with Seen() as seen, Operators() as operators:
        out = attend(q, k, v, 2, upcast=True)
    assert {one.dtype for one in seen.calls[0]} == {dtype}
    assert out.dtype == dtype
    assert "aten._scaled_dot_product_flash_attention_for_cpu.default" in operators.names
    assert "aten._to_copy.default" not in operators.names
    with sdpa_kernel(SDPBackend.MATH), Seen() as seen:
        out = attend(q, k, v, 2, upcast=True)
    assert {one.dtype for one in seen.calls[0]} == {torch.float32}
    assert out.dtype == dtype


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=str)
def test_products_beyond_float16_are_summed_in_float32(backend: SDPBackend) -> None:
    """Logits of several 100,000, as in Stable Diffusion 2.1. Float16 ends at 65,504."""
    q, k, v = inputs(torch.float16, scale=150)
    assert (q[:, :, :40].float() @ k[:, :, :40].float().mT).max() > 3e5
    want = attend(q.double(), k.double(), v.double(), 2)
    with sdpa_kernel(backend):
        got = attend(q, k, v, 2, upcast=True)
    assert (got.double() - want).abs().max() <= torch.finfo(torch.float16).eps * want.abs().max()


def test_upcast_takes_no_precision_away() -> None:
    for dtype in (torch.float32, torch.float64):
        with Seen() as seen:
            assert attend(*inputs(dtype), 2, upcast=True).dtype == dtype
        assert seen.calls[0][0].dtype == dtype


def test_where_there_is_a_fused_kernel() -> None:
    assert fused("cpu", 37)
    assert all(fused("cuda", size) for size in (40, 64, 80, 160, 512))
    assert not fused("cuda", 37)
    assert not fused("mps", 40)
    with sdpa_kernel(SDPBackend.MATH):
        assert not fused("cuda", 40)
        assert not fused("cpu", 40)


@HALF
@pytest.mark.parametrize("size", [40, 64, 80, 160])
@pytest.mark.parametrize("shared", [1, 4], ids=["one row each", "four rows share"])
def test_the_kernel_takes_the_head_sizes_as_attend_lays_them_out(dtype: torch.dtype, size: int, shared: int) -> None:
    q, k, v = inputs(dtype, 2, size)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), Operators() as operators:
        attend(q.repeat(shared, 1, 1), k, v, 2)
    assert "aten._scaled_dot_product_flash_attention_for_cpu.default" in operators.names


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_cudas_kernels_take_what_a_step_gives_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Stable Diffusion 1.5's size: heads of 40, 80 and 160, in rows of four dimensions that are aligned to 16 bytes
    and whose last is dense, of one dtype, without a mask."""
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    from sd15 import UNET

    with without_weights():
        unet = UNet(UNetConfig.from_json(UNET), kind).half()
    half = {"dtype": torch.float16, "device": "meta"}
    with torch.no_grad(), Seen() as seen:
        unet(torch.empty(4, 4, 64, 64, **half), 500, torch.empty(2, 77, 768, **half), frames=2)
    assert {q.shape[-1] for q, _, _ in seen.calls} == {40, 80, 160}
    for q, k, v in seen.calls:
        for one in (q, k, v):
            assert one.ndim == 4
            assert one.dtype == torch.float16
            assert one.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in one.stride()[:-1])
        assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256
