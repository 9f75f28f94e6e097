"""The interface of solvers, the history that they keep between steps, and the table of solvers. No torch at import.

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
    """The history that a solver keeps from step to step. A subclass adds tensors (f, …), one row per frame.

    known: bool (f,): whether a frame has a history. A frame that joins mid-sampling has none.
    """

    known: Tensor

    def frames(self: H, which: slice) -> H:
        """The history of some of the frames."""
        return replace(self, **{one.name: getattr(self, one.name)[which] for one in fields(self)})

    def extended(self: H, count: int) -> H:
        """The history of these frames, followed by `count` frames that have none."""
        import torch

        def more(rows: Tensor) -> Tensor:
            return torch.cat([rows, rows.new_zeros(count, *rows.shape[1:])])

        return replace(self, **{one.name: more(getattr(self, one.name)) for one in fields(self)})


class Solver(ABC):
    """The steps of one sampling. A solver does not change as it runs. Latents are float32.

    Args:
        schedule: that of the model. timesteps: those at which the model is evaluated, from noise to picture.
    Raises: InputError if the schedule has no signal at one of the timesteps and the model predicts ε.
    """

    remembered: ClassVar[int] = 0  # the number of tensors of the latents' shape in its history, for the memory plan

    def __init__(self, schedule: Schedule, timesteps: list[int]) -> None:
        self.schedule, self.timesteps = schedule, timesteps
        least = min(schedule.alphas_cumprod[t].item() for t in timesteps)
        if schedule.config.prediction_type == "epsilon" and least <= 0:
            raise InputError(
                f"there is no signal at timestep {timesteps[0]} (zero_snr), so an epsilon prediction has no x0 there: "
                "expected a model of v or x0, or spacing leading, or no zero_snr"
            )

    @abstractmethod
    def step(
        self, i: int, latents: Tensor, prediction: Tensor, history: History | None
    ) -> tuple[Tensor, History | None]:
        """Do step i.

        Args:
            latents: those before the step, (f, c, h, w). prediction: the model's output, of the same shape.
            history: the history that the previous step returned; None in the first step of all frames.
        Returns: the latents at the next timestep, (f, c, h, w), and the history for the next step, or None.
        """


@dataclass(frozen=True)
class SolverKind:
    """A row of SOLVERS.

    Args:
        implementation: a function (ScheduleConfig, steps) → Solver, or its "module:name".
        final_alpha: ᾱ after its last step where a request leaves it open; None: as the checkpoint says.
    """

    name: str
    summary: str
    implementation: Any
    final_alpha: str | None = None


SOLVERS: Registry[SolverKind] = Registry(
    "sampler",
    [
        SolverKind("ddim", "deterministic DDIM, the paper's", "zs2.sampling.ddim:DDIM"),
        SolverKind("dpm++", "DPM-Solver++(2M), which needs fewer steps", "zs2.sampling.dpm_solver:DPMSolver", "one"),
    ],
)
