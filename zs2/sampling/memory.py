"""How much memory a sampling needs, before it starts, and how many frames at once fit.

The peak is the sum of what is there throughout and the larger of two passing needs:

    weights      of all parts, as loaded
    latents      c·h·w·4 bytes a frame, three times: before, after and as pieces (in a stream: of a chunk); as much
                 again for what the solver remembers
    frames       3·H·W bytes a frame, twice: decoded, and as the clip (in a stream: of a chunk)
    text         of each prompt of a chunk and the negative one: keys and values of every cross-attention, 2·m·Σc
    states       of every self-attention, a branch: n·c·4 bytes for n tokens; twice while a chunk passes them on, and
                 once more a step in a stream
    deep         where they are taken over: the deep features of a frame and branch, c·h·w of the first level (in a
                 stream: of a chunk)
    UNet         of a chunk, branches × frames rows: the feature maps kept for the way up, and what the layer that needs
                 most holds itself (below)
    or decoding  of the frames decoded together: likewise

What a layer holds at its peak, in maps of its resolution and the network's dtype:
    resnet       the larger of  2·c_in + c_out + (c_in + c_out)·W  at the first convolution and
                 c_in + 3·c_out + 2·c_out·W  at the second, where W = 1 on a CPU, whose convolutions reorder
                 their input and output, and otherwise 0; not counted are their weights, which they reorder as well,
                 or the windows where one is a product (layers.Conv2d), which are no larger than its weights
    transformer  22·c, at its feed-forward: its input as map and as tokens, x, h, h̃, norm (6), one half (4), the other's
                 input and GELU (8), and 4 more that were measured
    attention    of the decoder: 9·c

On a CPU the process itself comes to that: Python, torch and its threads, as large as it is when this module is imported
(torch built for CUDA holds twice as much as one for CPUs), and what first calls add. In tests and in
benchmarks/length.py this is within 15 % of the measured peak, for the default checkpoint and for Stable Diffusion 1.5's
size in bfloat16 (since the VAE is in bfloat16, too, measured for one frame of 512² only: 8 % below). On a GPU it was
not measured.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from zs2.errors import InputError
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.temporal import Momentum
from zs2.sampling.decoding import TILE, WHOLE, at_once
from zs2.system.free_memory import kernel_numbers

if TYPE_CHECKING:
    from zs2.sampling.plan import SamplingPlan

TORCH = 225 * 2**20  # the process with torch imported, where the system does not say its size
CALLS = 75 * 2**20  # what the first calls add: threads, code, buffers
SPARE = 0.9  # of what is free, where the chunk is chosen


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a sampling is expected to need at its peak; of `unet` and `decoding` the larger counts."""

    process: int
    weights: int
    latents: int
    frames: int
    text: int
    states: int
    deep: int
    unet: int
    decoding: int

    @property
    def total(self) -> int:
        """The peak."""
        rest = self.process + self.weights + self.latents + self.frames + self.text + self.states + self.deep
        return rest + max(self.unet, self.decoding)

    def lines(self) -> list[str]:
        """For people."""
        rows = {**vars(self), "peak": self.total}
        return [f"{name:<10}{amount(size):>10}" for name, size in rows.items()]


