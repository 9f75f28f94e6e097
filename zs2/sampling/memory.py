"""Predict the memory that a sampling needs, and choose how many frames at once fit.

The peak is the sum of what is held throughout, and the larger of two temporary needs. In a stream, "all frames" are
those of a chunk.

    weights      of all parts, as loaded
    latents      all frames: c·h·w·4 bytes each, three times: before, after and as pieces; as much again for each
                 tensor in the solver's history; once for what is edited; of a first frame, those of each step
    frames       all frames: 3·H·W bytes each, twice: decoded, and as the clip. They are in the memory of the host: with
                 a model on a GPU they do not count
    text         each prompt of a chunk, interpolated ones too, and the negative prompt: keys and values of every
                 cross-attention, 2·m·Σc
    states       each self-attention and branch: n·c·4 bytes for n tokens; twice while a chunk passes them on, and in
                 a stream once more for each step, or if they are kept elsewhere, for two: on their way out and in
    deep         if they are reused, the deep features of all frames and branches: c·h·w of the first level each
    control      of ControlNets, the encoded hints of all frames: c·h·w of the first level each; and for a chunk the
                 residuals, as large as the feature maps kept for the way up, of each, of their sum, and added to those
    flow         of warp along a given flow, its numbers: 8·H·W bytes for each step; in the memory of the host, too
    UNet         a chunk, with branches × frames rows: the feature maps kept for the way up, and the layer with the
                 largest need of its own (below)
    or decoding  the frames decoded together: likewise

A layer's own need at its peak, in maps of its resolution and the network's dtype:
    resnet       the larger of  2·c_in + c_out + (c_in + c_out)·W  at the first convolution and
                 c_in + 3·c_out + 2·c_out·W  at the second. W = 1 on a CPU and on CUDA, whose convolutions reorder their
                 input and output, and otherwise 0. Not counted: the weights, which they reorder as well, and the
                 windows of a convolution that is a matrix product (layers.Conv2d), no larger than its weights
    transformer  the larger of  22·c,  at its feed-forward: its input as map and as tokens, x, h, h̃, norm (6), one
                 half (4), the input and GELU of the other half (8), and 4 more that were measured; and
                 (8 + 4·k)·c  in the self-attention of a kind whose frames see the keys of k frames
    attention    of the decoder: 9·c

On a CPU, the process itself is added: Python, torch and its threads, at their size when this module is imported (torch
built for CUDA takes twice as much as torch for CPUs), and what the first calls add. On CUDA, the workspace of the
libraries for products and convolutions is added. In tests and in benchmarks/length.py the prediction is within 15 % of
the measured peak, for the default checkpoint and for Stable Diffusion 1.5's size in bfloat16. (Since the VAE is in
bfloat16 too, this was measured for one frame of 512² only: the prediction is 8 % below.) It was not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from zs2.errors import OutOfMemory
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.controlnet import ControlNetConfig
from zs2.models.temporal import Momentum
from zs2.models.unet import Encoder
from zs2.sampling.conditioning import chunks, most_rows
from zs2.sampling.decoding import TILE, WHOLE, at_once
from zs2.system.free_memory import address_room, amount, free_memory, process_size

if TYPE_CHECKING:
    from zs2.sampling.plan import SamplingPlan

TORCH = 225 * 2**20  # bytes of the process with torch imported, if the system does not report its size
WORKSPACE = 128 * 2**20  # bytes that the libraries of CUDA keep: those of products take at most 32 MiB each
CALLS = 75 * 2**20  # bytes that the first calls add: threads, code, buffers
PROCESS = CALLS + process_size(TORCH)  # measured before any model is loaded
ARENA = 128 * 2**20  # bytes that glibc maps for the first allocation of a thread; half of them are given back


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes that a sampling is expected to need at its peak. Of `unet` and `decoding`, the larger counts."""

    process: int
    weights: int
    latents: int
    frames: int
    text: int
    states: int
    deep: int
    control: int
    flow: int
    unet: int
    decoding: int

    @property
    def total(self) -> int:
        """The peak."""
        return sum(vars(self).values()) - min(self.unet, self.decoding)

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(vars(self), key=lambda name: vars(self)[name])

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        rows = {**vars(self), "peak": self.total}
        for name in ("control", "flow"):
            if not rows[name]:
                del rows[name]
        return [f"{name:<10}{amount(size):>10}" for name, size in rows.items()]


