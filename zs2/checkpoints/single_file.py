"""Single-file checkpoints in the original layout of Stable Diffusion 1.x, 2.x and XL, and their configuration.

Such a file has no JSON. The names of the tensors tell the family, and their shapes the configuration. What shapes can't
tell (the number of heads, the schedule) is fixed for each family.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zs2.checkpoints.diffusers_folder import SCALING_FACTOR, rename
from zs2.checkpoints.locate import model_folder
from zs2.checkpoints.lora_kinds import MARK
from zs2.checkpoints.original_names import average_names, count, openclip_tensors, unet_tensors, vae_tensors
from zs2.checkpoints.statements import PREDICTIONS, Statements, read_statements
from zs2.checkpoints.tensor_files import read_metadata, read_tensors
from zs2.errors import InputError, brief, counted, warn
from zs2.models.tokenizer import Tokenizer
from zs2.system.json_files import Json

# The prefix of each part's names in the file. Those of the text towers tell the family.
UNET, VAE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
EMA_STATE = ("decay", "num_updates")
OPENCLIP = "model."  # the prefix of a tower with OpenCLIP's names ends so
TOWERS = {
    "SD 1": {"text_encoder": "cond_stage_model.transformer."},
    "SD 2": {"text_encoder": "cond_stage_model.model."},
    "SDXL": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}

# Tensors that are not weights of the model: copies, buffers, training state. Any other unknown tensor is an error.
DROPPED = re.compile(
    r"model_ema\..*|(first_stage_model\.)?loss\..*|optimizer.*|lvlb_weights|logvar|cond_stage_model\.model\.visual\..*"
    r"|first_stage_model\.model_ema\..*|scale_factor|global_step|.*position_ids|.*\.attn_mask|.*logit_scale|betas"
    r"|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus.*|posterior_.*|denoiser\.(sigmas|log_sigmas)|v_pred|ztsnr"
)

# All families were trained with one schedule. Their pipelines place the steps of DDIM on it like this.
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# What a file can hold: by the beginning of a tensor's name, with advice for a file that holds nothing else.
OTHER_LAYOUT, AS = "give the folder that it is of", "give a model, and this as its --"
INVENTORY: tuple[tuple[str, str, str], ...] = (
    ("a transformer, as of SD 3", r"(model\.diffusion_model\.)?(joint|double|single|transformer)_blocks\.", ""),
    ("a UNet", re.escape(UNET), ""),
    ("the moving average of a UNet", rf"model_ema\.(?!({'|'.join(EMA_STATE)})$)", ""),
    ("a VAE", re.escape(VAE), f"{AS}vae"),
    ("a text encoder of SD 1", re.escape(TOWERS["SD 1"]["text_encoder"]), ""),
    ("a text encoder of SD 2", re.escape(TOWERS["SD 2"]["text_encoder"]), ""),
    ("the first text encoder of SDXL", re.escape(TOWERS["SDXL"]["text_encoder"]), ""),
    ("the second text encoder of SDXL", re.escape(TOWERS["SDXL"]["text_encoder_2"]), ""),
    (
        "the text encoder of an SDXL refiner",
        r"conditioner\.embedders\.0\.model\.",
        "a refiner needs a picture to refine",
    ),
    ("a ControlNet", r"control_model\.|controlnet_|input_hint_block\.|zero_convs\.|middle_block_out", f"{AS}control"),
    ("a Control-LoRA", r"lora_controlnet$", "it is no whole ControlNet"),
    ("a T2I-Adapter", r"(adapter\.)?body\.\d+\.", ""),
    ("a LoRA", rf".*({MARK.pattern})", f"{AS}lora"),
    ("a textual inversion", r"(emb_params|clip_[lg]|string_to_param\.\*)$", f"{AS}embedding"),
    ("a UNet of a folder", r"((down|up)_blocks|mid_block|(time|add)_embedding|conv_(in|out|norm_out))\.", OTHER_LAYOUT),
    (
        "a UNet without model.diffusion_model.",
        r"(diffusion_model\.)?((in|out)put_blocks|middle_block|time_embed|label_emb|out)\.",
        "",
    ),
    ("a VAE", r"(encoder|decoder)\.(conv|mid|down|up|norm)|(post_)?quant_conv\.", f"{AS}vae"),
    ("a text encoder of a folder", r"(text_model|text_projection)\b", OTHER_LAYOUT),
    ("parts of a pipeline of diffusers", r"(unet|vae|text_encoder(_2)?)\.", ""),
    ("a vision tower", r"vision_model\.|visual_projection\.", OTHER_LAYOUT),
)


class SingleFile:
    """A file in the original layout.

    Args:
        path: the file.
        prediction: `epsilon` or `v`. Files of SD 2 do not contain it, except as `read_statements` finds it.
        vae: whether its own VAE is used.
    Raises: InputError for a file that is incomplete, is no such model, or holds unknown tensors; and as
        `read_statements` does.
    Warns: if only the moving average of the UNet is there, which is used then.
    """

    def __init__(self, path: Path, prediction: str | None = None, vae: bool = True) -> None:
        self.name = path.stem
        self.files = {"file": [path]}
        everything = read_tensors([path])
        self.family = _family(everything)
        self.towers = TOWERS[self.family]
        places = {"unet": UNET, "vae": VAE, **self.towers}
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in places}
        unknown = []
        for name, tensor in everything.items():
            part = next((part for part, place in places.items() if name.startswith(place)), None)
            if DROPPED.fullmatch(name):
                continue
            if part is None:
                unknown.append(name)
            else:
                parts[part][name.removeprefix(places[part])] = tensor
        average = {name.removeprefix(EMA): tensor for name, tensor in everything.items() if name.startswith(EMA)}
        if average and not parts["unet"]:
            names = average_names(name for name in average if name not in EMA_STATE)
            parts["unet"] = {names[name]: average[name] for name in names}
            warn(f"{path.name} has the UNet only as a moving average ({EMA}…): that is used")
        if not vae:
            del parts["vae"]
        missing = [part for part, tensors in parts.items() if not tensors]
        if missing:
            raise InputError(f"{path.name} is no Stable Diffusion model: {_lacking(path, everything, missing)}")
        if unknown:
            raise InputError(f"{path.name}: {len(unknown)} tensors are of no known part, such as {unknown[0]}")
        self.zero_empty = self.family == "SDXL"
        self.stated = read_statements(
            path,
            self.family,
            everything,
            read_metadata(path),
            prediction,
            SCHEDULE,
            scaling_factor=SCALING_FACTOR[self.family],
        )
        self.converted = {"unet": unet_tensors(parts["unet"])}
        if vae:
            self.converted["vae"] = vae_tensors(parts["vae"])
        for tower, place in self.towers.items():
            openclip = place.endswith(OPENCLIP)
            self.converted[tower] = (
                openclip_tensors(parts[tower], whole=self.family == "SDXL") if openclip else rename(parts[tower])
            )

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The weights of a part, memory-mapped, by their names in the diffusers layout."""
        return self.converted[part]

    def json(self, part: str) -> Json:
        """The configuration of a part, or of the scheduler, in the form of the diffusers layout."""
        stated = self.stated
        if part == "scheduler":
            own = {"prediction_type": PREDICTIONS[stated.prediction], "rescale_betas_zero_snr": stated.zero_snr}
            own |= {"timestep_spacing": "trailing"} if stated.zero_snr else {}  # to begin where there is no signal
            return SCHEDULE | stated.schedule | own
        tensors = self.converted[part]
        if part == "unet":
            return unet_json(tensors, self.family, stated)
        if part == "vae":
            return vae_json(tensors, self.scaling_factor)
        return text_json(tensors, "gelu" if self.towers[part].endswith(OPENCLIP) else "quick_gelu")

    @property
    def own_vae(self) -> Json:
        """The configuration of its own VAE: such a file has none."""
        return {}

    @property
    def scaling_factor(self) -> float:
        """The factor of latents."""
        stated = self.stated.scaling_factor
        return SCALING_FACTOR[self.family] if stated is None else stated

    def tokenizer(self, tower: str, max_length: int) -> Tokenizer:
        """CLIP's own tokenizer, which such a file does not contain. For OpenCLIP's tower, it pads with id 0."""
        return Tokenizer.of_clip(max_length, "!" if self.towers[tower].endswith(OPENCLIP) else "<|endoftext|>")


