"""Torch modules: built on the meta device, given their weights, and searched for numbers that are not finite."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zs2.errors import InputError, counted, warn

M = TypeVar("M", bound=nn.Module)
PIECE = 32 * 2**20  # bytes of a buffer that weights are copied through

LAYER = re.compile(r"(?:text|vision)_model\.encoder\.layers\.(\d{1,4})\.")


def faster_layout(dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """The faster memory layout for the weights of convolutions that are converted.

    On a CPU, channels-last is faster in bfloat16, and in float32 with AVX2; with AVX-512, float32 is about as fast.
    The UNet is as exact in it. In float32 the VAE would lose a digit, because of torch's GroupNorm. Other devices and
    dtypes were not measured (docs/performance.md).
    """
    measured = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return torch.channels_last if measured else torch.preserve_format


INITIALISERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class _NoInit(TorchFunctionMode):
    """Skip all initialisers. On meta tensors they have no effect, but are slow: torch loads its compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the meta device: they have names and shapes, but no memory until `assign`."""
    with torch.device("meta"), _NoInit():
        yield


class Upload:
    """Copies tensors of the host to a device through two pinned buffers in turn. So a file is read into one of them
    while the other is copied, and nothing waits for a single tensor."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._cuda = device, device.type == "cuda"
        self._buffers = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]  # when what a buffer held is on the device
        self._turn = self._used = 0  # which buffer is being filled, and how much of it is

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, contiguous, in its own dtype."""
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        source, target = (one.reshape(-1).view(torch.uint8) for one in (tensor, there))
        done = 0
        while done < len(source):
            size = min(len(source) - done, PIECE - self._used)
            piece = self._buffers[self._turn][self._used : self._used + size]
            piece.copy_(source[done : done + size])
            target[done : done + size].copy_(piece, non_blocking=True)
            done, self._used = done + size, self._used + size
            if self._used == PIECE:
                self._next_buffer()
        return there

    def _next_buffer(self) -> None:
        if self._cuda:
            self._copied[self._turn] = torch.cuda.current_stream(self.device).record_event()
        self._turn, self._used = 1 - self._turn, 0
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()


def assign(
    module: M,
    tensors: dict[str, Tensor],
    what: str,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format = torch.preserve_format,
) -> M:
    """Assign weights to a module on the meta device, for inference.

    layout: memory layout of convolution weights that must be converted to the dtype; others stay mapped as they are.
    Raises: InputError that names the tensors that are missing, unexpected, misshapen or not floating point.
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
    found = [f"{counted(len(names), 'tensor')} {problem}: {_some(names)}" for problem, names in problems if names]
    if found:
        raise InputError(f"{what}: the weights do not fit the configuration: {'; '.join(found)}")
    placed, upload = {}, None if device.type in ("cpu", "mps") else Upload(device)
    for name, tensor in tensors.items():
        converted = tensor.ndim == 4 and tensor.dtype != dtype
        there = tensor if upload is None else upload(tensor)  # as stored, and converted there
        placed[name] = there.to(device, dtype, memory_format=layout if converted else torch.preserve_format)
    module.load_state_dict(placed, assign=True)
    return module.eval().requires_grad_(False)


def drop_layers(tensors: dict[str, Tensor], layers: int, part: str) -> None:
    """Leave out the layers of a CLIP tower beyond those of its JSON, in place, as transformers does. Warns of them."""
    numbers = {name: int(match[1]) for name in tensors if (match := LAYER.match(name))}
    count = 1 + max(numbers.values(), default=-1)
    if count <= layers:
        return
    unused = "the last one is" if count - layers == 1 else f"the last {count - layers} are"
    warn(f"{part}/config.json: num_hidden_layers is {layers}, the weights have {count} layers: {unused} not used")
    for name in [name for name, number in numbers.items() if number >= layers]:
        del tensors[name]


def not_finite(parts: Mapping[str, nn.Module]) -> str:
    """Name the weights that are NaN or infinite: `unet: conv_out.weight (1 of 2880 numbers)`; empty if there are none.

    It reads all weights (0.8 s for the 860 million of Stable Diffusion 1.5's UNet), so it is for after a failure.
    """
    weights = [(f"{part}: {name}", w) for part, module in parts.items() for name, w in module.named_parameters()]
    # a sum is far cheaper than isfinite, but may overflow
    broken = [(name, w) for name, w in weights if not w.sum(dtype=torch.float32).isfinite() and not w.isfinite().all()]
    if not broken:
        return ""
    name, first = broken[0]
    others = f" and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
    return f"{name} ({int((~first.isfinite()).sum())} of {first.numel()} numbers){others}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
