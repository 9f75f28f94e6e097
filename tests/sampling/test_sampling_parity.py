"""Solvers, images and clips against the reference outputs of tests/fixtures, which diffusers made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from helpers import CHECKPOINT, CLIP, MODULE, Fixture, assert_close, assert_same_picture

from zs2 import ZS2
from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.sampling.ddim import DDIM
from zs2.sampling.dpm_solver import DPMSolver
from zs2.sampling.solver import SOLVERS
from zs2.system.registry import load

fixture = cache(Fixture)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("case", sorted(Fixture("ddim").config))
def test_ddim(case: str) -> None:
    f = fixture("ddim")
    t, outputs, samples = f[f"{case}/t"], f[f"{case}/outputs"], f[f"{case}/samples"]
    ddim = DDIM(ScheduleConfig.from_json(f.config[case]), len(t))
    assert list(ddim.timesteps) == t.tolist()
    x = samples[0]
    for i, output in enumerate(outputs):
        assert_close(ddim.step(i, samples[i], output, None)[0], samples[i + 1], MODULE)
        x, _ = ddim.step(i, x, output, None)
    assert_close(x, samples[-1], MODULE)


@pytest.mark.parametrize("case", sorted(Fixture("dpm_solver").config))
def test_dpm_solver(case: str) -> None:
    f = fixture("dpm_solver")
    t, outputs, samples = f[f"{case}/t"], f[f"{case}/outputs"], f[f"{case}/samples"]
    solver = DPMSolver(ScheduleConfig.from_json(f.config[case]), len(t))
    assert solver.timesteps == t.tolist()
    x, history = samples[0], None
    for i, output in enumerate(outputs):
        x, history = solver.step(i, x, output, history)
        assert history.known.tolist() == [True] * len(output)
        assert_close(x, samples[i + 1], MODULE)


@pytest.mark.parametrize(("offset", "steps", "most"), [(0, 0, 999), (0, 1000, 999), (1, 999, 998)])
def test_dpm_solver_refuses_numbers_of_steps_that_it_can_not_place(offset: int, steps: int, most: int) -> None:
    config = ScheduleConfig.from_json({"steps_offset": offset})
    with pytest.raises(InputError, match=f"steps is {steps}: expected from 1 to {most} of the schedule's 1000"):
        DPMSolver(config, steps)
    assert len(DPMSolver(config, most).timesteps) == most


def test_every_solver_is_what_its_row_names() -> None:
    config = ScheduleConfig.from_json({})
    assert {name: type(load(row.implementation)(config, 4)) for name, row in SOLVERS.items()} == {
        "ddim": DDIM,
        "dpm++": DPMSolver,
    }


# --- the default checkpoint -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


@pytest.mark.parametrize("number", range(len(Fixture("checkpoint_images").config["images"])))
def test_checkpoint_image(model: ZS2, number: int) -> None:
    """Frame 0 is the picture that StableDiffusionPipeline makes for the same seed."""
    f = fixture("checkpoint_images")
    arguments = f.config["images"][number]
    latents = model.latents(**arguments, frames=1)
    assert_close(latents, f[f"{number}/latents"], CLIP)
    assert_same_picture(torch.from_numpy(model.decode(latents))[0], f[f"{number}/picture"])


def test_checkpoint_clip(model: ZS2) -> None:
    f, steps = fixture("checkpoint_clip"), []
    arguments = dict(f.config["clip"])
    momentum = model.variant(attn="tma", mu=arguments.pop("mu"))
    clip = momentum(**arguments, latents=f["noise"], callback=steps.append)
    assert_close(steps[-1].latents, f["latents"], CLIP)
    assert_same_picture(torch.from_numpy(clip.frames), f["frames"])
