"""Choose the device and the dtype of a model. torch is imported only when one is chosen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zs2.errors import InputError, choose

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def default_device() -> torch.device:
    """The first of cuda, mps and cpu that is available."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def own_device(asked: str | None) -> str:
    """The device of this process. If torchrun started it on a machine with several GPUs, it has one of its own."""
    import torch

    device = str(default_device()) if asked is None else asked
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def choose_device(device: str | torch.device | None) -> torch.device:
    """The requested device, or the default one. Raises: InputError if it can't be used here."""
    import torch

    if device is None:
        return default_device()
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} can't be used here ({reason}): try cpu") from error
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The requested dtype, from its name or from itself; float32 by default. Raises: InputError for any other."""
    import torch

    name = str(dtype or "float32").removeprefix("torch.")
    return getattr(torch, choose("dtype", name, DTYPES))
