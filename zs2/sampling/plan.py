"""A request, resolved once for a model: the plan. Sampler, memory plan, decoding and provenance read only the plan."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from zs2.errors import InputError, brief, warn, whole
from zs2.guidance.edits import is_guided
from zs2.guidance.inputs import check_for_model, skipped_steps
from zs2.method import NOISE_MODELS, Method
from zs2.models.image_model import ImageModel
from zs2.models.temporal import momentum
from zs2.noise.models import noises, stream
from zs2.sampling.memory import MemoryPlan, free_for, planned_memory, resume_bytes
from zs2.sampling.request import Request
from zs2.sampling.schedule import with_options
from zs2.sampling.solver import SOLVERS, History, Solver
from zs2.system.devices import choose_device
from zs2.system.free_memory import fitting
from zs2.system.json_files import MOST_PIXELS
from zs2.system.registry import load

if TYPE_CHECKING:
    from zs2.sampling.frame_parallel import Group
    from zs2.sampling.sampler import Sampler, Step

MOST_SIGNAL = 0.2  # √ᾱ of the first timestep; more is no noise. Published schedules end at 0.07
STREAM_CHUNK = 8  # frames per chunk of a stream, which yields no frame before its first chunk is finished


class Start(Protocol):
    """The beginning of a sampling, for a noise model that needs the sampler. It is built from a method and a request.

    step: the first step that all frames do together.
    """

    step: int

    def run(self, sampler: Sampler) -> Generator[Step, None, Joined]:
        """Do the steps before `step`. Yields each finished step, with the frames that exist by then."""


@dataclass(frozen=True)
class Joined:
    """The frames that are sampled together from now on.

    latents: (c, h, w) of each frame, in order, computed lazily.
    history: the solver's history of the first frames; None if the solver keeps none.
    """

    latents: Iterator[Tensor]
    history: History | None = None


@dataclass(frozen=True)
class SamplingPlan:
    """Everything that decides a sampling.

    Args:
        model: the image model; its UNet has the attention of the method.
        method, request: what the caller asked for.
        solver: the solver, with its timesteps.
        latent_shape: (c, h, w) of a frame.
        chunk: the number of frames in one call of the UNet, for each process.
        start: the beginning of the sampling, for a noise model that needs the sampler; else None.
        group: the processes that make the clip together; None for one process.
        stream: whether each chunk goes through all steps before the next one begins.
        state_device: the device on which a stream keeps its momentum states.
    """

    model: ImageModel
    method: Method
    request: Request
    solver: Solver
    latent_shape: tuple[int, int, int]
    chunk: int
    start: Start | None
    group: Group | None
    stream: bool
    state_device: torch.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        _, h, w = self.latent_shape
        reduction = self.model.vae.config.reduction
        return h * reduction, w * reduction

    @property
    def begin(self) -> int:
        """The first step that all frames do together."""
        if self.noised_source:
            return skipped_steps(self.request.steps, self.request.strength)
        return 0 if self.start is None else self.start.step

    @property
    def step_count(self) -> int:
        """How many steps the sampler yields."""
        return self.request.steps - (self.begin if self.noised_source else 0)

    @property
    def noised_source(self) -> bool:
        """Whether sampling begins from the noised latents of a source (image to image)."""
        return self.request.source is not None and not self.model.edits

    @property
    def branches(self) -> int:
        """The most guidance branches of a step."""
        if self.model.edits:
            return 3 if is_guided(self.request.guidance, self.request.image_guidance) else 1
        return 1 if self.request.guidance in (0, 1) else 2

    @property
    def states_elsewhere(self) -> bool:
        """Whether a stream keeps its momentum states on another device than the model's."""
        here, there = self.model.device, self.state_device
        return (here.type, here.index or 0) != (there.type, there.index or 0)

    def noises(self, first: Tensor | None = None) -> Iterator[Tensor]:
        """The initial noise of each frame, float32 (c, h, w) on the CPU. It may be endless.

        Latents of the request stay on their device. first: the noise of frame 0, instead of the seed's.
        """
        request, drawn = self.request, 0 if self.posterior is None else 1
        if request.latents is not None:
            return iter(request.latents)
        frames = request.part_of or request.frames
        named = {"frames": frames, "first": first, "drawn": drawn, **self.method.noise_parameters}
        return self._checked(noises(self.method.noise, self.latent_shape, request.seed, **named))

    @property
    def posterior(self) -> Tensor | None:
        """The noise by which the latents of a source are drawn, (c, h, w): as in diffusers the first of the seed."""
        if not self.noised_source or self.request.source_latents == "mean":
            return None
        return stream(self.request.seed, 0, self.latent_shape)()

    def _checked(self, drawn: Iterator[Tensor]) -> Iterator[Tensor]:
        """The noises of a model, each of the right shape and type, and not fewer than there are frames."""
        count = 0
        for noise in drawn:
            count += 1
            if noise.shape != self.latent_shape or noise.dtype != torch.float32:
                got = f"{noise.dtype} {tuple(noise.shape)}"
                raise InputError(f"noise {self.method.noise!r} is {got}: expected torch.float32 {self.latent_shape}")
            yield noise
        if self.request.frames is None or count < self.request.frames:
            raise InputError(f"noise {self.method.noise!r} ended after {count} frames of {self.request.frames}")

    @property
    def memory(self) -> MemoryPlan:
        """The memory that the sampling is expected to need."""
        return planned_memory(self)

    @property
    def resume_bytes(self) -> int:
        """The size of the file from which a stream can go on. While it is replaced, it takes that twice."""
        return resume_bytes(self)

    def initial_noise(self) -> Tensor:
        """The noise that sampling starts from: float32 (F, c, h, w) on the CPU."""
        return torch.stack(list(islice(self.noises(), self.request.frames))).cpu()


