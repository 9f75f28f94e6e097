"""LoRA and its relatives: read the files of kohya's trainers, LyCORIS, diffusers and PEFT, and merge them.

Such a file holds small tensors for some layers, from which the changes of their weights are computed; `lora_kinds` has
the formulas. The formats differ mostly in names. Reading is strict, as for a model: a tensor that fits no layer is an
error that names it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zs2.checkpoints.locate import CONFIG, lora_sources
from zs2.checkpoints.lora_kinds import NORMS, Layer, Update, is_lora, role, updates
from zs2.checkpoints.original_names import lora_layer, underscored_unet_name
from zs2.checkpoints.single_file import contents
from zs2.checkpoints.tensor_files import read_metadata, read_tensors
from zs2.errors import InputError, brief, warn
from zs2.models.unet import UNet
from zs2.system.json_files import Json, is_number, read_json

LoRA = str | Path | tuple[str | Path, float]  # FILE or FILE:SCALE; a path; a file and its scale

PEFT = "base_model.model."  # before all names in its files

NAME = re.compile(r"\^?[\w.]+")  # a layer's name, or its end, in PEFT's patterns

# Keys of PEFT's configuration that mean another change of the weights, or of more of them, and what they may be.
NOTHING: tuple[Any, ...] = (None, False, [], {})
EXPECTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", "LOHA", "LOKR"),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),  # others change the model's
    **dict.fromkeys(("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters"), NOTHING),
    **dict.fromkeys(("lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"), NOTHING),
    **dict.fromkeys(("kasa_config", "monteclora_config", "velora_config"), NOTHING),
}
READ = ("r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
WITHOUT_EFFECT = """
    auto_mapping base_model_name_or_path corda_config decompose_both decompose_factor ensure_weight_tying eva_config
    exclude_modules fan_in_fan_out inference_mode init_weights layers_pattern layers_to_transform loftq_config
    lora_dropout lora_ga_config megatron_config megatron_core module_dropout parent_library peft_version
    qalora_group_size rank_dropout rank_dropout_scale revision runtime_config target_modules task_type
    use_effective_conv2d
