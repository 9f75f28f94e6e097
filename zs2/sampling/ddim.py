"""Deterministic DDIM (Song et al. 2020, arXiv 2010.02502; η = 0) on a checkpoint's own noise schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.sampling.schedule import Schedule, trailing
from zs2.sampling.solver import History, Solver


def timesteps(config: ScheduleConfig, steps: int) -> list[int]:
    """The training timesteps at which a sampling in `steps` steps evaluates the model, from noise to picture.

    They are those of diffusers' DDIMScheduler, which for some counts with `trailing` spacing adds a step at −1.

    Raises: InputError if steps < 1, or if a timestep would be beyond the last one of the schedule.
    """
    total = config.num_train_timesteps
    if steps < 1:
        raise InputError(f"steps is {steps}: expected at least 1")
    if config.timestep_spacing == "leading":
        chosen = [i * (total // steps) + config.steps_offset for i in reversed(range(steps))]
    elif config.timestep_spacing == "trailing":
        chosen = trailing(total, steps)
    else:
        stride = (total - 1) / max(steps - 1, 1)
        chosen = [round(i * stride) for i in reversed(range(steps))]
    if steps > total or chosen[0] >= total:
        most = total if config.timestep_spacing != "leading" else max(_most_leading_steps(config), 1)
        raise InputError(f"{steps} steps pass the last of the schedule's {total} timesteps: at most {most}")
    return chosen


def _most_leading_steps(config: ScheduleConfig) -> int:
    total, offset = config.num_train_timesteps, config.steps_offset
    return next(n for n in range(total, 0, -1) if (n - 1) * (total // n) + offset < total)


def final_alpha(schedule: Schedule) -> float:
    """ᾱ after the last step."""
    return 1.0 if schedule.config.set_alpha_to_one else schedule.alpha(0)


class DDIM(Solver):
    """DDIM in `steps` steps. It has no history. Raises: as `timesteps` does."""

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        super().__init__(Schedule(config), timesteps(config, steps))
        final = final_alpha(self.schedule)
        stride = config.num_train_timesteps // steps
        self.alpha_next = [self.schedule.alpha(t - stride) if t >= stride else final for t in self.timesteps]

    def step(self, i: int, latents: Tensor, prediction: Tensor, history: History | None) -> tuple[Tensor, None]:
        """Equation 12 of the paper with σ = 0: √ᾱ'·x₀ + √(1−ᾱ')·ε."""
        x0, eps = self.schedule.denoised(latents, self.timesteps[i], prediction)
        if self.schedule.config.clip_sample:
            limit = self.schedule.config.clip_sample_range
            x0 = x0.clamp(-limit, limit)
        return math.sqrt(self.alpha_next[i]) * x0 + math.sqrt(1 - self.alpha_next[i]) * eps, None


class Inversion(Solver):
    """DDIM backwards, from picture to noise (Song et al. 2020, section 4.3), as diffusers' DDIMInverseScheduler.

    Step i goes from less noise to that of timestep i, with the model's prediction for timestep i. The last step comes
    first: the picture counts as timestep 0.

    The prediction of a first try is that for the latents before the step. So DDIM does not come back to them: it
    predicts from those after the step. A step that is done again, with the history of the first try, uses these: it is
    a fixed-point iteration for the latents from which DDIM comes back, from whatever ᾱ its last step ends at.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver.schedule, solver.timesteps)

    def step(self, i: int, latents: Tensor, prediction: Tensor, history: History | None) -> tuple[Tensor, Before]:
        """As `DDIM.step`, to timestep i from the one after it. history: of the same step, which is done again."""
        here, there = [*self.timesteps, 0][i + 1], self.timesteps[i]
        if isinstance(history, Before):
            _, eps = self.schedule.denoised(latents, there, prediction)
            alpha = self.schedule.alpha(here) if i + 1 < len(self.timesteps) else final_alpha(self.schedule)
            x0 = (history.latents - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        else:
            history = Before(latents.new_ones(len(latents), dtype=torch.bool), latents)
            x0, eps = self.schedule.denoised(latents, here, prediction)
        return self.schedule.signal(there) * x0 + self.schedule.sigma(there) * eps, history


@dataclass(frozen=True)
class Before(History):
    """The latents before a step, (f, c, h, w)."""

    latents: Tensor