def plan_sampling(
    model: ImageModel,
    method: Method,
    request: Request,
    group: Group | None = None,
    *,
    stream: bool = False,
    state_device: str | torch.device | None = None,
) -> SamplingPlan:
    """Plan a sampling that fits the free memory. All processes that share a clip must call this.

    The chunk is that of the request. By default it is the whole clip, or 8 frames in a stream, or as many frames as
    fit if that is fewer; then there is a warning.
    Raises: InputError as `resolve` does, and for a requested chunk that does not fit; then it names one that does.
    """
    plan = resolve(model, method, request, group, stream=stream, state_device=state_device)
    free, of = free_for(plan)
    asked = request.chunk is not None
    advice = "" if stream else ", or --stream"
    if stream and not plan.states_elsewhere and model.device.type != "cpu":
        advice = ", or --state-device cpu"
    chunk = fitting(
        lambda chunk: planned_memory(replace(plan, chunk=chunk)), plan.chunk, free, asked=asked, advice=advice, of=of
    )
    if group is not None:  # each process has measured its own free memory
        chunk = group.least(chunk, model.device)
    if chunk < plan.chunk:
        warn(f"sampling {chunk} frames at a time, not {plan.chunk}, to fit the free memory")
    if plan.start is not None and plan.start.step % request.deep_cache:
        warn(
            f"deep_cache {request.deep_cache} with {method.noise} in {request.steps} steps: frame 0 is only "
            "nearly the model's image, because its deep features are computed again when the other frames join"
        )
    if not plan.noised_source:
        _warn_of_signal(plan.solver)
    for text in (clip.fitting(plan.size) for clip in request.inputs.values()):
        if text:
            warn(text)
    if stream and state_device is not None and not plan.states_elsewhere:
        warn(f"state_device {state_device} has no effect: the model is there, too")
    return replace(plan, chunk=chunk)


