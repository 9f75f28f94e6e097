"""Where steps are placed, zero terminal SNR, the final alpha, and few-step models, against diffusers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from helpers import MODULE, Fixture, assert_close, write_tiny
from torch import Tensor

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.models.config import SPACINGS, ScheduleConfig
from zs2.sampling import ddim, dpm_solver
from zs2.sampling.request import FINAL_ALPHAS, OPTIONS
from zs2.sampling.schedule import options_of, with_options
from zs2.sampling.solver import SOLVERS, Solver
from zs2.system.registry import load

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 4, 8, 25)
PICTURE = {key: value for key, value in tiny.PICTURE.items() if key not in ("prompt", "steps", "guidance")}


@cache
def fixture() -> Fixture:
    return Fixture("spacing")


def solver(name: str, steps: int, spacing: str, zero: bool, alpha: str, **json: Any) -> Solver:
    config = with_options(ScheduleConfig.from_json(SCHEDULE | {"steps_offset": 1} | json), spacing, zero, alpha)
    return load(SOLVERS[name].implementation)(config, steps)


def trajectory(one: Solver) -> Tensor:
    """The end of the sampling of a made-up model that make_spacing.py did."""
    x = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(500))
    history = None
    for i, t in enumerate(one.timesteps):
        output = (x.flip(-1) - x.mean() + torch.tensor(t) / 500 - 1).tanh()
        x, history = one.step(i, x, output, history)
    return x


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_every_combination_is_that_of_diffusers(name, spacing, zero):
    """Without signal at the first timestep epsilon is refused, where diffusers divides by 0, or by 2⁻¹²."""
    refused: Counter[tuple[str, bool, bool]] = Counter()
    for alpha in FINAL_ALPHAS:
        for prediction in PREDICTIONS:
            for steps in STEPS:
                case = f"{name}/{spacing}/zero={zero}/{alpha}/{prediction}/{steps}"
                try:
                    one = solver(name, steps, spacing, zero, alpha, prediction_type=prediction)
                except InputError as error:
                    refused[prediction, zero, "no signal at timestep 999 (zero_snr)" in str(error)] += 1
                    continue
                assert_close(trajectory(one), fixture()[case], MODULE)
    begin_at_999 = {"leading": 0, "trailing": 5, "linspace": 4 if name == "ddim" else 5}[spacing] if zero else 0
    assert refused == Counter({("epsilon", True, True): len(FINAL_ALPHAS) * begin_at_999})


@pytest.mark.parametrize("case", sorted(fixture().config["timesteps"]))
def test_the_timesteps_of_every_number_of_steps_are_those_of_diffusers(case):
    name, spacing, offset = case.split("/")
    config = ScheduleConfig.from_json(SCHEDULE | {"timestep_spacing": spacing, "steps_offset": int(offset)})
    place, digest = {"ddim": ddim.timesteps, "dpm++": dpm_solver.timesteps}[name], hashlib.sha256()
    for steps in range(1, 1001):
        with contextlib.suppress(InputError):
            digest.update(f"{steps} {place(config, steps)}\n".encode())
    assert digest.hexdigest() == fixture().config["timesteps"][case]


# --- options of a request ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models with the scheduler of a few-step model."""
    place, written = tmp_path_factory.mktemp("few"), {}
    for kind in tiny.JSONS:
        written[kind] = write_tiny(place / kind, kind)
        (written[kind] / tiny.SCHEDULER).write_text(json.dumps(tiny.FEW_STEPS))
    return written


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, ZS2]:
    return {kind: ZS2.from_pretrained(folder, device="cpu", attn="sa") for kind, folder in folders.items()}


def sample(model: ZS2, **options: Any) -> Tensor:
    return model.latents(tiny.PICTURE["prompt"], **{"frames": 1, "guidance": 1.0, **PICTURE, **options})


def with_scheduler(folder: Path, to: Path, **values: Any) -> ZS2:
    """The same model, whose scheduler's JSON says something else."""
    shutil.copytree(folder, to)
    (to / tiny.SCHEDULER).write_text(json.dumps(tiny.FEW_STEPS | values))
    return ZS2.from_pretrained(to, device="cpu", attn="sa")


@pytest.mark.parametrize("sampler", SOLVERS)
def test_an_option_does_what_the_checkpoints_own_json_does(folders, models, tmp_path, sampler):
    """And the settings have what was used, whoever said it."""
    used = {"sampler": sampler, "steps": 6}
    json = {"timestep_spacing": "linspace", "rescale_betas_zero_snr": True, "set_alpha_to_one": True}
    own = with_scheduler(folders["sd"], tmp_path / "own", prediction_type="v_prediction", **json)
    plain = with_scheduler(folders["sd"], tmp_path / "plain", prediction_type="v_prediction")
    options = {"spacing": "linspace", "zero_snr": True, "final_alpha": "one"}
    assert torch.equal(sample(own, **used), sample(plain, **used, **options))
    for model, more in ((own, {}), (plain, options)):
        settings = model.settings(model.plan(Request("a cat", guidance=1.0, **used, **more)), 8)
        assert {name: settings[name] for name in options} == options
    back = {"spacing": "trailing", "zero_snr": False, "final_alpha": "first" if sampler == "ddim" else "one"}
    assert torch.equal(sample(own, **used, **back), sample(plain, **used))


