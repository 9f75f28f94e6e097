"""From tensors to a module: built on the meta device, its weights assigned, nothing initialised at random."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zs2.errors import InputError

M = TypeVar("M", bound=nn.Module)


def faster_layout(dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """Of convolutions, where they are converted. On a CPU channels-last is faster in bfloat16, and in float32 with AVX2
    (with AVX-512 about as fast), and in the UNet as exact; in float32 the VAE would lose a digit to torch's GroupNorm.
    Nothing else was measured (docs/performance.md)."""
    measured = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return torch.channels_last if measured else torch.preserve_format


@contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection in here: loading makes many objects and no garbage, and the collector would go through all
    of torch's objects again and again, for a third of the time that loading takes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


INITIALISERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class _NoInit(TorchFunctionMode):
    """Initialisers do nothing. (On meta tensors they would do nothing slowly: torch loads its compiler for them.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built here are on the meta device: they have names and shapes, but no memory, until `assign`."""
    with torch.device("meta"), _NoInit():
        yield


def assign(
    module: M,
    tensors: dict[str, Tensor],
    what: str,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format = torch.preserve_format,
) -> M:
    """Give a module on the meta device its weights, for inference.

    layout: of convolutions that are converted to the dtype anyway; others stay mapped, as they are.
    Raises: InputError that names what is missing, unexpected, misshapen or not floating point.
    """
    want = module.state_dict()
    problems = [
        ("missing", [f"{name} {tuple(want[name].shape)}" for name in want if name not in tensors]),
        ("not expected", [name for name in tensors if name not in want]),
        (
            "of another shape",
            [
                f"{name} {tuple(tensor.shape)} instead of {tuple(want[name].shape)}"
                for name, tensor in tensors.items()
                if name in want and tensor.shape != want[name].shape
            ],
        ),
        ("not floating point", [f"{name} {t.dtype}" for name, t in tensors.items() if not t.is_floating_point()]),
    ]
    found = [f"{_count(names)} {problem}: {_some(names)}" for problem, names in problems if names]
    if found:
        raise InputError(f"{what}: the weights do not fit the configuration: {'; '.join(found)}")
    placed = {}
    for name, tensor in tensors.items():
        converted = tensor.ndim == 4 and tensor.dtype != dtype
        placed[name] = tensor.to(device, dtype, memory_format=layout if converted else torch.preserve_format)
    module.load_state_dict(placed, assign=True)
    return module.eval().requires_grad_(False)


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
