"""The sampler: the frames of a clip in chunks, step by step, or chunk by chunk through all steps. One step serves both.

    steps     for each step: for each chunk: a call of the UNet, with the momentum states of the chunk before
    chunks    for each chunk: for each step: the same call; the states of every step are kept for the next chunk

Each call has the same inputs in both orders, so that both make the same clip; `chunks` needs no later frame for an
earlier one, and goes on for as long as it is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from zs2.errors import OutOfMemory, is_out_of_memory
from zs2.method import Method
from zs2.models.attention import TextKV
from zs2.models.config import ScheduleConfig
from zs2.models.prompt_encoder import Text
from zs2.models.temporal import Exchange
from zs2.models.unet import Deep, States, UNet
from zs2.sampling.ddim import DDIM, Solver
from zs2.sampling.dpm_solver import DPMSolver
from zs2.sampling.request import Request
from zs2.sampling.text2video_zero import MOTION, after, spread

if TYPE_CHECKING:
    from zs2.sampling.frame_parallel import Group


SOLVERS: dict[str, Callable[[ScheduleConfig, int], Solver]] = {"ddim": DDIM, "dpm++": DPMSolver}


@dataclass(frozen=True)
class Step:
    """A finished step of the sampler: its index from 0, of how many, its timestep, and the latents after it.

    While text2video-zero samples frame 0 alone, in its first steps, the latents are of one frame.
    """

    index: int
    steps: int
    timestep: int
    latents: Tensor  # (F, c, h, w), scaled, float32, on the model's device


class PickedText(Sequence[TextKV]):
    """Keys and values of a few texts as those of one text a row, each layer's picked when it is asked for."""

    def __init__(self, layers: list[TextKV], rows: Tensor) -> None:
        self.layers, self.rows = layers, rows

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> TextKV:  # type: ignore[override]
        keys, values = self.layers[layer]
        return keys[self.rows], values[self.rows]


