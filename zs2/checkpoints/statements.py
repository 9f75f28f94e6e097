"""What a single file says of its prediction and its schedule, in the spellings of the tools that write such files.

    marker tensors     `v_pred`, `ztsnr`
    buffers            `alphas_cumprod` of Stable Diffusion, `denoiser.sigmas` of SDXL, `scale_factor`
    metadata           `modelspec.*` (Stability AI's model metadata standard), `ss_*` of kohya's trainers
    NAME.yaml          the configuration of the original code, beside NAME.safetensors

A statement that zs2 knows is followed. One that it does not know, or does not follow, is an error or a warning that
names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zs2.errors import InputError, choose, warn
from zs2.models.config import ScheduleConfig
from zs2.sampling.schedule import alphas_cumprod
from zs2.system.yaml_scalars import read_scalars

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
SPELLINGS = {"eps": "epsilon", "epsilon": "epsilon", "noise": "epsilon"}
SPELLINGS |= dict.fromkeys(("v", "v_pred", "vpred", "v_prediction", "vprediction"), "v")
SPELLINGS |= dict.fromkeys(("sample", "x0", "x_start"), "sample")
NOT_STATED = ("", "none", "null")

PREDICTION_KEY = re.compile(r"(modelspec\.|ss_)?(prediction_type|predict_key|parameterization)")
V_KEYS = ("ss_v_parameterization", "ss_v_prediction", "v_parameterization")
ZERO_SNR_KEYS = ("ss_zero_terminal_snr", "zero_terminal_snr", "ztsnr", "zsnr")
CLIP_SKIP_KEYS = ("modelspec.encoder_layer", "ss_clip_skip")
TITLE_KEYS = ("modelspec.title", "modelspec.tags", "modelspec.merged_from", "ss_output_name")
LCM = re.compile(r"(?<![a-z])lcm(?![a-z])", re.IGNORECASE)
# Architectures of the standard: the family, and the prediction if the name tells it.
ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "stable-diffusion-v1": ("SD 1", None),
    "stable-diffusion-v2-512": ("SD 2", "epsilon"),
    "stable-diffusion-v2-768-v": ("SD 2", "v"),
    "stable-diffusion-xl-v1-base": ("SDXL", None),
}
# Keys of the standard that say nothing of how to sample.
INFORMATION = re.compile(
    r"sai_model_spec|architecture|implementation(_version)?|title|description|author|date|hash_\w+|license|usage_hint"
    r"|thumbnail|tags|merged_from|trigger_phrase|unet_dtype|vae_dtype|language"
)
# Entries of model.params in a YAML file that say nothing of how to sample, or that the tensors tell.
YAML_INFORMATION = re.compile(
    r"base_learning_rate|channels|ckpt_path|(first|cond)_stage_(key|trainable)|conditioning_key|disable_first_stage_.*"
    r"|image_size|input_key|l_simple_weight|learn_logvar|log_every_t|log_keys|logvar_init|loss_type|monitor"
    r"|num_timesteps_cond|original_elbo_weight|target|unfreeze_model|use_ema|use_positional_encodings|v_posterior"
    r"|(conditioner|first_stage|loss_fn|network|optimizer|personalization|sampler|scheduler|unet)_config\..*"
    r"|cond_stage_config\.(target|params\.(arch|device|freeze|max_length|version))"
    r"|denoiser_config\.(target|params\.(weighting_config\..*|quantize_c_noise))"
)
SCALING = re.compile(r"(.*\.)?(Eps|V)Scaling")
NEAR = 5e-3  # ᾱ in a file of half precision is as near as this to what was stored; two schedules differ by 0.03


@dataclass
class Statements:
    """What a file says.

    prediction: `epsilon`, `v` or `sample`. zero_snr: whether the last timestep has no signal.
    schedule: entries of a scheduler's JSON that differ from the family's. scaling_factor: the VAE's, if given.
    heads, head_channels: of the UNet, if given. sample_size: latent height and width, if a resolution is given.
    """

    prediction: str = "epsilon"
    zero_snr: bool = False
    schedule: dict[str, Any] = field(default_factory=dict)
    scaling_factor: float | None = None
    heads: int | None = None
    head_channels: int | None = None
    sample_size: list[int] | None = None


class _Reader:
    """Collects the statements of one file, each with where it stands."""

    def __init__(self, path: Path, family: str) -> None:
        self.path, self.family = path, family
        self.stated = Statements()
        self.predictions: list[tuple[str, str]] = []  # where it stands, and the value
        self.zero_snr: list[tuple[str, bool]] = []
        self.ignored: list[str] = []

    def markers(self, tensors: Mapping[str, Tensor], scaling_factor: float) -> None:
        """Read marker tensors and the VAE's factor."""
        self.predictions += [("the tensor v_pred", "v")] * ("v_pred" in tensors)
        self.zero_snr += [("the tensor ztsnr", True)] * ("ztsnr" in tensors)
        if "scale_factor" in tensors and tensors["scale_factor"].numel() == 1:
            value = float(tensors["scale_factor"])
            if not math.isclose(value, scaling_factor, rel_tol=1e-2):  # half precision is nearer
                self.stated.scaling_factor = value

    def metadata(self, metadata: Mapping[str, str]) -> None:
        """Read the metadata of the safetensors header."""
        # Pairs: two spellings of a key may differ in their values, and then each counts.
        stated = [(k.strip().lower(), v) for k, v in metadata.items() if v.strip().lower() not in NOT_STATED]
        lcm = [f"{key} = {value[:80]!r}" for key, value in stated if key in TITLE_KEYS and LCM.search(value)]
        if lcm:
            warn(f"{self.path.name} seems to be an LCM ({lcm[0]}): it needs noise anew at each step; here it gets none")
        for key, value in stated:
            where, name = f"{key} = {value!r}", key.removeprefix("modelspec.")
            if PREDICTION_KEY.fullmatch(key):
                self.predictions.append((where, value))
            elif key in V_KEYS:
                self.predictions.append((where, "v" if self._flag(key, value) else "epsilon"))
            elif key in ZERO_SNR_KEYS:
                self.zero_snr.append((where, self._flag(key, value)))
            elif key in CLIP_SKIP_KEYS:
                usual = ("1",) if self.family == "SD 1" else ("1", "2")  # later families read the last layer but one
                skip = int(value) - int(usual[-1]) if re.fullmatch(r"\s*\d\d?\s*", value) else 0
                hint = f" (give clip_skip {skip})" if skip > 0 else ""
                self.ignored += [where + hint] * (value.strip() not in usual)
            elif name == key:
                continue  # of another tool
            elif name == "architecture":
                family, prediction = ARCHITECTURES.get(value.strip(), ("", None))
                self.ignored += [where] * (family != self.family)
                self.predictions += [(where, prediction)] if prediction and family == self.family else []
            elif name == "resolution":
                self._resolution(where, value)
            elif name == "timestep_range":
                numbers = [int(number) for number in re.findall(r"\d+", value)]
                self.ignored += [where] * (len(numbers) != 2 or numbers[0] > 1 or numbers[1] < 999)
            elif INFORMATION.fullmatch(name) is None:
                self.ignored.append(where)

    def yaml(self, file: Path) -> None:
        """Read the configuration that lies beside the file."""
        start = "model.params."
        scalars = read_scalars(file)
        found = {key.removeprefix(start): value for key, value in scalars.items() if key.startswith(start)}
        if not found:
            self.ignored.append(f"{file.name}: it has no model.params")
        denoiser = "denoiser_config.params."
        numbers = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
        numbers |= {f"{denoiser}discretization_config.params.{key}": name for key, name in numbers.items()}
        numbers |= {f"{denoiser}num_idx": "num_train_timesteps"}
        for key, value in found.items():
            where, last = f"{file.name}: {'.'.join(key.split('.')[-2:])}: {value[:80]}", key.rpartition(".")[2]
            if key == "parameterization":
                self.predictions.append((where, value))
            elif key == f"{denoiser}scaling_config.target":
                match = SCALING.fullmatch(value)
                self.predictions.append((where, match[2] if match else value))
            elif key in numbers:
                self.stated.schedule[numbers[key]] = self._number(where, value, whole=last in ("timesteps", "num_idx"))
            elif key == "scale_factor":
                self.stated.scaling_factor = self._number(where, value)
            elif last.removeprefix("use_") in (*ZERO_SNR_KEYS, "rescale_betas_zero_snr"):
                self.zero_snr.append((where, self._flag(key, value)))
            elif re.fullmatch(r"(unet|network)_config\.params\.num_(heads|head_channels)", key):
                if (number := int(self._number(where, value, whole=True))) > 0:
                    setattr(self.stated, last.removeprefix("num_"), number)
            elif key in ("cond_stage_config.params.layer", "cond_stage_config.params.layer_idx"):
                self.ignored += [where] * (value != {"SD 1": "last", "SD 2": "penultimate"}.get(self.family))
            elif key == f"{denoiser}discretization_config.target":
                self.ignored += [where] * (not value.endswith("LegacyDDPMDiscretization"))
            elif YAML_INFORMATION.fullmatch(key) is None:
                self.ignored.append(where)

    def buffers(self, tensors: Mapping[str, Tensor], schedule: Mapping[str, Any]) -> None:
        """Compare the schedule that a file holds with that of its configuration, and with that of zero SNR."""
        name = next((name for name in ("alphas_cumprod", "denoiser.sigmas") if name in tensors), None)
        if name is None or not tensors[name].is_floating_point():
            return
        values = tensors[name].double()
        if name == "denoiser.sigmas":
            values = (1 / (1 + values**2)).sort(descending=True).values
        plain, zero = (
            alphas_cumprod(ScheduleConfig.from_json({**schedule, "rescale_betas_zero_snr": zero})).double()
            for zero in (False, True)
        )
        if values.shape == zero.shape and torch.allclose(values, zero, rtol=0, atol=NEAR):
            self.zero_snr.append((f"the tensor {name}", True))
        elif values.shape != plain.shape or not torch.allclose(values, plain, rtol=0, atol=NEAR):
            self.ignored.append(f"the schedule in its tensor {name}")

    def _resolution(self, where: str, value: str) -> None:
        match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", value.strip())
        sides = [int(match[2]), int(match[1])] if match else []
        size = [side // 8 for side in sides]
        if sides and all(side % 8 == 0 for side in sides) and self.stated.sample_size in (None, size):
            self.stated.sample_size = size
        else:
            self.ignored.append(where)

    def _flag(self, key: str, value: str) -> bool:
        if value.strip().lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise InputError(f"{self.path.name}: {key} is {value[:40]!r}: expected true or false")
        return value.strip().lower() in ("true", "1", "yes")

    def _number(self, where: str, value: str, whole: bool = False) -> float:
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or abs(number) > 1e6:
            raise InputError(f"{where}: expected a number")
        return number


def read_statements(
    path: Path,
    family: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    asked: str | None,
    schedule: Mapping[str, Any],
    scaling_factor: float,
) -> Statements:
    """All that a single file says.

    Args:
        path: the file. family: as its tensors tell. tensors, metadata: its content.
        asked: the prediction that the user gives, which wins.
        schedule, scaling_factor: what holds for the family if the file says nothing.
    Raises: InputError for a prediction or a number that zs2 does not know, statements that contradict each other, and a
        file of SD 2 that says nothing. Warns of statements that are not followed.
    """
    read = _Reader(path, family)
    read.markers(tensors, scaling_factor)
    read.metadata(metadata)
    for config in (path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if config.is_file():
            read.yaml(config)
    read.buffers(tensors, {**schedule, **read.stated.schedule})
    stated = read.stated
    stated.schedule = {key: value for key, value in stated.schedule.items() if schedule.get(key, 1000) != value}
    stated.prediction = _prediction(path, family, read.predictions, asked)
    stated.zero_snr = any(value for _, value in read.zero_snr)
    read.ignored += [where for where, value in read.zero_snr if value != stated.zero_snr]
    if read.ignored:
        shown = "; ".join(where[:120] for where in read.ignored[:5])
        shown += f"; and {len(read.ignored) - 5} more" * (len(read.ignored) > 5)
        warn(f"{path.name} says what zs2 does not follow: {shown}")
    return stated


def _prediction(path: Path, family: str, found: list[tuple[str, str]], asked: str | None) -> str:
    options = "give --prediction epsilon or --prediction v"
    if asked is not None:
        choose("prediction", asked, ("epsilon", "v"))
    spelled = [(where, SPELLINGS.get(re.sub(r"[\s-]", "_", value.strip().lower()))) for where, value in found]
    for where, value in spelled:
        if asked is not None and asked != value:
            stated = value or "what zs2 does not know"
            warn(f"{path.name} says that it predicts {stated}, but prediction is {asked} ({where})")
        elif value is None:
            known = "epsilon, v and sample"
            raise InputError(f"{path.name}: {where[:120]}: zs2 knows {known}; if it is one of them, {options}")
    if asked is not None:
        return asked
    for where, value in spelled:
        if value != spelled[0][1]:
            raise InputError(f"{path.name} contradicts itself: {spelled[0][0]}, but {where}: {options}")
    if not spelled and family == "SD 2":
        raise InputError(
            f"{path.name} is of SD 2, whose files do not say what they predict, and a wrong guess gives noise: "
            "give --prediction v (768 pixels) or --prediction epsilon (the base model, 512 pixels)"
        )
    return next((value for _, value in spelled if value), "epsilon")