"""
KNOWN = {*READ, *WITHOUT_EFFECT.split(), *EXPECTED}

# The family whose cross-attention takes a text of this width; only for messages.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def parse(text: str) -> tuple[Path, float]:
    """Read `FILE[:SCALE]`. The default scale is 1. A file or folder with exactly this name, colons included, is first.

    Raises: InputError for any other text.
    """
    name, colon, number = text.rpartition(":")
    if not colon or os.path.exists(text) or re.search(r"[/\\]|\.safetensors$", number, re.IGNORECASE):
        name, number = text, "1"  # the colon, if any, is part of the name, such as a drive's
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not name or not math.isfinite(scale):
        raise InputError(f"LoRA {text!r}: expected FILE or FILE:SCALE, such as style.safetensors:0.8")
    return Path(name), scale


def lora_files(lora: LoRA | Sequence[LoRA]) -> list[tuple[Path, float]]:
    """Convert the argument `lora`, one LoRA or several, to files and scales. Raises: InputError for anything else."""
    single = isinstance(lora, str | Path) or (isinstance(lora, tuple) and len(lora) == 2 and _is_number(lora[1]))
    entries: Any = [lora] if single else lora
    if not isinstance(entries, list | tuple):
        raise InputError(f"lora is {lora!r}: expected a path, FILE:SCALE, (file, scale), or a list of them")
    found = []
    for one in entries:
        if isinstance(one, str):
            found.append(parse(one))
        elif isinstance(one, Path):
            found.append((one, 1.0))
        elif isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str | Path) and _is_number(one[1]):
            found.append((Path(one[0]), float(one[1])))  # `merge` refuses a scale that is not finite
        else:
            raise InputError(f"LoRA {one!r}: expected a path, FILE:SCALE, or (file, scale)")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def merge(path: Path, scale: float, unet: UNet, text_encoders: Sequence[nn.Module]) -> None:
    """Merge a LoRA into the weights of every layer that it has: W + scale · alpha/rank · ΔW, computed in float32.

    The weights are replaced, not changed in place: they may be shared with another model, or mapped from a file.
    Several LoRAs are merged one after another. They add up, in any order, but for DoRA: it gives rows the norms that
    they should have once its own change is added to the weights that it finds.

    Args:
        path: safetensors, or a folder of PEFT or diffusers. scale: its strength, a finite number.
        unet, text_encoders: the parts of the model, with the text towers in the order of the model.
    Raises: InputError, before anything is merged, if the file is not a LoRA, is of a kind that is not supported, or is
        for another model; and if a merged weight is not finite.
    Warns: of DoRA at a scale other than 1, and of an alpha that is not known.
    """
    if not math.isfinite(scale):
        raise InputError(f"{path.name}: the scale is {scale}: expected a finite number")
    parts = dict(zip(("unet", "text_encoder", "text_encoder_2"), (unet, *text_encoders), strict=False))
    found = []
    for file, config, default in lora_sources(path):
        tensors = read_tensors([file])
        if not is_lora(tensors):
            there, advice = contents(tensors)
            reason = f"no tensor (such as {next(iter(tensors), 'none')}) has a LoRA's name (….lora_down.weight)"
            raise InputError(f"{file.name} is not a LoRA: {f'it has {there}: {advice}' if there else reason}")
        try:
            settings = _Config(read_json(config) if config else None, read_metadata(file), parts)
            found += _updates(tensors, parts, default, unet.config.layers_per_block[0], settings)
        except InputError as error:
            raise InputError(f"{file.name}: {error}{_meant_for(tensors, unet.config.cross_attention_dim)}") from error
        if settings.guessed and any(name.startswith(PEFT) for name in tensors):
            warn(f"{file.name} has no {CONFIG} beside it: its alpha is taken to be its rank")
    if scale != 1 and any(update.tensors.keys() & set(NORMS) for update in found):
        warn(
            f"{path.name} is DoRA, for which programs differ at scales other than 1: docs/checkpoints.md has zs2's "
            "formula"
        )
    for update in found:
        update.apply(scale, path.name)


def files_of(path: Path) -> list[Path]:
    """The files that a LoRA consists of. Raises: InputError if there are none."""
    return [file for source in lora_sources(path) for file in source[:2] if file]


def _updates(
    tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], tower: str, depth: int, config: _Config
) -> list[Update]:
    """Collect the tensors of each layer, and check that they fit it.

    tower: the text tower, where names do not say which. depth: the resnets in a level of the UNet.
    """
    layers = {
        (part, name.removeprefix("text_model.").replace(".", "_")): (layer, f"{part}.{name}")
        for part, module in parts.items()
        for name, layer in module.named_modules()
        if isinstance(layer, Layer)
    }
    keys: dict[tuple[Layer, str], dict[str, str]] = defaultdict(dict)  # per layer: role → the tensor's name
    for key, tensor in tensors.items():
        if key.startswith("bundle_emb."):  # `embeddings.bundled` reads them
            continue
        layer, kind = role(key.removeprefix(PEFT))
        part, name = lora_layer(layer, tower)
        found = layers.get((part, name)) or layers.get((part, underscored_unet_name(name, depth)))
        if found is None:
            where = part if part in parts else f"model ({', '.join(parts)})"
            raise InputError(f"{key} fits no layer of this {where}")
        if kind in keys[found]:
            raise InputError(f"{key} and {keys[found][kind]} are for the same layer")
        if not (tensor.is_floating_point() or (kind == "alpha" and not tensor.is_complex())):
            raise InputError(f"{key} is {tensor.dtype}: expected floating point")
        if not tensor.float().isfinite().all():
            raise InputError(f"{key} has values that are not finite: the file is damaged, or its training failed")
        keys[found][kind] = key
    changes = []
    for (at, path), names in keys.items():
        changes += updates(at, path, names, tensors, partial(config.factor, path))
        config.check_dora(path, names)
    return changes


class _Config:
    """PEFT's configuration of each part: an adapter_config.json, or the metadata of newer files of diffusers. These
    have no alphas in their tensors. Without a configuration, alpha is the rank."""

    def __init__(self, adapter: Json | None, metadata: Mapping[str, str], parts: Iterable[str]) -> None:
        self.where = "its metadata, lora_adapter_metadata," if adapter is None else CONFIG
        config: Any = (
            None if adapter is None else {f"{p}.{key}": value for p in parts for key, value in adapter.items()}
        )
        if config is None:
            with contextlib.suppress(ValueError, RecursionError):
                config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        if not isinstance(config, dict):
            raise InputError(f"{self.where} is not the JSON of PEFT's LoraConfig")
        self.guessed = False  # whether an alpha was needed and nothing says it
        self.parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in config.items():
            part, _, key = name.partition(".")
            self.parts[part][key] = value
            if key in EXPECTED and value not in EXPECTED[key]:
                raise InputError(f"{self.where} has {key} = {brief(value)}, which zs2 does not merge")
            if key.endswith("_pattern"):
                self._check_patterns(key, value or {})
            if value and key not in KNOWN:
                warn(f"{self.where}: zs2 does not know {key[:40]}: the result may differ")

    def _check_patterns(self, key: str, patterns: Any) -> None:
        if not isinstance(patterns, dict) or len(patterns) > 5000:
            raise InputError(f"{self.where}: {key} is not what PEFT's LoraConfig has: expected names of layers")
        special = [pattern for pattern in patterns if not NAME.fullmatch(pattern)]
        wrong = [pattern for pattern in special if not _simple(pattern)]
        for pattern in wrong or special[:1] * (len(special) > 50):
            raise InputError(
                f"{self.where} has the pattern {pattern[:80]!r}: expected a layer's name, or few simple ones"
            )

    def factor(self, path: str, rank: int | None, alpha: float | None) -> float:
        """alpha/rank of a layer, or alpha/√rank for rsLoRA.

        rank: as its tensors show it; None for a LoKr of two whole factors, which has the factor 1 but in PEFT. alpha:
        the one in the file, if any.
        """
        config = self.parts.get(path.partition(".")[0], {})
        stated = self._special(path, config.get("rank_pattern"), config.get("r", rank))
        if stated is not None and not (isinstance(stated, int) and stated > 0 and stated == (rank or stated)):
            raise InputError(f"{self.where} has the rank {brief(stated)} for {path}: its tensors have {rank}")
        rank = rank or (stated if config else None)
        if rank is None:
            return 1.0
        if alpha is None:
            self.guessed |= not config
            default = config.get("lora_alpha", config.get("alpha", 8)) if config else rank  # 8 is PEFT's own default
            alpha = self._special(path, config.get("alpha_pattern"), default)
            if not is_number(alpha) or not abs(alpha) < 1e9:
                raise InputError(f"{self.where} has the alpha {brief(alpha)} for {path}: expected a number")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _special(self, path: str, patterns: Json | None, default: Any) -> Any:
        """The value of the first pattern that fits the end of a layer's name, as PEFT reads it; or the default."""
        layer = path.partition(".")[2]
        names = layer, layer.removeprefix("text_model.")
        for pattern, value in (patterns or {}).items():
            if not NAME.fullmatch(pattern):
                fits = any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
            else:
                fits = pattern.removeprefix("^") in names or f".{layer}".endswith(f".{pattern}")
            if fits:
                return value
        return default

    def check_dora(self, path: str, roles: Iterable[str]) -> None:
        """Raise an InputError if the configuration says DoRA and a layer has none of it, or the reverse."""
        dora = self.parts.get(path.partition(".")[0], {}).get("use_dora")
        if dora is not None and bool(dora) != ("magnitude" in roles):
            has = "no lora_magnitude_vector" if dora else "a lora_magnitude_vector"
            raise InputError(f"{self.where} has use_dora = {dora}, but {path} has {has}: is the file whole?")


def _simple(pattern: str) -> bool:
    """Whether a regular expression for names of layers takes no time to match: few repetitions and alternatives."""
    few = len(pattern) <= 200 and len(re.findall("[*+?]", pattern)) <= 2 and pattern.count("|") <= 4
    if not few or not re.fullmatch(r"[\w.\\^$*+?|()\[\]-]+", pattern) or re.search("[)*+?][*+?]", pattern):
        return False
    with contextlib.suppress(re.error):
        re.compile(pattern)
        return True
    return False


def _meant_for(tensors: Mapping[str, Tensor], width: int) -> str:
    """For a message, the family that the LoRA is for, if its cross-attention shows that it is not this model's."""
    widths = [
        t.shape[1] for key, t in tensors.items() if re.search(r"attn2.*to_[kv].*(down|lora_A)", key) and t.ndim > 1
    ]
    if not widths or widths[0] == width:
        return ""
    return (
        f" (the LoRA is for {FAMILIES.get(widths[0], 'a model')} with text {widths[0]} wide, "
        f"the model is {FAMILIES.get(width, 'one')} with text {width} wide)"
    )
