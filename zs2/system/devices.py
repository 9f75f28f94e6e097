"""Choose the device and the dtype of a model. torch is imported only when one is chosen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zs2.errors import InputError, choose

if TYPE_CHECKING:
    import torch

AUTO = "auto"
PRECISIONS = ("float32", "bfloat16", "float16")
DTYPES = (AUTO, *PRECISIONS)
DTYPE_HELP = f"{', '.join(DTYPES)} (default auto: float32 on a CPU; on a GPU float16, or bfloat16 if the file is)"
COMPILE_HELP = (
    "compile the UNet by torch.compile: the first step of each kind takes a minute or more, the others less time (on a "
    "CPU 0.8 to 0.9 of it), so it pays for some thousand steps; last bits differ"
)


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


def check_gpus(device: str) -> None:
    """Raise InputError if processes of this machine that make a clip together would share a GPU. NCCL can't do that."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if here < 2 or not device.startswith("cuda"):
        return
    gpus = torch.cuda.device_count()
    if here > gpus:
        raise InputError(
            f"{here} processes for {gpus} GPU(s): expected one each: --nproc-per-node {gpus}, or --device cpu"
        )
    if device != own_device("cuda"):
        raise InputError(f"{here} processes can't share {device}: give --device cuda, then each has its own")


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
        known = "its kind is none of cpu, cuda and mps" if "device type at start" in reason else reason
        raise InputError(f"device {str(device)!r} can't be used here ({known}): try {default_device()}") from error
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The requested dtype, from its name or from itself. None for `auto`, the default: see `auto_dtype`.

    Raises: InputError for any other.
    """
    import torch

    name = choose("dtype", str(dtype or AUTO).removeprefix("torch."), DTYPES)
    return None if name == AUTO else getattr(torch, name)


def auto_dtype(device: torch.device, stored: torch.dtype | None = None) -> torch.dtype:
    """The dtype of `auto`: float32 on a CPU. On a GPU it would take several times as long, so there it is float16, or
    bfloat16 if the weights are stored in that, because they may overflow float16."""
    import torch

    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float16


def auto_note(asked: str, dtype: torch.dtype, device: torch.device) -> str:
    """One line that says which half precision `auto` chose; empty if it chose none, or was not asked for."""
    name = str(dtype).removeprefix("torch.")
    if asked != AUTO or name == "float32":
        return ""
    return f"computing in {name}, as --dtype auto does on {device.type}; --dtype float32 is slower and more exact"


def overflow(what: str, dtype: torch.dtype, weights: str, advice: str) -> FloatingPointError:
    """The error for numbers that are NaN or infinite.

    Args:
        what: what is. dtype: of the network. weights: those of its weights that are, too, or empty.
        advice: what to try if no weights are.
    """
    because = f", and so are weights, of {weights}" if weights else ""
    advice = "another file" if weights else advice
    return FloatingPointError(f"{what} in {dtype}{because}: try {_next_try(dtype)}{advice}")


def _next_try(dtype: torch.dtype) -> str:
    """What to try where numbers of a dtype overflow, as the beginning of an advice that goes on."""
    return {"torch.bfloat16": "float32, or ", "torch.float16": "bfloat16 or float32, or "}.get(str(dtype), "")
