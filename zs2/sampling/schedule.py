"""The noise schedule, x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε: signal and noise at a timestep, and x₀ and ε from a prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zs2.models.config import ScheduleConfig


def betas(config: ScheduleConfig) -> Tensor:
    """The noise variances β of the forward process, (num_train_timesteps,), float32."""
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float32)
    if config.beta_schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2

    def alpha_bar(t: float) -> float:  # squaredcos_cap_v2 (Nichol & Dhariwal 2021)
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / count) / alpha_bar(i / count) for i in range(count)]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float32)


def alphas_cumprod(config: ScheduleConfig) -> Tensor:
    """ᾱ of every training timestep, (num_train_timesteps,), float32.

    With `rescale_betas_zero_snr`, √ᾱ is shifted and scaled so that its last value is 0 (Lin et al. 2023, arXiv
    2305.08891).
    """
    cumprod = (1 - betas(config)).cumprod(0)
    if not config.rescale_betas_zero_snr:
        return cumprod
    root = cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def trailing(total: int, steps: int) -> list[int]:
    """The timesteps of trailing spacing, which begins at the last of `total`.

    They are those of diffusers, which for some counts adds a step at −1.
    """
    stride = (total - total / steps) - total  # the rounding of numpy's arange: halves fall the same way
    return [round(total + i * stride) - 1 for i in range(steps)]


def options_of(config: ScheduleConfig) -> dict[str, Any]:
    """The options of a request that decide this schedule, with their values."""
    return {
        "spacing": config.timestep_spacing,
        "zero_snr": config.rescale_betas_zero_snr,
        "final_alpha": "one" if config.set_alpha_to_one else "first",
    }


def with_options(
    config: ScheduleConfig, spacing: str | None, zero_snr: bool | None, final_alpha: str | None
) -> ScheduleConfig:
    """A schedule with these options of a request. None leaves one as it is."""
    return replace(
        config,
        timestep_spacing=config.timestep_spacing if spacing is None else spacing,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr if zero_snr is None else zero_snr,
        set_alpha_to_one=config.set_alpha_to_one if final_alpha is None else final_alpha == "one",
    )


@dataclass(frozen=True)
class Schedule:
    """A checkpoint's schedule, for a solver.

    least: a lower limit of ᾱ, for a solver that takes its logarithm, which can't be that of 0.
    """

    config: ScheduleConfig
    least: float = 0.0

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of every training timestep, without the lower limit."""
        return alphas_cumprod(self.config)

    @cached_property
    def _alphas(self) -> list[float]:
        return [max(alpha, self.least) for alpha in self.alphas_cumprod.tolist()]

    def alpha(self, t: int) -> float:
        """ᾱ of a timestep."""
        return self._alphas[t]

    def signal(self, t: int) -> float:
        """√ᾱ of a timestep."""
        return math.sqrt(self.alpha(t))

    def sigma(self, t: int) -> float:
        """√(1−ᾱ) of a timestep."""
        return math.sqrt(1 - self.alpha(t))

    def denoised(self, x: Tensor, t: int, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a model's prediction to x₀ and ε.

        Args:
            x: latents at timestep t. prediction: ε, v = √ᾱ·ε − √(1−ᾱ)·x₀, or x₀, as the model was trained.
        Returns: x₀ and ε, both shaped as x.
        """
        signal, sigma = self.signal(t), self.sigma(t)
        if self.config.prediction_type == "epsilon":
            return (x - sigma * prediction) / signal, prediction
        if self.config.prediction_type == "v_prediction":
            return signal * x - sigma * prediction, signal * prediction + sigma * x
        return prediction, (x - signal * prediction) / sigma
