"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2, midpoint): of second order, so it needs fewer steps.

As in diffusers' DPMSolverMultistepScheduler, the timesteps are those that the schedule's spacing has for one step more.
The last step goes to zero noise by default; with `set_alpha_to_one` false it goes to the noise of timestep 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.sampling.schedule import Schedule, trailing
from zs2.sampling.solver import History, Solver

FEW = 15  # with fewer steps the last one is of first order, as in diffusers


def timesteps(config: ScheduleConfig, steps: int) -> list[int]:
    """The training timesteps at which a sampling in `steps` steps evaluates the model, from noise to picture.

    Raises: InputError if steps < 1, or if a timestep would be beyond the last one of the schedule.
    """
    total = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        most = next(n for n in range(total - 1, 0, -1) if n * (total // (n + 1)) + config.steps_offset < total)
    else:
        most = total if config.timestep_spacing == "trailing" else total - 1
    if not 1 <= steps <= most:
        raise InputError(f"steps is {steps}: expected from 1 to {most} of the schedule's {total}")
    if config.timestep_spacing == "leading":
        return [i * (total // (steps + 1)) + config.steps_offset for i in range(steps, 0, -1)]
    if config.timestep_spacing == "trailing":
        return trailing(total, steps)
    return [round(i * ((total - 1) / steps)) for i in range(steps, 0, -1)]


@dataclass(frozen=True)
class Predicted(History):
    """The x₀ that the previous step predicted, (f, c, h, w)."""

    x0: Tensor


class DPMSolver(Solver):
    """DPM-Solver++(2M) in `steps` steps. It ignores `clip_sample`, which is for DDIM. Raises: as `timesteps` does."""

    remembered = 1

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        # diffusers' lower limit of ᾱ: the logarithm stays finite if a schedule ends at zero signal
        super().__init__(Schedule(config, least=2**-24), timesteps(config, steps))
        if max(map(self.schedule.alpha, self.timesteps)) >= 1:
            raise InputError("a schedule without noise at one of its timesteps: dpm++ needs some; expected ddim")
        final = 1.0 if config.set_alpha_to_one else self.schedule.alpha(0)
        self.alpha = [*map(self.schedule.alpha, self.timesteps), final]

    def _log_snr(self, i: int) -> float:
        """λ = log(√ᾱ / √(1 − ᾱ)) before step i."""
        return 0.5 * math.log(self.alpha[i] / (1 - self.alpha[i]))

    def step(self, i: int, latents: Tensor, prediction: Tensor, history: History | None) -> tuple[Tensor, Predicted]:
        """First order on the first step, and for frames that join mid-sampling; else second.

        The last step is of first order, too, if it goes to zero noise or is one of a few.
        """
        x0, _ = self.schedule.denoised(latents, self.timesteps[i], prediction)
        steps = len(self.timesteps)
        first_order = i == steps - 1 and (self.alpha[-1] == 1 or steps < FEW)
        guess = x0
        if isinstance(history, Predicted) and not first_order:
            h, before = self._log_snr(i + 1) - self._log_snr(i), self._log_snr(i) - self._log_snr(i - 1)
            ahead = x0 + h / (2 * before) * (x0 - history.x0)  # x₀ extrapolated to half the step
            guess = torch.where(history.known[:, None, None, None], ahead, x0)
        alpha, alpha_next = self.alpha[i], self.alpha[i + 1]
        noise = math.sqrt((1 - alpha_next) / (1 - alpha))  # σ' / σ, which is 0 in the last step
        # α'·(1 − e^−h) with e^−h = (σ'/α')·(α/σ)
        signal = math.sqrt(alpha_next) - noise * math.sqrt(alpha)
        known = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        return noise * latents + signal * guess, Predicted(known, x0)