def amount(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def planned_memory(plan: SamplingPlan) -> MemoryPlan:
    """The memory of a sampling in its chunks; see above."""
    unet, vae, text = plan.model.unet, plan.model.vae, plan.model.text
    request, chunk, (_, h, w), (height, width) = plan.request, plan.chunk, plan.latent_shape, plan.size
    weight, reduction = unet.conv_in.weight, vae.config.reduction
    cpu, element = weight.device.type == "cpu", weight.element_size()
    branches = 1 if request.guidance in (0, 1) else 2
    texts = 1 if isinstance(request.prompt, str) else len(request.prompt)
    kept_states = (
        0 if not plan.stream else 1 if plan.states_elsewhere else request.steps
    )  # steps whose states stay on the device
    held = chunk if plan.stream or request.frames is None else request.frames
    together = at_once(vae, height, width, chunk)
    tile = (height, width) if height * width <= WHOLE else (TILE, TILE)
    return MemoryPlan(
        process=PROCESS if cpu else 0,
        weights=sum(_bytes(module) for module in (unet, vae, *text.encoders)),
        latents=3 * held * (1 + plan.solver.remembered) * vae.config.latent_channels * h * w * 4,
        frames=2 * held * 3 * height * width,
        text=(min(texts, chunk) + 1)
        * text.encoders[0].config.max_position_embeddings
        * 2
        * element
        * sum(channels for channels, _ in blocks(unet.config, (h, w))),
        states=state_bytes(unet.config, unet.momentum, (h, w), branches, element) * (2 + kept_states),
        deep=branches * held * unet.config.block_out_channels[0] * h * w * element if request.deep_cache > 1 else 0,
        unet=unet_bytes(unet.config, branches * chunk, (h, w), element, cpu),
        decoding=together
        * decoder_numbers(vae.config, (tile[0] // reduction, tile[1] // reduction), cpu)
        * vae.decoder.conv_in.weight.element_size(),
    )


def blocks(config: UNetConfig, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(channels, tokens) of every transformer block, for latents of this size."""
    areas = _areas(config, size)
    found = []
    for level, (channels, layers) in enumerate(zip(config.block_out_channels, config.layers_per_block, strict=True)):
        if config.attention[level]:  # on the way down, and one more on the way up
            found += [(channels, areas[level])] * (2 * layers + 1) * config.transformer_layers[level]
    return [*found, *[(config.block_out_channels[-1], areas[-1])] * config.transformer_layers[-1]]


def state_bytes(config: UNetConfig, momentum: Momentum, size: tuple[int, int], branches: int, element: int) -> int:
    """The momentum states after a chunk: what it hands on, and what processes tell each other."""
    each = element if momentum.state_dtype is None else momentum.state_dtype.itemsize
    return branches * momentum.state_frames * sum(c * n for c, n in blocks(config, size)) * each


def unet_bytes(config: UNetConfig, rows: int, size: tuple[int, int], element: int, cpu: bool) -> int:
    """The activations of a call of the UNet."""
    channels, areas, last = config.block_out_channels, _areas(config, size), len(config.block_out_channels) - 1
    kept, peak = [channels[0] * areas[0]], 0

    def need(level: int, c_in: int, before: int, transformer: bool) -> None:
        nonlocal peak
        c = channels[level]
        local = max(_resnet(c_in, c, cpu), 22 * c if transformer else 0)
        peak = max(peak, sum(kept) + before + local * areas[level])

    for level, c in enumerate(channels):
        for i in range(config.layers_per_block[level]):
            need(level, channels[max(level - 1, 0)] if i == 0 else c, 0, config.attention[level])
            kept.append(c * areas[level])
        if level < last:
            kept.append(c * areas[level + 1])
    need(last, channels[-1], 0, True)
    x = channels[-1]
    for level in range(last, -1, -1):
        for _ in range(config.layers_per_block[level] + 1):
            skip = kept.pop() // areas[level]
            need(level, x + skip, x * areas[level], config.attention[level])
            x = channels[level]
        if level > 0:
            peak = max(peak, sum(kept) + x * areas[level] + (2 + 2 * cpu) * x * areas[level - 1])
    return rows * element * peak


def decoder_numbers(config: VAEConfig, size: tuple[int, int], cpu: bool) -> int:
    """The activations of decoding one frame, as numbers of the VAE's dtype."""
    channels, area = config.block_out_channels[::-1], size[0] * size[1]
    peak, x = 9 * channels[0] * area, channels[0]
    for level, c in enumerate(channels):
        peak = max(peak, _resnet(x, c, cpu) * area)
        if level < len(channels) - 1:
            peak = max(peak, c * area + (2 + 2 * cpu) * c * 4 * area)
            area *= 4
        x = c
    return peak


def _areas(config: UNetConfig, size: tuple[int, int]) -> list[int]:
    """Positions of the feature maps of each level, each halved, rounded up."""
    return [-(-size[0] // 2**level) * -(-size[1] // 2**level) for level in range(len(config.block_out_channels))]


def _resnet(c_in: int, c: int, cpu: bool) -> int:
    return max(2 * c_in + c + (c_in + c) * cpu, c_in + 3 * c + 2 * c * cpu)


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def fitting(needs: Callable[[int], MemoryPlan], wanted: int, free: int | None, *, asked: bool) -> int:
    """How many frames at once, at most `wanted`, fit into so many bytes.

    needs: what a chunk of so many frames would need. free: None if it isn't known. asked: whether it must be `wanted`.
    Raises: InputError if that, or not even one frame, fits.
    """
    if free is None or (need := needs(wanted).total) <= free:
        return wanted
    most = bisect_right(range(1, wanted), SPARE * free, key=lambda chunk: needs(chunk).total)  # a chunk more needs more
    lack = f"a chunk of {wanted} frame{'s' * (wanted > 1)} needs {amount(need)}, {amount(free)} are free"
    if not most:
        raise InputError(
            f"{lack}, and not even one frame at a time fits: try a smaller size, half precision, or --stream"
        )
    if asked:
        raise InputError(f"{lack}: {most} would fit")
    return most


def _process() -> int:
    """What this process holds now, and what first calls add."""
    resident = kernel_numbers("/proc/self/status").get("VmRSS")
    return CALLS + (TORCH if resident is None else 1024 * resident)


PROCESS = _process()  # before any model