def planned_memory(plan: SamplingPlan) -> MemoryPlan:
    """The memory that a sampling in chunks needs, by the formulas above."""
    unet, vae, text = plan.model.unet, plan.model.vae, plan.model.text
    request, chunk, (_, h, w), (height, width) = plan.request, plan.chunk, plan.latent_shape, plan.size
    weight, reduction = unet.conv_in.weight, vae.config.reduction
    device, element = weight.device.type, weight.element_size()
    cpu, reorders = device == "cpu", device in ("cpu", "cuda")
    networks = _networks(plan)
    # the steps whose states stay on the device
    kept_states = 0 if not plan.stream else 2 if plan.states_elsewhere else request.steps
    held = chunk if plan.stream or request.frames is None else request.frames
    together = at_once(vae, height, width, chunk)
    encodes = request.source is not None or request.first_frame is not None  # whole frames; less than decoding takes
    tile = (height, width) if encodes or height * width <= WHOLE else (TILE, TILE)
    inputs = held * plan.model.edits + (request.steps + 1) * (request.first_frame is not None)  # latents of frames
    return MemoryPlan(
        process=PROCESS if cpu else WORKSPACE if device == "cuda" else 0,
        weights=sum(_bytes(module) for module in (unet, vae, *text.encoders, *plan.model.controls)),
        latents=(3 * held * (1 + plan.solver.remembered) + inputs) * vae.config.latent_channels * h * w * 4,
        frames=2 * held * 3 * height * width if cpu else 0,
        text=(most_rows(request, chunk) + 1)
        * chunks(plan.model, request)
        * text.encoders[0].config.max_position_embeddings
        * 2
        * element
        * sum(channels for network in networks for channels, _ in blocks(network.config, (h, w))),
        states=_states(plan) * (2 + kept_states),
        deep=(request.deep_cache > 1) * plan.branches * held * unet.config.block_out_channels[0] * h * w * element,
        control=_control(networks, plan.branches * chunk, held, (h, w)) * element,
        flow=0 if not cpu or plan.method.flow is None else plan.method.flow.numbers.nbytes,
        unet=unet_bytes(unet.config, plan.branches * chunk, (h, w), element, reorders, unet.momentum.key_frames),
        decoding=together
        * decoder_numbers(vae.config, (tile[0] // reduction, tile[1] // reduction), reorders)
        * vae.decoder.conv_in.weight.element_size(),
    )


def _networks(plan: SamplingPlan) -> list[Encoder]:
    """The UNet, and the ControlNets that the request uses."""
    return [plan.model.unet, *(plan.model.controls if plan.request.control else ())]


def _control(networks: Sequence[Encoder], rows: int, held: int, size: tuple[int, int]) -> int:
    """What ControlNets add, in numbers: hints of `held` frames, and residuals of `rows` rows."""
    config, count = networks[0].config, len(networks) - 1
    if not count:
        return 0
    areas, layers = _areas(config, size), config.layers_per_block
    channels = config.block_out_channels
    kept = channels[0] * areas[0] + sum(c * area * n for c, area, n in zip(channels, areas, layers, strict=True))
    kept += sum(c * area for c, area in zip(channels, areas[1:], strict=False))
    return count * held * channels[0] * areas[0] + (count + 1 + (count > 1)) * rows * kept


def blocks(config: UNetConfig, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(channels, tokens) of every transformer block of a UNet or a ControlNet, for latents of this size."""
    areas, control = _areas(config, size), isinstance(config, ControlNetConfig)
    found = []
    for level, (channels, layers) in enumerate(zip(config.block_out_channels, config.layers_per_block, strict=True)):
        if config.attention[level]:  # on the way down, and one more on the way up, which a ControlNet does not have
            found += (
                [(channels, areas[level])]
                * (2 * layers + 1 - control * (layers + 1))
                * config.transformer_layers[level]
            )
    if isinstance(config, ControlNetConfig) and not config.mid_attention:
        return found
    return [*found, *[(config.block_out_channels[-1], areas[-1])] * config.transformer_layers[-1]]


def state_bytes(config: UNetConfig, momentum: Momentum, size: tuple[int, int], branches: int, element: int) -> int:
    """The bytes of the momentum states after a chunk, which it passes on and which processes exchange."""
    each = element if momentum.state_dtype is None else momentum.state_dtype.itemsize
    return branches * momentum.state_frames * sum(c * n for c, n in blocks(config, size)) * each


def resume_bytes(plan: SamplingPlan) -> int:
    """The bytes of the file from which a stream can go on: the states of all steps that all frames do together."""
    return (plan.request.steps - plan.begin) * _states(plan)


def _states(plan: SamplingPlan) -> int:
    """The bytes of the momentum states after a chunk of a sampling."""
    size, element = plan.latent_shape[1:], plan.model.unet.conv_in.weight.element_size()
    return sum(state_bytes(one.config, one.momentum, size, plan.branches, element) for one in _networks(plan))


def unet_bytes(
    config: UNetConfig, rows: int, size: tuple[int, int], element: int, reorders: bool, key_frames: int = 1
) -> int:
    """The bytes of the activations in a call of the UNet."""
    channels, areas, last = config.block_out_channels, _areas(config, size), len(config.block_out_channels) - 1
    kept, peak = [channels[0] * areas[0]], 0

    def need(level: int, c_in: int, before: int, transformer: bool) -> None:
        nonlocal peak
        c = channels[level]
        local = max(_resnet(c_in, c, reorders), transformer_maps(key_frames) * c if transformer else 0)
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
            peak = max(peak, sum(kept) + x * areas[level] + (2 + 2 * reorders) * x * areas[level - 1])
    return rows * element * peak


def transformer_maps(key_frames: int) -> int:
    """What a transformer needs of its own, in maps: at its feed-forward, or in self-attention with many keys."""
    return max(22, 8 + 4 * key_frames)


def decoder_numbers(config: VAEConfig, size: tuple[int, int], reorders: bool) -> int:
    """The size of the activations in decoding one frame, in numbers of the VAE's dtype."""
    channels, area = config.block_out_channels[::-1], size[0] * size[1]
    peak, x = 9 * channels[0] * area, channels[0]
    for level, c in enumerate(channels):
        peak = max(peak, _resnet(x, c, reorders) * area)
        if level < len(channels) - 1:
            peak = max(peak, c * area + (2 + 2 * reorders) * c * 4 * area)
            area *= 4
        x = c
    return peak


def _areas(config: UNetConfig, size: tuple[int, int]) -> list[int]:
    """The pixels of a feature map of each level. Each level halves the sides, rounded up."""
    return [-(-size[0] // 2**level) * -(-size[1] // 2**level) for level in range(len(config.block_out_channels))]


def _resnet(c_in: int, c: int, reorders: bool) -> int:
    return max(2 * c_in + c + (c_in + c) * reorders, c_in + 3 * c + 2 * c * reorders)


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def free_for(plan: SamplingPlan) -> tuple[int | None, str]:
    """The bytes that this process can hold for a sampling, and what limits them, if it is a limit of the process.

    A limit of what is mapped (`ulimit -v`) counts the weights, a flow and the process as they are, so their part of the
    plan is not needed again.
    """
    free, of = free_memory(plan.model.device, 1 if plan.group is None else plan.group.here), ""
    room = address_room() if plan.model.device.type == "cpu" else None
    if room is not None:
        planned = planned_memory(plan)
        mapped = planned.weights + planned.flow + PROCESS - CALLS
        most = max(0, mapped + room[0] - ARENA)
        if free is None or most < free:
            free, of = most, f" within {room[1]}"
    return free, of


LOWER = {  # what to do about each part of the plan
    "process": "end other programs, or raise the limit of memory",
    "weights": "half precision (--dtype bfloat16), or a smaller model",
    "latents": "fewer --frames, or --stream",
    "frames": "fewer --frames, or --stream",
    "text": "fewer prompts, or a smaller --chunk",
    "states": "a smaller --size, or fewer --steps",
    "deep": "no --deep-cache",
    "control": "a smaller --chunk or --size",
    "flow": "a flow of fewer pixels or steps",
    "unet": "a smaller --size, or half precision (--dtype bfloat16)",
    "decoding": "a smaller --size",
}


def out_of_memory(plan: SamplingPlan, what: str) -> OutOfMemory:
    """The error that there was too little memory. It names the largest part of the plan, and what to lower.

    what: what needed it.
    """
    memory = planned_memory(plan)
    part = memory.largest
    advice = LOWER[part]
    if part == "unet" and plan.chunk > 1:
        advice = f"a chunk of {plan.chunk // 2} (--chunk), or {advice}"
    size = amount(vars(memory)[part])
    return OutOfMemory(
        f"out of memory in {what}: of {amount(memory.total)} that are planned, {part} needs most, {size}: try {advice}"
    )
