"""The sampler: it samples the frames of a clip in chunks, in one of two orders. Both orders use the same step.

    steps     for each step: for each chunk: a call of the UNet, with the momentum states of the previous chunk
    chunks    for each chunk: for each step: the same call; the states of every step are kept for the next chunk

Each call has the same inputs in both orders, so both make the same clip. In `chunks` no frame needs a later one, so a
clip can be endless.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zs2.errors import collected, counted, is_out_of_memory
from zs2.guidance.edits import combined
from zs2.guidance.inputs import DRAWN, INVERTED
from zs2.guidance.interval import GUIDED
from zs2.guidance.sources import SourceLatents, encode
from zs2.guidance.steering import Steering
from zs2.models.unet import States, cannot_compile
from zs2.sampling.conditioning import Conditioning
from zs2.sampling.ddim import Inversion
from zs2.sampling.decoding import at_once, decode_frames
from zs2.sampling.kept_states import KeptStates, TravellingStates
from zs2.sampling.memory import out_of_memory
from zs2.sampling.plan import Joined, SamplingPlan
from zs2.sampling.resume import ResumeFile
from zs2.sampling.solver import History
from zs2.system.devices import overflow
from zs2.video.formats import Frames

REFINED = 1  # how often each step of an inversion is solved again with its own result


@dataclass(frozen=True)
class Step:
    """A finished step of the sampler: its index from 0, the number of steps, its timestep, and the latents after it.

    A noise model that begins with frame 0 alone yields steps of one frame first.
    """

    index: int
    steps: int
    timestep: int
    latents: Tensor  # (F, c, h, w), scaled, float32, on the model's device


@dataclass
class Chunk:
    """Frames that go through the UNet together, in their state before the next step.

    first: the index of the first frame. latents: (f, c, h, w), of all frames, of every process.
    history: the solver's. deep: the UNet's deep features, for DeepCache. Both are of this process's own frames only.
    """

    first: int
    latents: Tensor
    history: History | None = None
    deep: Tensor | None = None


class Sampler:
    """One sampling. Processes that share it must all call the same methods, and each gets all frames."""

    def __init__(self, plan: SamplingPlan) -> None:
        self.plan, self.device = plan, plan.model.device
        self.source = self._source()
        self.conditioning = Conditioning(plan.model, plan.request, plan.size, self.source if plan.model.edits else None)
        networks = plan.model.controls if plan.request.control else ()
        self.steering = Steering(networks, plan.request.controls, plan.size, plan.request.steps, not plan.stream)
        self.span = plan.chunk * (1 if plan.group is None else plan.group.size)  # frames of a chunk
        self.begin = plan.begin  # the first step that all frames do together
        self.first_frame: Tensor | None = None  # its latents before every step and after the last, (steps + 1, c, h, w)
        self._timesteps = torch.tensor(plan.solver.timesteps, device=self.device)
        self._progress = torch.linspace(0, 1, plan.request.steps, device=self.device)

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        """Sample the whole clip, and yield each finished step."""
        joined = yield from self._beginning()
        latents = torch.stack(list(itertools.islice(joined.latents, self.plan.request.frames)))  # (F, c, h, w)
        pieces = latents.split(self.span)
        firsts = range(0, len(latents), self.span)
        chunks = [self._chunk(*one, joined.history) for one in zip(firsts, pieces, strict=True)]
        del latents, pieces
        for i in range(self.begin, self.plan.request.steps):
            states: States = ()
            for chunk in chunks:
                states = self.step(i, chunk, states)
            yield self.finished(i, torch.cat([chunk.latents for chunk in chunks]))

    @torch.no_grad()
    def chunks(self, resume: ResumeFile | None = None) -> Iterator[Tensor]:
        """Yield finished latents (f, c, h, w), a chunk at a time. This is endless if the request has frames=None.

        resume: the file to go on from, if it is there. It is replaced after each chunk but the last, when the caller
            asks for the next one.
        """
        joined = _result(self._beginning())
        kept, steps = self._kept_states(), self.plan.request.steps
        first = 0 if resume is None else resume.restore(kept, steps, self.device)
        latents = itertools.islice(joined.latents, first, self.plan.request.frames)
        while piece := list(itertools.islice(latents, self.span)):
            chunk = self._chunk(first, torch.stack(piece), joined.history)
            for i in range(self.begin, self.plan.request.steps):
                kept.keep(i, self.step(i, chunk, kept.take(i)))
                self.check(i, chunk.latents)
            first += len(piece)
            yield chunk.latents
            if resume is not None and first != self.plan.request.frames:
                resume.keep(kept, steps, first)

    def frames(self, resume: ResumeFile | None = None) -> Iterator[Frames]:
        """Yield finished frames, uint8 (H, W, 3), as `chunks` yields their latents."""
        for latents in self.chunks(resume):
            yield from decode_frames(self.plan, latents)

    def _kept_states(self) -> KeptStates:
        """Where a stream keeps its states."""
        steps = self.plan.request.steps
        if self.plan.states_elsewhere:
            return TravellingStates(steps, self.device, self.plan.state_device)
        return KeptStates(steps)

    def _source(self) -> SourceLatents | None:
        """The unscaled latents of the request's source; None without a source."""
        plan = self.plan
        if plan.request.source is None:
            return None
        read = partial(plan.request.source.frames, size=plan.size)
        most = at_once(plan.model.vae, *plan.size, plan.chunk)
        return SourceLatents(plan.model.vae, read, most, plan.posterior, keep_all=plan.model.edits and not plan.stream)

    def _beginning(self) -> Generator[Step, None, Joined]:
        """Do the steps before all frames are sampled together, if the noise model has any."""
        if self.plan.request.first_frame is not None:
            self.first_frame = self._path_to_first_frame()
        if self.plan.start is None:
            return Joined(self.initial())
        return (yield from self.plan.start.run(self))

    def initial(self) -> Iterator[Tensor]:
        """The initial noise (c, h, w) of each frame, on the model's device."""
        noises = self.plan.noises(None if self.first_frame is None else self.first_frame[0].cpu())
        return (noise.to(self.device) for noise in noises)

    def _path_to_first_frame(self) -> Tensor:
        """The latents of an image before every step, and its own latents after the last, (steps + 1, c, h, w).

        They are those of its DDIM inversion, at the guidance of the clip or at 1; or the image with the seed's noise.
        """
        plan, request, vae = self.plan, self.plan.request, self.plan.model.vae
        assert request.first_frame is not None
        clean = encode(vae, request.first_frame.frames(0, 1, plan.size), 1).to(self.device) * vae.config.scaling_factor
        if request.noise_of_first_frame == DRAWN:
            noise, schedule = next(plan.noises()).to(self.device), plan.solver.schedule
            path = [schedule.signal(t) * clean[0] + schedule.sigma(t) * noise for t in plan.solver.timesteps]
            return torch.stack([*path, clean[0]])
        with collected():  # of options without effect at guidance 1
            alone = replace(request, deep_cache=1, first_frame=None)
            if request.noise_of_first_frame == INVERTED:
                alone = replace(alone, guidance=1, guidance_interval=GUIDED)
        inversion = Sampler(replace(plan, request=alone, solver=Inversion(plan.solver), group=None))
        chunk, path = Chunk(0, clean), [clean[0]]
        for i in reversed(range(request.steps)):
            for _ in range(1 if request.noise_of_first_frame == INVERTED else 1 + REFINED):
                inversion.step(i, chunk, ())
            chunk.history = None
            path.append(chunk.latents[0])
        inversion.check(0, chunk.latents)
        return torch.stack(path[::-1])

    def _chunk(self, first: int, latents: Tensor, history: History | None) -> Chunk:
        """Build the chunk of these frames. history: that of the frames from 0 on that have one."""
        latents = self._begun(first, latents)
        known = 0 if history is None else len(history.known)
        if history is None or first >= known:
            return Chunk(first, latents)
        history = history.frames(slice(first, first + len(latents)))
        history = history.extended(len(latents) - len(history.known))
        group = self.plan.group
        return Chunk(first, latents, history if group is None else history.frames(group.share(len(latents)).mine))

    def _begun(self, first: int, latents: Tensor) -> Tensor:
        """The latents (f, c, h, w) of frames before the first step that they do, from their noise."""
        if self.source is None or not self.plan.noised_source:
            return latents
        clean = self.source.frames(first, len(latents)).to(self.device) * self.plan.model.vae.config.scaling_factor
        schedule, t = self.plan.solver.schedule, self.plan.solver.timesteps[self.begin]
        return schedule.signal(t) * clean + schedule.sigma(t) * latents

    def finished(self, i: int, latents: Tensor) -> Step:
        """Check the latents after step i, and return the finished step."""
        self.check(i, latents)
        return Step(i, self.plan.request.steps, self.plan.solver.timesteps[i], latents)

    def check(self, i: int, latents: Tensor) -> None:
        """Raise FloatingPointError if latents are NaN or infinite after step i.

        The message names weights that are NaN or infinite. This waits for the device, which no step does.
        """
        if not latents.isfinite().all():
            request, dtype = self.plan.request, self.plan.model.dtype
            when = f"step {i + 1} of {request.steps} (timestep {self.plan.solver.timesteps[i]})"
            advice = f"a smaller guidance than {request.guidance:g}"
            weights = self.plan.model.not_finite()
            raise overflow(f"the latents are NaN or infinite after {when}", dtype, weights, advice)

    def step(self, i: int, chunk: Chunk, states: States, *, alone: bool = False) -> States:
        """Do step i for a chunk, and update the chunk in place.

        states: those after the previous chunk. alone: whether each process computes the whole chunk for itself.
        Returns: the states after this chunk. Raises: OutOfMemory; InputError if torch can't compile the UNet.
        """
        group, request = None if self.plan.group is None or alone else self.plan.group, self.plan.request
        share = None if group is None else group.share(len(chunk.latents))
        mine = slice(0, len(chunk.latents)) if share is None else share.mine
        latents = chunk.latents[mine]  # (f, c, h, w)
        frames, guidance, start = len(latents), request.guided(i), time.monotonic()
        try:
            conditions = self.conditioning.frames(chunk.first + mine.start, frames, guidance)
            rows = conditions.branches * frames
            own = len(conditions.text)  # states of the UNet; those of the ControlNets follow
            deep = self._deep(i, chunk, rows)
            call: dict[str, Any] = {
                "frames": frames,
                "first": chunk.first + mine.start,
                "progress": self._progress[i],
                "exchange": None if share is None else share.exchange,
            }
            x, t = conditions.input(latents).to(self.plan.model.dtype), self._timesteps[i]  # (branches·f, C, h, w)
            residuals, of_controls = self.steering.residuals(
                i, x, t, conditions.controls, states=states[own:], shallow=deep is not None, **call
            )
            output = self.plan.model.unet(
                x,
                t,
                conditions.text,
                added=conditions.added,
                residuals=residuals,
                states=states[:own],
                deep=deep,
                **call,
            )
        except (MemoryError, RuntimeError) as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise cannot_compile(error) from error
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self.plan, f"a step of {counted(frames, 'frame')} at once") from error
        prediction = output.prediction.float()
        if conditions.branches == 2:
            negative, positive = prediction.chunk(2)
            prediction = negative + guidance * (positive - negative)
        elif conditions.branches == 3:
            prediction = combined(prediction, guidance, request.image_guidance)
        chunk.deep = output.deep if request.deep_cache > 1 else None
        latents, chunk.history = self.plan.solver.step(i, latents, prediction, chunk.history)
        chunk.latents = latents if share is None else share.gather(latents)
        if self.first_frame is not None and chunk.first == 0:
            chunk.latents = torch.cat([self.first_frame[i + 1 : i + 2], chunk.latents[1:]])
        if group is not None:
            group.patience.note(time.monotonic() - start)
        return [*output.states, *of_controls]

    def _deep(self, i: int, chunk: Chunk, rows: int) -> Tensor | None:
        """The deep features that step i reuses, with this number of rows; None if the step computes them.

        After guidance has ended, the kept features have more rows than needed. The rows of the prompt are the last.
        """
        kept = chunk.deep
        if kept is None or i % self.plan.request.deep_cache == 0 or len(kept) < rows:
            return None
        return kept if len(kept) == rows else kept[-rows:].clone()


def _result(steps: Generator[Step, None, Joined]) -> Joined:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
