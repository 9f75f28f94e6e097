"""What a solver is: its steps, and what it remembers between them. The table of solvers. No torch at import.

A new solver is a subclass of `Solver` in a file of its own, and a row of SOLVERS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from zs2.errors import InputError
from zs2.system.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.sampling.schedule import Schedule

H = TypeVar("H", bound="History")


@dataclass(frozen=True)
class History:
    """What a solver remembers from step to step. A subclass adds tensors (f, …), a row a frame.

    known: bool (f,): whether there is anything of a frame. There is nothing of one that joins mid-sampling.
    """

    known: Tensor

    def frames(self: H, which: slice) -> H:
        """That of some of the frames."""
        return replace(self, **{one.name: getattr(self, one.name)[which] for one in fields(self)})

    def extended(self: H, count: int) -> H:
        """That of these frames and of so many behind them of which nothing is known."""
        import torch

        def more(rows: Tensor) -> Tensor:
            return torch.cat([rows, rows.new_zeros(count, *rows.shape[1:])])

        return replace(self, **{one.name: more(getattr(self, one.name)) for one in fields(self)})


class Solver(ABC):
    """The steps of one sampling. Nothing in it changes as it runs; latents are float32.

    Args:
        schedule: of the model. timesteps: at which the model is evaluated, from noise to picture.
    Raises: InputError for a schedule without signal there, if the model predicts ε.
    """

    remembered: ClassVar[int] = 0  # tensors of the latents' shape in its history, for the plan of memory

    def __init__(self, schedule: Schedule, timesteps: list[int]) -> None:
        self.schedule, self.timesteps = schedule, timesteps
        least = min(schedule.alphas_cumprod[t].item() for t in timesteps)
        if schedule.config.prediction_type == "epsilon" and least <= 0:
            raise InputError("a schedule that ends at zero signal needs v or x0 prediction: epsilon has no x0 there")

    @abstractmethod
    def step(
        self, i: int, latents: Tensor, prediction: Tensor, history: History | None
    ) -> tuple[Tensor, History | None]:
        """The i-th step.

        Args:
            latents: before the step, (f, c, h, w). prediction: the model's, shaped alike.
            history: what the step before returned; None in the first step of all frames.
        Returns: latents of the next timestep, (f, c, h, w), and the history for the next step, or None.
        """


@dataclass(frozen=True)
class SolverKind:
    """A solver by name. implementation: (ScheduleConfig, steps) → Solver, or "module:name" of it."""

    name: str
    summary: str
    implementation: Any


SOLVERS: Registry[SolverKind] = Registry(
    "sampler",
    [
        SolverKind("ddim", "deterministic DDIM, the paper's", "zs2.sampling.ddim:DDIM"),
        SolverKind("dpm++", "DPM-Solver++(2M), which needs fewer steps", "zs2.sampling.dpm_solver:DPMSolver"),
    ],
)