def _family(names: Iterable[str]) -> str:
    """The family of a file, by the prefix of a text tower."""
    names = list(names)
    for family, towers in reversed(TOWERS.items()):
        if any(name.startswith(tuple(towers.values())) for name in names):
            return family
    return "SD 1"


def contents(names: Iterable[str]) -> tuple[str, str]:
    """For an error: what a file holds, by the names of its tensors, and what to do with it. Empty if it is unknown."""
    counts = Counter(next((i for i, row in enumerate(INVENTORY) if re.match(row[1], name)), -1) for name in names)
    rows = [(*INVENTORY[i], counts[i]) for i in sorted(counts) if i >= 0]
    advice = next((row[2] for row in rows if len(rows) == 1 or "refiner" in row[0]), "")
    return ", ".join(f"{what} ({counted(count, 'tensor')})" for what, _, _, count in rows), advice


def _lacking(path: Path, names: Iterable[str], missing: Sequence[str]) -> str:
    """For an error: what a file holds, what it lacks, and what to do."""
    there, advice = contents(names)
    folder = model_folder(path)
    if folder is not None and advice and not advice.endswith(("--lora", "--embedding")):
        advice = f"it is a file of a model folder: give {str(folder)!r}"
    if list(missing) == ["vae"]:
        advice = "give one with --vae"
    if not there:
        first = next(iter(names), None)
        found = "no tensors" if first is None else f"only tensors of other names, such as {brief(first)}"
        return f"it has none of {', '.join(missing)}: {found}"
    return f"it has {there}, but no {', '.join(missing)}" + f": {advice}" * bool(advice)