def test_dpm_ends_at_the_clean_image_unless_it_is_asked(models):
    """Whatever the checkpoint says, as in diffusers."""
    plain, one, first = (sample(models["sd"], sampler="dpm++", steps=6, final_alpha=a) for a in (None, "one", "first"))
    assert torch.equal(plain, one)
    assert not torch.equal(plain, first)


def test_the_offset_of_the_checkpoint_holds_for_another_spacing():
    """It is of leading spacing, and a file of another spacing has it nevertheless."""
    config = ScheduleConfig.from_json(tiny.FEW_STEPS)
    (first,) = load(SOLVERS["ddim"].implementation)(with_options(config, "leading", None, None), 1).timesteps
    assert first == 1
    null = ScheduleConfig.from_json(tiny.FEW_STEPS | {"steps_offset": None})
    assert options_of(null) == options_of(config)
    with pytest.raises(InputError, match="steps_offset"):
        ScheduleConfig.from_json(tiny.FEW_STEPS | {"steps_offset": None, "timestep_spacing": "leading"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spacing": "training"}, "unknown spacing 'training': .*did you mean 'trailing'"),
        ({"final_alpha": "zero"}, "unknown final_alpha 'zero': expected one of one, first"),
        ({"zero_snr": "yes"}, "zero_snr is 'yes': expected true or false"),
        ({"zero_snr": 1}, "zero_snr is 1: expected true or false"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_loaded(options, words):
    with pytest.raises(InputError, match=words):
        Request("a cat", **options)


def test_files_of_before_mean_what_the_checkpoint_says():
    assert [OPTIONS[name].unstated for name in ("spacing", "zero_snr", "final_alpha")] == [None] * 3


# --- noise where the model expects signal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "timestep", "signal"),
    [
        ({"steps": 1, "spacing": "leading"}, 1, "1"),
        ({"steps": 1, "spacing": "linspace"}, 0, "1"),
        ({"steps": 2, "spacing": "leading"}, 501, "0.52"),
        ({"steps": 4, "spacing": "leading"}, 751, "0.24"),
        ({"steps": 2, "spacing": "leading", "sampler": "dpm++"}, 667, "0.32"),
        ({"steps": 5, "spacing": "leading"}, None, ""),
        ({"steps": 1, "spacing": "trailing"}, None, ""),
        ({"steps": 1, "spacing": "linspace", "sampler": "dpm++"}, None, ""),
        ({"steps": 2, "spacing": "linspace"}, None, ""),
        ({"steps": 1}, None, ""),
    ],
    ids=str,
)
def test_noise_where_the_model_expects_signal_is_a_warning(models, options, timestep, signal):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models["sd"].plan(Request("a cat", guidance=1.0, frames=1, **options))
    if timestep is None:
        assert caught == []
    else:
        (warning,) = (str(one.message) for one in caught)
        assert f"pure noise at timestep {timestep}, where the model expects signal (√ᾱ = {signal}," in warning
        assert warning.endswith("give spacing trailing, which starts at timestep 999, or more steps")


def test_a_schedule_without_noise_is_a_warning_in_any_spacing(folders, tmp_path):
    model = with_scheduler(folders["sd"], tmp_path / "model", beta_end=0.001)
    with pytest.warns(UserWarning, match="give another schedule: this one has no timestep of noise alone"):
        sample(model, steps=1)


# --- few-step models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", tiny.FEW)
@pytest.mark.parametrize("kind", tiny.JSONS)
def test_a_few_step_model_is_sampled_as_by_diffusers(models, kind, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = sample(models[kind], steps=steps, final_alpha="one")
    assert_close(got, fixture()[f"few/{kind}/{steps}"], MODULE)


@pytest.mark.parametrize("steps", tiny.FEW)
@pytest.mark.parametrize("kind", tiny.JSONS)
def test_euler_is_ddim_from_noise_of_a_smaller_scale(models, kind, steps):
    """Euler's noise is σ·ε, which is divided by √(σ² + 1) before the model sees it: 0.2 % less than that of DDIM."""
    cumprod = models[kind].plan(Request("a cat", frames=1, guidance=1.0)).solver.schedule.alphas_cumprod
    scale = math.sqrt(1 - cumprod[-1])
    assert 0.0022 < 1 - scale < 0.0024
    noise = models[kind].plan(Request("a cat", **{"frames": 1, "guidance": 1.0, **PICTURE})).initial_noise()
    got = sample(models[kind], steps=steps, final_alpha="one", seed=0, latents=noise * scale, height=None, width=None)
    assert_close(got, fixture()[f"euler/{kind}/{steps}"], MODULE)
