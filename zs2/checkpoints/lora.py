"""LoRA (Hu et al. 2021): read the files of kohya's trainers, diffusers and PEFT, and merge them into the weights.

Such a file holds two thin matrices for some layers: W becomes W + scale · alpha/rank · up·down. The formats differ only
in their names. Reading is strict, as for a model: a tensor that fits no layer is an error that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zs2.checkpoints.original_names import unet_names
from zs2.checkpoints.tensor_files import read_metadata, read_tensors
from zs2.errors import InputError
from zs2.models.unet import UNet
from zs2.system.json_files import Json

Layer = nn.Linear | nn.Conv2d
LoRA = str | Path | tuple[str | Path, float]  # FILE or FILE:SCALE; a path; a file and its scale

MARK = re.compile(r"(^|[._])(lora|hada|lokr|oft|lycoris)[._]")

# A tensor's name: the layer, then the kind of tensor as kohya, PEFT, or diffusers before PEFT names it; or the alpha.
KEY = re.compile(
    r"(.+?)(?:\.lora_(down|up)\.weight|\.lora_(A|B)(?:\.default)?\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight|(?:_lora|\.lora|\.lora_linear_layer)?\.(alpha))"
)
HALVES = {"down": "down", "A": "down", "up": "up", "B": "up", "alpha": "alpha"}

# The beginning of a layer's name → the part of the model.
PARTS = (
    (r"(lora_unet_|unet\.|diffusion_model\.|(?=(down|up)_blocks\.|mid_block\.))", "unet"),
    (r"(lora_te1?_|text_encoder\.)", "text_encoder"),
    (r"(lora_te2_|text_encoder_2\.)", "text_encoder_2"),
)

# Other names of the same layer within a part, with underscores for dots.
ALIASES = (
    (r"^text_model_", ""),
    (r"_processor_", "_"),
    (r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj"),
    (r"(attn\d_to_out)$", r"\1_0"),
)

UNSUPPORTED = (
    (r"dora_scale|lora_magnitude_vector", "DoRA"),
    (r"hada_", "LoHa"),
    (r"lokr_", "LoKr"),
    (r"oft_", "OFT"),
    (r"lora_mid", "a convolution in three factors (LoCon's CP decomposition)"),
    (r"\.diff(_b)?$", "the difference of a whole weight"),
)

# The family whose cross-attention takes a text of this width; only for messages.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names are a LoRA or one of its relatives, and so not a model."""
    return any(MARK.search(name) for name in names)


def parse(text: str) -> tuple[Path, float]:
    """Read `FILE[:SCALE]`. The default scale is 1. A file with exactly this name, colons included, takes precedence.

    Raises: InputError for any other text.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).is_file() or re.search(r"[/\\]|\.safetensors$", number, re.IGNORECASE):
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


def merge(file: Path, scale: float, unet: UNet, text_encoders: Sequence[nn.Module]) -> None:
    """Merge a LoRA: W + scale · alpha/rank · up·down, computed in float32, for every layer in the file.

    The weights are replaced, not changed in place: they may be shared with another model, or mapped from a file.

    Args:
        file: safetensors. scale: its strength, a finite number. Several files add up, in any order.
        unet, text_encoders: the parts of the model, with the text towers in the order of the model.
    Raises: InputError, before anything is merged, if the file is not a LoRA, is of a kind that is not supported, or is
        for another model.
    """
    if not math.isfinite(scale):
        raise InputError(f"{file.name}: the scale is {scale}: expected a finite number")
    if not file.is_file():
        raise InputError(f"no such LoRA: {str(file)!r}: expected a safetensors file")
    tensors = read_tensors([file])
    if not is_lora(tensors):
        some = next(iter(tensors), "none")
        raise InputError(
            f"{file.name} is not a LoRA: no tensor (such as {some}) has a LoRA's name (….lora_down.weight)"
        )
    parts = dict(zip(("unet", "text_encoder", "text_encoder_2"), (unet, *text_encoders), strict=False))
    try:
        updates = _updates(tensors, parts, unet.config.layers_per_block[0], _Config(read_metadata(file)))
    except InputError as error:
        raise InputError(f"{file.name}: {error}{_meant_for(tensors, unet.config.cross_attention_dim)}") from error
    for layer, up, down, factor in updates:
        weight = layer.weight
        up, down = (x.to(weight.device, torch.float32).flatten(1) for x in (up, down))  # (out, r), (r, in·h·w)
        merged = torch.addmm(weight.detach().float().flatten(1), up, down, alpha=scale * factor)
        layer.weight = nn.Parameter(merged.view(weight.shape).to(weight.dtype), requires_grad=False)


class _Update(NamedTuple):
    layer: Layer
    up: Tensor  # (out, r), or (out, r, 1, 1)
    down: Tensor  # (r, in), or (r, in, h, w)
    factor: float  # alpha/rank


def _updates(
    tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], depth: int, config: _Config
) -> list[_Update]:
    """Pair the tensors, and check that each pair fits its layer. depth: the resnets in a level of the UNet."""
    layers = {
        (part, name.removeprefix("text_model.").replace(".", "_")): (layer, f"{part}.{name}")
        for part, module in parts.items()
        for name, layer in module.named_modules()
        if isinstance(layer, Layer)
    }
    keys: dict[tuple[Layer, str], dict[str, str]] = defaultdict(dict)  # per layer: down, up, alpha
    for key, tensor in tensors.items():
        for pattern, kind in UNSUPPORTED:
            if re.search(pattern, key):
                raise InputError(f"{key} is {kind}: expected a plain LoRA, an up and a down matrix for each layer")
        match = KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{key} is not a LoRA's: expected names such as ….lora_down.weight or ….lora_A.weight")
        part, name = _place(match[1])
        found = layers.get((part, name)) or layers.get((part, _of_original_layout(name, depth)))
        if found is None:
            where = part if part in parts else f"model ({', '.join(parts)})"
            raise InputError(f"{key} fits no layer of this {where}")
        half = HALVES[match[match.lastindex or 0]]
        if half in keys[found]:
            raise InputError(f"{key} and {keys[found][half]} are for the same layer")
        if not (tensor.is_floating_point() or half == "alpha"):
            raise InputError(f"{key} is {tensor.dtype}: expected floating point")
        if not tensor.float().isfinite().all():
            raise InputError(f"{key} has values that are not finite: the file is damaged, or its training failed")
        keys[found][half] = key
    return [_update(layer, path, names, tensors, config) for (layer, path), names in keys.items()]


def _place(name: str) -> tuple[str, str]:
    """A layer's name in the file → (part, name with underscores)."""
    part = next(((part, match.end()) for pattern, part in PARTS if (match := re.match(pattern, name))), ("", 0))
    rest = name[part[1] :].replace(".", "_")
    for pattern, target in ALIASES:
        rest = re.sub(pattern, target, rest)
    return part[0], rest