def read_vae(path: Path) -> dict[str, Tensor]:
    """The weights of a VAE by their names in the diffusers layout, from a file in that layout or in the original one,
    with or without first_stage_model., or from a whole model's. Raises: InputError for a file that holds none."""
    everything = read_tensors([path])
    own = {name.removeprefix(VAE): tensor for name, tensor in everything.items() if name.startswith(VAE)}
    own = {name: tensor for name, tensor in (own or everything).items() if not DROPPED.fullmatch(name)}
    tensors = rename(vae_tensors(own))
    if "decoder.conv_in.weight" not in tensors:
        raise InputError(f"{path.name}: {_lacking(path, everything, ['VAE'])}")
    return tensors


def unet_json(tensors: dict[str, Tensor], family: str, stated: Statements) -> dict[str, Any]:
    """Derive `unet/config.json` from the shapes of the UNet's tensors, and from what the file says."""
    levels = count(tensors, r"down_blocks\.(\d+)\.")
    channels = [_shape(tensors, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    attention = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(levels)]
    width = _shape(tensors, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1]
    depths = [count(tensors, rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in range(levels)]
    side = 128 if family == "SDXL" else 96 if family == "SD 2" and stated.prediction == "v" else 64
    heads: int | list[int] = 8 if family == "SD 1" else [c // 64 for c in channels]  # later families: 64 channels each
    if stated.heads or stated.head_channels:
        heads = stated.heads or [max(c // stated.head_channels, 1) for c in channels]  # type: ignore[operator]
    added: dict[str, Any] = {}
    if family == "SDXL":
        width_added = _shape(tensors, "add_embedding.linear_1.weight")[1]
        added = {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": width_added}
        added["addition_time_embed_dim"] = 256
    return {
        "in_channels": _shape(tensors, "conv_in.weight")[1],
        "out_channels": _shape(tensors, "conv_out.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        "cross_attention_dim": width,
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": heads,
        "use_linear_projection": len(_shape(tensors, "mid_block.attentions.0.proj_in.weight")) == 2,
        "upcast_attention": family == "SD 2",
        "sample_size": stated.sample_size or side,
        **added,
    }


def vae_json(tensors: dict[str, Tensor], scaling_factor: float) -> dict[str, Any]:
    """Derive `vae/config.json` from the shapes of the VAE's tensors. Only a factor that is not SD 1's stands in it."""
    levels = count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    if not levels:
        raise InputError("the VAE has no encoder: expected a whole one")
    return {
        "block_out_channels": [
            _shape(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)
        ],
        "layers_per_block": count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": _shape(tensors, "decoder.conv_in.weight")[1],
        **({"scaling_factor": scaling_factor} if scaling_factor != SCALING_FACTOR["SD 1"] else {}),
    }


def text_json(tensors: dict[str, Tensor], activation: str) -> dict[str, Any]:
    """Derive `text_encoder/config.json` from the shapes of the text tower's tensors. CLIP's heads are 64 wide."""
    vocabulary, width = _shape(tensors, "text_model.embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count(tensors, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // 64,
        "max_position_embeddings": _shape(tensors, "text_model.embeddings.position_embedding.weight")[0],
        "hidden_act": activation,
        "projection_dim": tensors["text_projection.weight"].shape[0] if "text_projection.weight" in tensors else width,
    }


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor that every model has. Raises: InputError if it is missing."""
    if name not in tensors:
        raise InputError(f"the file has no {name} (as the diffusers layout calls it): a tensor is missing")
    return tuple(tensors[name].shape)