class Sampler:
    """One sampling.

    Args:
        unet, text: of the model. solver: its steps. method: the noise decides how sampling begins.
        request: what to sample; its `chunk` is a number. size: height and width in pixels.
        noises: the initial noise (c, h, w) of each frame, without end or as many as there are.
        renoised: whether the frames are text2video-zero's, made of frame 0 at t₀.
        group: the processes that share each chunk, `chunk` frames each; all of them call the same, and get all frames.
        state_device: where `chunks` keeps the momentum states.
    """

    def __init__(
        self,
        unet: UNet,
        text: Text,
        solver: Solver,
        method: Method,
        request: Request,
        *,
        size: tuple[int, int],
        noises: Iterator[Tensor],
        renoised: bool,
        group: Group | None = None,
        state_device: torch.device | None = None,
    ) -> None:
        assert request.chunk is not None
        self.unet, self.text, self.solver, self.method, self.request = unet, text, solver, method, request
        self.size, self.noises, self.group = size, noises, group
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        self.state_device = state_device or self.device
        self.span = request.chunk * (1 if group is None else group.size)
        t0, t1 = after(request.steps, method.renoise) if renoised else (-1, request.steps - 1)
        self.renoise = (t0, t1) if renoised else None
        self.begin = request.steps - t1 - 1  # the step from which all frames go on together
        self.timesteps = torch.tensor(solver.timesteps, device=self.device)
        self._projected: tuple[list[str], list[TextKV], Tensor | None] | None = None
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._deep: dict[int, Deep] = {}  # of the frames from each first one on

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        """The whole clip, step by step."""
        starts = yield from self._beginning()
        x = torch.stack(list(itertools.islice(starts, self.request.frames)))  # (F, c, h, w)
        for i in range(self.begin, self.request.steps):
            parts: list[Tensor] = []
            states: States = ()
            for chunk in x.split(self.span):
                part, states = self._step(i, chunk, sum(map(len, parts)), states)
                parts.append(part)
            x = torch.cat(parts)
            yield self._told(i, x)

    @torch.no_grad()
    def chunks(self, frames: int | None) -> Iterator[Tensor]:
        """Finished latents (f, c, h, w), a chunk at a time, of so many frames, or without end if None."""
        starts = itertools.islice(_result(self._beginning()), frames)
        states: list[States] = [()] * self.request.steps
        first = 0
        while chunk := list(itertools.islice(starts, self.span)):
            x = torch.stack(chunk)  # (f, c, h, w)
            for i in range(self.begin, self.request.steps):
                before = [None if state is None else state.to(self.device) for state in states[i]]
                x, states_now = self._step(i, x, first, before)
                states[i] = [None if state is None else state.to(self.state_device) for state in states_now]
                self._check(i, x)
            self._deep.clear()
            first += len(x)
            yield self._latents(x)

    def _beginning(self) -> Generator[Step, None, Iterator[Tensor]]:
        """What comes before all frames go on together: nothing, or the steps of text2video-zero's frame 0 alone.

        Returns: the latents (c, h, w) of each frame at that step, made when they are asked for.
        """
        noises = (noise.to(self.device) for noise in self.noises)
        if self.renoise is None:
            return noises
        x = next(noises)[None]
        for i in range(self.begin):
            x, _ = self._step(i, x, 0, (), alone=True)
            yield self._told(i, x)
        near, (t0, t1) = x[0], self.renoise
        for i in range(self.begin, self.request.steps - t0 - 1):
            x, _ = self._step(i, x, 0, (), alone=True)
            self._check(i, x)
        self._deep.clear()
        motion = self.method.motion or MOTION
        far = self._latents(x)[0]
        frames = spread(far, self.solver, seed=self.request.seed, motion=motion, t0=t0, t1=t1)
        nothing = len(near) - len(far)  # frame 0's solver remembers the step before; there is none of the others
        return itertools.chain([near], (F.pad(x, (0, 0, 0, 0, 0, nothing), value=torch.nan) for x in frames))

    def _told(self, i: int, x: Tensor) -> Step:
        self._check(i, x)
        return Step(i, self.request.steps, self.solver.timesteps[i], self._latents(x))

    def _latents(self, x: Tensor) -> Tensor:
        """What goes through the sampler, without what its solver remembers behind the latents."""
        return x[:, : self.unet.config.in_channels].contiguous()

    def _check(self, i: int, x: Tensor) -> None:
        """Raise FloatingPointError for NaN or infinite latents after step i. It waits for the device; no step does."""
        if not x.isfinite().all():
            other = "" if self.dtype == torch.float32 else "float32, or "
            raise FloatingPointError(
                f"the latents are NaN or infinite after step {i + 1} of {self.request.steps} "
                f"(timestep {self.solver.timesteps[i]}) in {self.dtype}: try {other}a smaller guidance than "
                f"{self.request.guidance:g}"
            )

    def _step(self, i: int, x: Tensor, first: int, states: States, *, alone: bool = False) -> tuple[Tensor, States]:
        """Step i of a chunk: latents (f, c, h, w) of the frames from `first` on, with what the solver remembers behind
        them along the channels, and the states of the chunk before.

        alone: whatever other processes do, all of it is done in this one.
        Returns: the latents after the step, of all frames whichever process made them, and the chunk's states.
        """
        if self.group is None or alone:
            return self._denoise(i, x, first, states, None)
        share = self.group.share(len(x))
        part, states = self._denoise(i, x[share.mine], first + share.mine.start, states, share.exchange)
        return share.gather(part), states

    def _denoise(
        self, i: int, x: Tensor, first: int, states: States, exchange: Exchange | None
    ) -> tuple[Tensor, States]:
        """Step i of some frames."""
        request, frames = self.request, len(x)
        try:
            guidance = request.guided(i)
            text, added, branches = self.conditions(first, frames, guidance)
            output, states = self.unet(
                torch.cat([self._latents(x)] * branches).to(self.dtype),  # (branches·f, c, h, w)
                self.timesteps[i],
                text,
                frames=frames,
                added=added,
                carry=states,
                exchange=exchange,
                deep=self._deep_features(i, first, branches * frames),
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            advice = f"a chunk of {frames // 2} (--chunk)" if frames > 1 else "a smaller size, or half precision"
            raise OutOfMemory(f"out of memory in a step of {frames} frames at once: try {advice}") from error
        output = output.float()
        if branches == 2:
            negative, positive = output.chunk(2)
            output = negative + guidance * (positive - negative)
        return self.solver.step(i, x, output), states

    def _deep_features(self, i: int, first: int, rows: int) -> Deep | None:
        """The deep features that the UNet is given in step i, in so many rows: those of the last step that made them,
        or none, for it to make. Where guidance has ended there are more rows; the prompt's are the last."""
        every = self.request.deep_cache
        if every == 1:
            return None
        kept = self._deep.get(first)
        features = None if kept is None or i % every == 0 else kept.features
        if features is None or len(features) < rows:
            self._deep[first] = Deep()
        elif len(features) > rows:
            self._deep[first] = Deep(features[-rows:].clone())
        return self._deep[first]

    def conditions(self, first: int, frames: int, guidance: float) -> tuple[Sequence[TextKV], Tensor | None, int]:
        """What the UNet is conditioned on in a step of such guidance, for so many frames from the first: the text's
        keys and values, a row for each branch, or for each branch and frame where their prompts differ; what SDXL adds
        to the time embedding; and the number of branches.

        A text is projected once, and again only if other prompts came between: chunks that all have a prompt of their
        own would need far more memory for all their keys and values (8 MB a prompt in SD 1.5) than time for this.
        """
        prompts = self.request.prompts(first, frames) if guidance != 0 else []
        texts = list(dict.fromkeys(prompts))
        behind = int(self.request.guidance != 1)  # the texts stand behind the negative prompt, in all steps
        if self._projected is None or self._projected[0] != texts:
            encoded = self.text(texts, [self.request.negative_prompt] * behind)
            added = None if encoded.pooled is None else self.unet.added_embedding(encoded.pooled, self.size)
            self._projected = texts, self.unet.text_keys_values(encoded.context), added
        _, layers, added = self._projected
        negatives = int(guidance != 1)
        branches = negatives + bool(texts)
        each = frames if len(texts) > 1 else 1  # rows of a branch
        if each == 1 and negatives == behind:
            return layers, added, branches
        rows = (*[0] * (negatives * each), *(behind + texts.index(prompt) for prompt in prompts[:each]))
        if rows not in self._rows:
            self._rows[rows] = torch.tensor(rows, device=self.device)
        index = self._rows[rows]
        return PickedText(layers, index), None if added is None else added[index], branches


def _result(steps: Generator[Step, None, Iterator[Tensor]]) -> Iterator[Tensor]:
    """What a generator returns in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
