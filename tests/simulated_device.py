"""A simulated GPU: a device with real numbers, where a misplaced tensor raises and every crossing is counted.

The device is torch's PrivateUse1, which Python may provide, under the name `sim`. A tensor on it is a `SimTensor`. It
says that it is on sim:0, and holds its numbers in a CPU tensor that nobody else sees. So a clip can be made there and
be compared with the CPU's. As on a GPU,

- an operator that meets a tensor of the device and a CPU tensor raises. A CPU tensor without dimensions may stay where
  it is: it counts as a number.
- a copy to the device, a copy to the host, and what else waits for the device (`.item()`, `bool()`, `nonzero()`) is a
  `Crossing`. It is counted, with the function of zs2 that made it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import zs2

NAME = "sim"
CPU = torch.device("cpu")
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
TO_DEVICE, TO_HOST, WAIT = "to the device", "to the host", "waits"
PACKAGE = str(Path(zs2.__file__).parent) + "/"

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Crossing(NamedTuple):
    """A way between host and device: which, and the function of zs2, such as `sampling/sampler.py Sampler.check`."""

    kind: str
    place: str


counted: Counter[Crossing] | None = None  # while the device is there


class SimTensor(torch.Tensor):
    """A tensor of the device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> SimTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(NAME, 0),
        )
        self.numbers = numbers
        return self

    def __repr__(self, **_: Any) -> str:
        return f"SimTensor({tuple(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Operators(TorchDispatchMode):
    """All operators, also those that meet no tensor of the device yet: factories, and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What is one operator on a GPU, and what torch does below its operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return run(func, args, kwargs)
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        return func(*args, **kwargs)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, wherever its tensors are. Raises: RuntimeError if they are not on one device."""
    tensors = list(_tensors((*args, *kwargs.values())))
    here = [one for one in tensors if not isinstance(one, SimTensor)]
    there = len(tensors) > len(here)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not there and (target is None or target.type != NAME):
        return func(*args, **kwargs)
    to_host = func is aten._to_copy.default and target is not None and target.type != NAME
    if func is aten._to_copy.default:
        if to_host or here:
            cross(TO_HOST if to_host else TO_DEVICE)
    elif func is aten.copy_.default and here:
        cross(TO_HOST if here[0] is args[0] else TO_DEVICE)
    elif func in WAITS:
        cross(WAIT)
    elif func in INDEXING and isinstance(args[0], SimTensor) and all(isinstance(one, SimTensor) for one in args[2:]):
        for _ in here:  # a GPU copies indices of the host, and waits
            cross(TO_DEVICE)
    elif any(one.ndim for one in here):
        where = "; ".join(f"{one.device} {tuple(one.shape)}" for one in tensors)
        raise RuntimeError(f"expected all tensors on one device: {func} at {place()} meets {where}")
    out = func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
    if hasattr(func, "_schema") and not func._schema.returns:  # _foreach_add_ and its like
        return None
    written = _written(func)
    if written is not None:
        name, position = written
        return kwargs[name] if name in kwargs else args[position]
    if to_host:
        return out
    return tuple(map(_wrapped, out)) if isinstance(out, tuple | list) else _wrapped(out)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _plain(value: Any) -> Any:
    """An argument as an operator of the CPU takes it."""
    if isinstance(value, SimTensor):
        return value.numbers
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return CPU if isinstance(value, torch.device) else value


def _wrapped(value: Any) -> Any:
    """A result of an operator of the CPU, as a tensor of the device."""
    return SimTensor(value) if isinstance(value, Tensor) else value


@cache
def _written(func: Any) -> tuple[str, int] | None:
    """The argument that an operator changes and returns, if there is one."""
    for position, argument in enumerate(func._schema.arguments if hasattr(func, "_schema") else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return argument.name, position
    return None


def cross(kind: str) -> None:
    """Count a crossing."""
    if counted is not None:
        counted[Crossing(kind, place())] += 1


def place() -> str:
    """The function of zs2 that is running."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "outside"
    function = frame.f_code.co_qualname.partition(".<locals>")[0]  # comprehensions are functions before Python 3.12
    return f"{frame.f_code.co_filename.removeprefix(PACKAGE)} {function}"


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME)


@contextmanager
def simulated_device() -> Iterator[Counter[Crossing]]:
    """Within, torch has the device `sim`. Yields the count of what crosses, which grows until the end."""
    global counted
    _register()
    counted = Counter()
    try:
        with Functions(), Operators():
            yield counted
    finally:
        counted = None