def _of_original_layout(name: str, depth: int) -> str:
    """`input_blocks_4_1_proj_in` → `down_blocks_1_attentions_0_proj_in`, by the table for single files."""
    dotted = re.sub(r"_(?=\d)|(?<=\d)_", ".", name) + ".weight"
    first_downsampling = f"input_blocks.{depth + 1}.0.op.weight"
    return unet_names([dotted, first_downsampling])[dotted].removesuffix(".weight").replace(".", "_")


def _update(
    layer: Layer, path: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor], config: _Config
) -> _Update:
    for half, other in (("up", "down"), ("down", "up")):
        if half not in keys:
            raise InputError(f"{keys.get(other, keys.get('alpha'))} has no {half} matrix with it: is the file whole?")
    up, down = tensors[keys["up"]], tensors[keys["down"]]
    want, got_up, got_down = _matrix(layer.weight), _matrix(up), _matrix(down)
    rank = got_down[0] if got_down else 0
    if rank == 0 or got_up != (want[0], rank) or got_down != (rank, *want[1:]):
        raise InputError(
            f"{keys['down']} {tuple(down.shape)} and its up matrix {tuple(up.shape)} do not fit {path}, "
            f"whose weight is {tuple(layer.weight.shape)}"
        )
    alpha = tensors[keys["alpha"]] if "alpha" in keys else torch.tensor(config.alpha(path, rank))
    if alpha.numel() != 1:
        raise InputError(f"{keys['alpha']} has shape {tuple(alpha.shape)}: expected one number")
    return _Update(layer, up, down, alpha.item() / (math.sqrt(rank) if config.rooted(path) else rank))


def _matrix(tensor: Tensor) -> tuple[int, ...]:
    """The shape, without the sides of a 1×1 convolution, which may stand for a linear layer, and the reverse."""
    shape = tuple(tensor.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


class _Config:
    """PEFT's LoraConfig for each part. Newer files of diffusers have it in their metadata, and have no alphas."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or not all(
            isinstance(value or {}, dict) for key, value in config.items() if key.endswith(".alpha_pattern")
        ):
            raise InputError("its metadata, lora_adapter_metadata, is not the JSON of PEFT's LoraConfig")
        self.json: Json = config

    def alpha(self, path: str, rank: int) -> float:
        """The alpha of a layer: the first entry of alpha_pattern that ends its name, or else its part's alpha, or else
        the rank."""
        part = path.partition(".")[0]
        alpha = self.json.get(f"{part}.lora_alpha", rank)
        for end, special in reversed((self.json.get(f"{part}.alpha_pattern") or {}).items()):
            if not re.fullmatch(r"\^?[\w.]+", end):
                raise InputError(f"its metadata has an alpha for the pattern {end!r}: expected a layer's name")
            if f".{path}".endswith(f".{end.removeprefix('^')}"):
                alpha = special
        if not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise InputError(f"its metadata has the alpha {alpha!r}: expected a number")
        return float(alpha)

    def rooted(self, path: str) -> bool:
        """Whether the alpha of a layer is divided by the root of the rank (rsLoRA), not by the rank."""
        return bool(self.json.get(f"{path.partition('.')[0]}.use_rslora"))


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
