"""The scheduler that a checkpoint names: any sampler of ε, v and x₀ models is replaced in silence, others are named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.original import write
from helpers import Fixture, write_tiny

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.single_file import SCHEDULE
from zs2.errors import InputError

# What diffusers exchanges for each other in a pipeline of Stable Diffusion (KarrasDiffusionSchedulers, but for EDM's).
SAMPLERS = ("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete")
SAMPLERS += ("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete", "KDPM2AncestralDiscrete")
SAMPLERS += ("DEISMultistep", "UniPCMultistep")
OTHERS = ("CMStochasticIterative", "ConsistencyDecoder", "CosineDPMSolverMultistep", "DDIMInverse", "DDPMWuerstchen")
OTHERS += ("KarrasVe", "RePaint", "ScoreSdeVe", "UnCLIP", "VQDiffusion", "SCM", "Amused")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose JSONs each test writes again."""
    return write_tiny(tmp_path_factory.mktemp("schedulers") / "model", "sd")


def warned(folder: Path, config: dict[str, Any], entry: Any = None) -> list[str]:
    """The warnings about a model with this scheduler_config.json and this entry of model_index.json."""
    (folder / tiny.SCHEDULER).write_text(json.dumps(tiny.FEW_STEPS | config))
    index = tiny.INDEX | ({"scheduler": entry} if entry else {})
    (folder / "model_index.json").write_text(json.dumps(index))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Checkpoint(folder).schedule()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_no_alarm(model, name):
    assert warned(model, {"_class_name": f"{name}Scheduler"}, ["diffusers", f"{name}Scheduler"]) == []


def test_a_published_scheduler_is_no_alarm(model):
    for file in (Path(tiny.__file__).parent / "published").glob("*/scheduler/scheduler_config.json"):
        assert warned(model, json.loads(file.read_text())) == []


@pytest.mark.parametrize("name", OTHERS)
def test_another_scheduler_is_named(model, name):
    (warning,) = warned(model, {"_class_name": f"{name}Scheduler"})
    assert warning == f"scheduler_config.json names {name}Scheduler, which zs2 does not follow"


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_a_scheduler_that_draws_noise_anew_is_named_once_wherever_it_stands(model, name):
    why = "which zs2 does not follow: it draws noise anew at each step, zs2 does not"
    assert warned(model, {"_class_name": name}) == [f"scheduler_config.json names {name}, {why}"]
    assert warned(model, {}, ["diffusers", name]) == [f"model_index.json names {name}, {why}"]
    assert warned(model, {"_class_name": name}, ["diffusers", name]) == [f"model_index.json names {name}, {why}"]


@pytest.mark.parametrize(
    "entry", [["own_code", "MyScheduler"], ["MyScheduler"], ["own_code", 5], ["", "x" * 500]], ids=str
)
def test_a_scheduler_of_own_code_is_named(model, entry):
    (warning,) = warned(model, {}, entry)
    assert warning == f"model_index.json names {str(entry[-1])[:80]}, which zs2 does not follow"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "for models of another kind"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "for models of another kind"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas = True"),
        ({"prediction_type": "flow_prediction"}, "unknown prediction_type"),
    ],
    ids=str,
)
def test_a_scheduler_of_other_models_is_refused(model, config, words):
    with pytest.raises(InputError, match=words):
        warned(model, config)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"modelspec.title": "Dream LCM"}, "modelspec.title = 'Dream LCM'"),
        ({"modelspec.tags": "anime, lcm_merge"}, "modelspec.tags = 'anime, lcm_merge'"),
        ({"ss_output_name": "xl-LCM-4"}, "ss_output_name = 'xl-LCM-4'"),
        ({"modelspec.title": "Film clip", "modelspec.tags": "calm, balcony"}, None),
        ({"modelspec.description": "not an LCM"}, None),
    ],
    ids=str,
)
def test_a_single_file_that_calls_itself_an_lcm_is_named(tmp_path, metadata, named):
    prefix, fixture = "file/weights/", Fixture("single_sd1")
    tensors = {name.removeprefix(prefix): t for name, t in fixture.tensors.items() if name.startswith(prefix)}
    write(tmp_path / "model.safetensors", tensors, metadata, data=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Checkpoint(tmp_path / "model.safetensors")
    why = "it needs noise anew at each step; here it gets none"
    want = [] if named is None else [f"model.safetensors seems to be an LCM ({named}): {why}"]
    assert [str(one.message) for one in caught] == want
    assert all(one.filename == __file__ for one in caught)
    (tmp_path / "model.safetensors").unlink()


def test_a_single_file_has_a_sampler_s_schedule():
    assert SCHEDULE["_class_name"].removesuffix("Scheduler") in SAMPLERS