def resolve(
    model: ImageModel,
    method: Method,
    request: Request,
    group: Group | None = None,
    *,
    stream: bool = False,
    state_device: str | torch.device | None = None,
) -> SamplingPlan:
    """Plan a sampling, whatever memory is free. The chunk is the request's, or the whole clip, or 8 frames of a stream.

    Raises: InputError for a size, a number of steps or frames, a clip skip, or latents that this model can't sample.
    """
    if not isinstance(request, Request):
        raise InputError(f"request is {brief(request)}: expected a Request, such as Request('a prompt')")
    frames = request.frames
    if frames is None and not stream:
        raise InputError("frames is None: expected a number (only a stream can be endless)")
    if group is not None and frames is not None:
        if frames < group.size:
            raise InputError(f"{group.size} processes for {frames} frames: expected at most one per frame")
        frames = -(-frames // group.size)
    wanted = request.chunk or (STREAM_CHUNK if stream else frames) or STREAM_CHUNK
    row = SOLVERS[request.sampler]
    schedule = with_options(model.schedule, request.spacing, request.zero_snr, request.final_alpha or row.final_alpha)
    solver = load(row.implementation)(schedule, request.steps)
    shape = _latent_shape(model, request)
    whole("clip_skip", request.clip_skip, 0, model.text.most_skipped)  # raises for more than there are layers
    has_latents = request.latents is not None
    method.settings(request.steps, has_latents)  # raises for too few steps
    start = None if has_latents or request.frames == 1 else load(NOISE_MODELS[method.noise].start)
    attn = {kind: momentum(kind or method.attn, **method.attention_parameters) for kind in (None, request.control_attn)}
    request.check_networks(len(model.controls))
    plan = SamplingPlan(
        model=model.with_momentum(attn[None], attn[request.control_attn]),
        method=method,
        request=request,
        solver=solver,
        latent_shape=shape,
        chunk=wanted if frames is None else min(wanted, frames),
        start=None if start is None else start(method, request),
        group=group,
        stream=stream,
        state_device=model.device if state_device is None else choose_device(state_device),
    )
    check_for_model(request, plan.model.edits, plan.branches > 1, None if start is None else method.noise)
    plan.noises()  # raises for a noise model that needs the number of frames
    return plan


def _warn_of_signal(solver: Solver) -> None:
    """Warn if sampling starts from pure noise at a timestep where the model was trained to find a picture in it."""
    schedule, first, last = solver.schedule, solver.timesteps[0], solver.schedule.config.num_train_timesteps - 1
    signal = float(schedule.signal(first))
    if signal > MOST_SIGNAL:
        advice = f"spacing trailing, which starts at timestep {last}, or more steps"
        if schedule.signal(last) > MOST_SIGNAL:
            advice = "another schedule: this one has no timestep of noise alone"
        warn(
            f"sampling starts from pure noise at timestep {first}, where the model expects signal (√ᾱ = "
            f"{signal:.2g}, at most {MOST_SIGNAL} is usual): give {advice}"
        )


def _latent_shape(model: ImageModel, request: Request) -> tuple[int, int, int]:
    """(c, h, w) of a frame. Raises: InputError for a size that can't be divided, or latents that do not fit."""
    reduction, channels = model.vae.config.reduction, model.vae.config.latent_channels
    size = model.unet.config.sample_size if request.latents is None else tuple(request.latents.shape[-2:])
    if size is None and None in (request.height, request.width):
        raise InputError("the checkpoint does not say which size it was trained at: give the width and the height")
    h, w = size or (0, 0)
    height = h * reduction if request.height is None else whole("height", request.height, reduction, MOST_PIXELS)
    width = w * reduction if request.width is None else whole("width", request.width, reduction, MOST_PIXELS)
    if height % reduction or width % reduction or not height or not width:
        raise InputError(f"size {width}x{height}: expected multiples of {reduction}, the VAE's reduction")
    shape = channels, height // reduction, width // reduction
    least = 2 ** (len(model.unet.config.block_out_channels) - 1)  # each level halves the size
    if model.unet.config.downsample_padding == 0 and min(shape[1:]) < least:
        raise InputError(f"size {width}x{height}: this UNet needs at least {least * reduction} pixels along each side")
    latents = request.latents
    if latents is not None:
        want = (request.part_of or request.frames, *shape)
        if latents.shape != want or latents.dtype != torch.float32:
            raise InputError(f"latents are {latents.dtype} {tuple(latents.shape)}: expected torch.float32 {want}")
        if not latents.isfinite().all():
            raise InputError("latents: some are NaN or infinite")
    return shape
