"""Deterministic DDIM (Song et al. 2020, arXiv 2010.02502; η = 0) on a checkpoint's own noise schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zs2.errors import InputError
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
    """ᾱ of every training timestep, (num_train_timesteps,), float32: x_t = √ᾱ·x₀ + √(1−ᾱ)·ε.

    With `rescale_betas_zero_snr`, √ᾱ is shifted and scaled so that the last is 0 (Lin et al. 2023, arXiv 2305.08891).
    """
    cumprod = (1 - betas(config)).cumprod(0)
    if not config.rescale_betas_zero_snr:
        return cumprod
    root = cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def timesteps(config: ScheduleConfig, steps: int) -> list[int]:
    """The training timesteps at which a sampling of so many steps evaluates the model, from noise to picture.

    They are those of diffusers' DDIMScheduler (which adds a step at −1 for some counts with `trailing` spacing).

    Raises: InputError if steps < 1, or so many that a timestep passes the schedule's last.
    """
    total = config.num_train_timesteps
    if steps < 1:
        raise InputError(f"steps is {steps}: expected at least 1")
    if config.timestep_spacing == "leading":
        chosen = [i * (total // steps) + config.steps_offset for i in reversed(range(steps))]
    elif config.timestep_spacing == "trailing":
        stride = (total - total / steps) - total  # rounded as numpy's arange rounds it, so that halves fall alike
        chosen = [round(total + i * stride) - 1 for i in range(steps)]
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


def clean_and_noise(config: ScheduleConfig, alpha: float, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The x₀ and the ε that a model's output means.

    Args:
        alpha: ᾱ of the timestep. x: latents. output: ε, v = √ᾱ·ε − √(1−ᾱ)·x₀, or x₀, as the model was trained.
    Returns: two tensors, shaped as x.
    """
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if config.prediction_type == "epsilon":
        return (x - noise * output) / signal, output
    if config.prediction_type == "v_prediction":
        return signal * x - noise * output, signal * output + noise * x
    return output, (x - signal * output) / noise


class Solver(ABC):
    """The steps of one sampling. Nothing here changes as it runs, and latents are float32.

    Args:
        config: the schedule. timesteps: at which the model is evaluated, from noise to picture.
    Raises: InputError for a schedule without signal there, if the model predicts ε.
    """

    remembered = 0  # tensors of the latents' shape that a step hands to the next, behind the latents

    def __init__(self, config: ScheduleConfig, timesteps: list[int]) -> None:
        self.config, self.timesteps = config, timesteps
        self.cumprod = alphas_cumprod(config)
        self.alpha = [self.cumprod[t].item() for t in timesteps]
        if config.prediction_type == "epsilon" and min(self.alpha) <= 0:
            raise InputError("a schedule that ends at zero signal needs v or x0 prediction: epsilon has no x0 there")

    @abstractmethod
    def step(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The i-th step.

        Args:
            x: latents before the step, (f, c, h, w); behind them along the channels, what the step before returned
                behind its own. output: what the model made of the latents, (f, c, h, w).
        Returns: latents of the next timestep, and behind them what the solver has to remember, if anything.
        """


class DDIM(Solver):
    """DDIM in so many steps; see `timesteps` for the errors."""

    def __init__(self, config: ScheduleConfig, steps: int) -> None:
        super().__init__(config, timesteps(config, steps))
        final = 1.0 if config.set_alpha_to_one else self.cumprod[0].item()
        stride = config.num_train_timesteps // steps
        self.alpha_next = [self.cumprod[t - stride].item() if t >= stride else final for t in self.timesteps]

    def step(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """Equation 12 of the paper with σ = 0: √ᾱ'·x₀ + √(1−ᾱ')·ε. Nothing is remembered."""
        x0, eps = clean_and_noise(self.config, self.alpha[i], x, output)
        if self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return math.sqrt(self.alpha_next[i]) * x0 + math.sqrt(1 - self.alpha_next[i]) * eps
