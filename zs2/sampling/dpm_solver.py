"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2, midpoint): second order, so that fewer steps do.

As diffusers' DPMSolverMultistepScheduler with its defaults does, steps stand where the schedule's spacing puts them for
one step more, and the last one goes to zero noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.sampling.ddim import Solver, clean_and_noise


def timesteps(config: ScheduleConfig, steps: int) -> list[int]:
    """The training timesteps at which a sampling of so many steps evaluates the model, from noise to picture.

    Raises: InputError if steps < 1, or so many that a timestep passes the schedule's last.
    """
    total = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        most = next(n for n in range(total - 1, 0, -1) if n * (total // (n + 1)) + config.steps_offset < total)
    else:
        most = total - 1
    if not 1 <= steps <= most:
        raise InputError(f"steps is {steps}: expected from 1 to {most} of the schedule's {total}")
    if config.timestep_spacing == "leading":
        return [i * (total // (steps + 1)) + config.steps_offset for i in range(steps, 0, -1)]
    if config.timestep_spacing == "trailing":
        return [round(total - i * (total / steps)) - 1 for i in range(steps)]
    return [round(i * ((total - 1) / steps)) for i in range(steps, 0, -1)]


class DPMSolver(Solver):
    """DPM-Solver++(2M) in so many steps; see `timesteps` for the errors. `clip_sample` is DDIM's alone."""

    remembered = 1

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        super().__init__(config, timesteps(config, steps))
        # where a schedule ends at zero signal, diffusers' least, so that the logarithm is finite
        self.alpha = [max(alpha, 2**-24) for alpha in self.alpha] + [1.0]

    def _log_snr(self, i: int) -> float:
        """λ = log(√ᾱ / √(1 − ᾱ)) before step i."""
        return 0.5 * math.log(self.alpha[i] / (1 - self.alpha[i]))

    def step(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """Of first order where nothing is remembered (or NaN, of frames that begin beside others), and at the end. What
        is remembered is the x₀ that the step before predicted: (f, c, h, w) or (f, 2c, h, w) → (f, 2c, h, w)."""
        x, *remembered = x.split(output.shape[1], dim=1)
        x0, _ = clean_and_noise(self.config, self.alpha[i], x, output)
        last = i == len(self.timesteps) - 1
        guess = x0
        if remembered and not last:
            h, before = self._log_snr(i + 1) - self._log_snr(i), self._log_snr(i) - self._log_snr(i - 1)
            ahead = x0 + h / (2 * before) * (x0 - remembered[0])  # x₀ half way, extrapolated
            guess = torch.where(remembered[0].isnan(), x0, ahead)
        alpha, alpha_next = self.alpha[i], self.alpha[i + 1]
        noise = math.sqrt((1 - alpha_next) / (1 - alpha))  # σ' / σ, which is 0 in the last step
        # α'·(1 − e^−h) with e^−h = (σ'/α')·(α/σ)
        signal = math.sqrt(alpha_next) - noise * math.sqrt(alpha)
        return torch.cat([noise * x + signal * guess, x0], dim=1)
