"""A checkpoint as a folder in the diffusers layout: JSON files with the configuration, safetensors with the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zs2.checkpoints.hub import WEIGHTS, check_variant, variants
from zs2.checkpoints.tensor_files import read_tensors, weight_files
from zs2.errors import InputError, warn
from zs2.models.config import REFUSED_SCHEDULERS, VAEConfig
from zs2.models.tokenizer import Tokenizer
from zs2.system.json_files import Json, Reader, read_json

SCALING_FACTOR = {"SD 1": 0.18215, "SD 2": 0.18215, "SDXL": 0.13025}  # of latents, for the UNet

# Names of the same tensors in older files: (pattern, today's name). None: it is not a weight, and is dropped.
ALIASES: tuple[tuple[str, str | None], ...] = (
    (r"(.*\.)?position_ids", None),
    (r"(embeddings|encoder\.layers|final_layer_norm)\.(.*)", r"text_model.\1.\2"),
    (r"(.*\.attentions\.\d+)\.query\.(.*)", r"\1.to_q.\2"),
    (r"(.*\.attentions\.\d+)\.key\.(.*)", r"\1.to_k.\2"),
    (r"(.*\.attentions\.\d+)\.value\.(.*)", r"\1.to_v.\2"),
    (r"(.*\.attentions\.\d+)\.proj_attn\.(.*)", r"\1.to_out.0.\2"),
)

# The schedulers of ε, v and x₀ models that need no more than a sampler: DDIM or DPM-Solver++ stand for any of them.
SAMPLERS = re.compile(
    r"(Flax)?(DDIM|DDIMParallel|DDPM|DDPMParallel|PNDM|IPNDM|LMSDiscrete|Euler(Ancestral)?Discrete|HeunDiscrete"
    r"|KDPM2(Ancestral)?Discrete|DPMSolver(Multistep|Singlestep|SDE)|DEISMultistep|UniPCMultistep|SASolver)Scheduler"
)
NOISE_ANEW = ("LCMScheduler", "TCDScheduler")  # models that were made for these need it


class Folder:
    """A folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/; for SDXL, text_encoder_2/ and tokenizer_2/.

    Args:
        path: the folder. dtype: the dtype to compute in. name: by default that of the folder.
        variant: of the weights; see `find_weights` for the default, which depends on the dtype.
        vae: whether its own VAE is used. base: another folder, which has the parts that are not there.
    Raises: InputError if parts or files are missing, or if model_index.json switches a part off.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        name: str | None = None,
        variant: str | None = None,
        vae: bool = True,
        base: Path | None = None,
    ) -> None:
        self.path, self.base = path, base
        optional = {"vae": vae, "text_encoder_2": self.place("text_encoder_2").is_dir()}  # SDXL has two towers
        parts = {part: stem for part, stem in WEIGHTS.items() if optional.get(part, True)}
        self.towers = {part: part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text")}
        needed = (*parts, *self.towers.values(), "scheduler")
        missing = [part for part in needed if not self.place(part).is_dir()]
        if missing:
            there = _contents(path, needed, missing) if base is None else f", nor has its base, {str(base)!r}"
            raise InputError(f"{str(path)!r} is not a model folder: it has no {'/, '.join(missing)}/{there}")
        self.index = _index(self.place("model_index.json"), needed)
        self.name = name or path.resolve().name
        files = {part: {file.name for file in self.place(part).iterdir()} for part in parts}
        check_variant(variant, {part: variants(files[part], stem) for part, stem in parts.items()})
        self.files = {part: weight_files(self.place(part), stem, dtype, variant) for part, stem in parts.items()}
        _check_scheduler(self.index, self.json("scheduler"))

    def place(self, part: str) -> Path:
        """Where a part or a file is: here, or else in the base if there is one."""
        own = self.path / part
        return own if self.base is None or own.exists() else self.base / part

    @property
    def own_vae(self) -> Json:
        """The configuration of its own VAE, whether that is used or not; empty if there is none."""
        return self.json("vae") if (self.place("vae") / "config.json").is_file() else {}

    @property
    def scaling_factor(self) -> float:
        """The factor of latents, by its own VAE if there is one."""
        if own := self.own_vae:
            return VAEConfig.from_json(own).scaling_factor
        return SCALING_FACTOR["SDXL" if len(self.towers) > 1 else "SD 1"]

    def json(self, part: str) -> Json:
        """The configuration of a part, or of the scheduler."""
        return read_json(self.place(part) / ("scheduler_config.json" if part == "scheduler" else "config.json"))

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The weights of a part, memory-mapped, by their names in the diffusers layout."""
        return rename(read_tensors(self.files[part]))

    def tokenizer(self, tower: str, max_length: int) -> Tokenizer:
        """The tokenizer of a text tower, for prompts of at most `max_length` tokens."""
        return Tokenizer.from_folder(self.place(self.towers[tower]), max_length)

    @property
    def zero_empty(self) -> bool:
        """Whether an empty negative prompt is zeros: with two towers, unless model_index.json switches it off."""
        return len(self.towers) > 1 and Reader("model_index.json", self.index, {}).flag(
            "force_zeros_for_empty_prompt", True
        )


def _contents(path: Path, needed: Sequence[str], missing: Sequence[str]) -> str:
    """For an error, what a folder that is no model has, and what to do."""
    folders = sorted(f"{folder.name}/" for folder in path.glob("*/"))[:8]
    if any((path / part).is_dir() for part in needed):
        return f", only {', '.join(folders)}" + ": give one with --vae" * (list(missing) == ["vae"])
    if (path / "config.json").is_file():
        return f": it looks like one part of a model: give the folder around it, {str(path.parent)!r}"
    inner = sorted(str(folder.parent) for pattern in ("*/unet", "snapshots/*/unet") for folder in path.glob(pattern))
    if inner:
        return f": there are model folders in it ({', '.join(inner[:3])}): give one of them"
    files = sorted(file.name for file in path.glob("*.safetensors"))
    return f": it has single files ({', '.join(files[:3])}): give one of them" if files else ""


def _index(file: Path, parts: Sequence[str]) -> Json:
    """The content of model_index.json, if there is one. Raises: InputError if it says that a needed part is not there.

    Parts that zs2 does not use may be missing, or [null, null], but diffusers' pipelines fail with a plain null.
    """
    index = read_json(file) if file.exists() else {}
    unused = ("feature_extractor", "image_encoder", *(("safety_checker",) if "text_encoder_2" not in parts else ()))
    Reader(file.name, index, {}, {"_class_name", *parts, *unused})
    for part in parts:
        if isinstance(index.get(part), list) and None in index[part]:
            raise InputError(f"{file.name}: {part} is {index[part]}: a model without it can't be sampled")
    return index


def _check_scheduler(index: Json, config: Json) -> None:
    """Warn of a scheduler whose models need something else than a sampler: those of diffusers that none stands for."""
    entry = index.get("scheduler")
    stated = {str(config.get("_class_name", "DDIMScheduler")): "scheduler_config.json"}
    if isinstance(entry, list) and entry:
        stated[str(entry[-1])] = "model_index.json"
    for name, file in stated.items():
        refused = file == "scheduler_config.json" and any(word in name for word in REFUSED_SCHEDULERS)
        if not refused and not SAMPLERS.fullmatch(name):
            why = ": it draws noise anew at each step, zs2 does not" if name in NOISE_ANEW else ""
            warn(f"{file} names {name[:80]}, which zs2 does not follow{why}")


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors their names of today, and drop those that are not weights, by the table ALIASES."""
    renamed = {}
    for name, tensor in tensors.items():
        today: str | None = name
        for pattern, target in ALIASES:
            match = re.fullmatch(pattern, name)
            if match:
                today = None if target is None else match.expand(target)
                break
        if today in renamed:
            raise InputError(f"{name} and another tensor are both {today}: expected one of them")
        if today is not None:
            renamed[today] = tensor
    return renamed
