"""A flow: how far each pixel of the picture moves from the frame before to a frame. No torch here.

It is given as a file, or as an array or a tensor. Settings of a clip have its digest alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zs2.errors import InputError, brief, counted
from zs2.system.regular_files import check_regular

MOST_NUMBERS = 2**28  # of a flow: 1 GiB, 512 steps of 512 x 512 pixels
MOST_HEADER = 2**16  # bytes of a file's
MOST_PIXELS = 1e6  # of a movement
EXPECTED = "expected `flow`, float32 (2, h, w), or (frames - 1, 2, h, w) of one a step: dx and dy in pixels"


@dataclass(frozen=True)
class Flow:
    """A checked flow. Two of the same numbers are equal.

    Attributes:
        numbers: float32 (steps, 2, h, w). digest: the SHA-256 of its shape and numbers.
        steps: how many there are; None for one flow that repeats without end.
    """

    numbers: NDArray[np.float32] = field(repr=False, compare=False)
    digest: str
    steps: int | None

    def each(self) -> Iterator[NDArray[np.float32]]:
        """The flow (2, h, w) from each frame to the next one."""
        return iter(self.numbers) if self.steps is not None else repeat(self.numbers[0])


def checked(value: Any) -> Flow:
    """A flow from a file (its path), an array or a tensor.

    Raises: InputError for another file, dtype or shape, and for numbers that are no movement of a picture.
    """
    if isinstance(value, Flow):
        return value
    if isinstance(value, str | os.PathLike):
        return _flow(_read(os.fspath(value)), f"flow is {brief(os.fspath(value))}")
    shape, dtype = getattr(value, "shape", None), str(getattr(value, "dtype", ""))
    if not isinstance(shape, tuple) or dtype.removeprefix("torch.") != "float32":
        raise InputError(f"flow is {dtype or brief(value)}: {EXPECTED}, or a safetensors file of that")
    _check_shape(shape, "flow")
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    return _flow(np.array(value, np.float32), "flow")  # a copy, which its digest stays true of


def _read(path: str) -> NDArray[np.float32]:
    """The tensor `flow` of a safetensors file, whose shape and dtype are checked before it is read."""
    from safetensors import safe_open

    what = f"flow is {brief(path)}"
    try:
        check_regular(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise InputError(f"not a safetensors file of a flow, {EXPECTED}")
        with safe_open(path, framework="np") as opened:
            names = sorted(opened.keys())
            if "flow" not in names:
                raise InputError(f"it has {brief(names)}: {EXPECTED}")
            found = opened.get_slice("flow")
            if found.get_dtype() != "F32":
                raise InputError(f"its dtype is {found.get_dtype()}: {EXPECTED}")
            _check_shape(tuple(found.get_shape()), "its tensor")
            numbers: NDArray[np.float32] = opened.get_tensor("flow")
            return numbers
    except InputError as error:
        raise InputError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from error
    except OSError as error:
        raise InputError(f"{what}: it can't be read ({error.strerror or error})") from error
    except Exception as error:  # the library's own, of which there are several
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: not a whole safetensors file ({reason}), {EXPECTED}") from error


def _check_shape(shape: tuple[int, ...], what: str) -> None:
    if len(shape) not in (3, 4) or shape[-3] != 2 or 0 in shape:
        raise InputError(f"{what} is {brief(tuple(shape))}: {EXPECTED}")
    if (count := int(np.prod(shape, dtype=object))) > MOST_NUMBERS:
        raise InputError(f"{what} has {count} numbers: expected at most {MOST_NUMBERS}; give a flow of fewer pixels")


def _flow(numbers: NDArray[np.float32], what: str) -> Flow:
    if not (numbers.min() > -MOST_PIXELS and numbers.max() < MOST_PIXELS):  # neither of NaN
        raise InputError(f"{what}: some movements are NaN, infinite, or of {MOST_PIXELS:g} pixels and more")
    digest = hashlib.sha256(f"{numbers.shape}".encode())
    digest.update(np.ascontiguousarray(numbers, "<f4").data)
    steps = len(numbers) if numbers.ndim == 4 else None
    return Flow(numbers if steps is not None else numbers[None], digest.hexdigest(), steps)


def check_fits(shape: tuple[int, ...], frames: int | None, flow: Flow | None, **_: Any) -> None:
    """Raise InputError for a flow of a picture of another shape, or of too few steps. frames: None has no end."""
    if flow is None:
        return
    (height, width), (h, w) = flow.numbers.shape[-2:], shape[-2:]
    if height * w != width * h:
        raise InputError(f"flow is of {width}x{height} pixels: expected a picture of the clip's shape, {w}:{h}")
    if flow.steps is not None and (frames is None or flow.steps < frames - 1):
        clip = "a clip without end" if frames is None else counted(frames, "frame")
        raise InputError(
            f"flow has {counted(flow.steps, 'step')} for {clip}: expected one for each frame but the first"
        )


def idle(flow: Flow, frames: float, steps: int) -> str:
    """What to say of a flow's steps that a clip of so many frames does not need; empty if there are none."""
    more = 0 if flow.steps is None else flow.steps - (frames - 1)
    return f"flow has {counted(flow.steps or 0, 'step')}, the last {more:g} without effect" if more > 0 else ""
