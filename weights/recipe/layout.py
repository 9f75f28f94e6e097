"""Write the checkpoint's folder in the diffusers layout: configurations, and weights in half precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from weights.recipe.settings import (
    EDIT_GUIDANCE,
    EDITS,
    EXAMPLES,
    GUIDANCE,
    IMAGE_GUIDANCE,
    LAM,
    OPEN_EXAMPLES,
    STEPS,
    TOKENS,
    Settings,
)
from weights.recipe.training import save
from zs2.errors import InputError
from zs2.models.tokenizer import Tokenizer
from zs2.system.json_files import read_json

STEM = "diffusion_pytorch_model"  # of the files of networks, text towers apart
HEADER = 1 << 16  # bytes that are left for the names of the tensors in a file
DIFFUSERS = "0.42.1"  # the version of diffusers whose layout this is

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": DIFFUSERS,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def scheduler(settings: Settings) -> dict[str, Any]:
    """The configuration of the noise schedule."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": settings.prediction,
        "timestep_spacing": "leading",
    }


def images(settings: Settings) -> dict[str, Any]:
    """The configuration of the pictures that CLIP's vision tower sees."""
    return {
        "crop_size": {"height": settings.clip_size, "width": settings.clip_size},
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": settings.clip_size, "width": settings.clip_size},
    }


def tower(settings: Settings, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The configuration of CLIP's text tower; without a tokenizer, that of its vision tower."""
    common: dict[str, Any] = {
        "hidden_act": "quick_gelu",
        "hidden_size": settings.clip_width,
        "intermediate_size": 4 * settings.clip_width,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": settings.clip_heads,
        "num_hidden_layers": settings.clip_layers,
        "projection_dim": settings.clip_projection,
    }
    if tokenizer is None:
        kind = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"]}
        return kind | common | {"image_size": settings.clip_size, "patch_size": 8, "num_channels": 3}
    return (
        {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]}
        | common
        | {
            "bos_token_id": tokenizer.eos_id - 1,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "max_position_embeddings": TOKENS,
            "vocab_size": tokenizer.vocab_size,
        }
    )


def vae(settings: Settings, scaling_factor: float = 1.0) -> dict[str, Any]:
    """The configuration of the autoencoder."""
    levels = len(settings.vae_widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": list(settings.vae_widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": settings.vae_channels,
        "mid_block_add_attention": False,  # so that a place sees its surroundings only, whatever the size
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "sample_size": settings.size,
        "scaling_factor": scaling_factor,
    }


def unet(settings: Settings) -> dict[str, Any]:
    """The configuration of the denoiser: self- and cross-attention at every level."""
    levels = len(settings.unet_widths)
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "attention_head_dim": settings.unet_heads,  # the number of heads: diffusers' misnomer
        "block_out_channels": list(settings.unet_widths),
        "cross_attention_dim": settings.clip_width,
        "down_block_types": ["CrossAttnDownBlock2D"] * levels,
        "up_block_types": ["CrossAttnUpBlock2D"] * levels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": settings.vae_channels,
        "out_channels": settings.vae_channels,
        "layers_per_block": settings.unet_layers,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_num_groups": 32,
        "sample_size": settings.size // 2 ** (len(settings.vae_widths) - 1),
    }


def controlnet(unet: Mapping[str, Any], hint_channels: Sequence[int]) -> dict[str, Any]:
    """The configuration of a ControlNet for a UNet with this configuration."""
    left_out = ("up_block_types", "out_channels", "sample_size")
    return {key: value for key, value in unet.items() if key not in left_out} | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(hint_channels),
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }


def editing_settings(base: str) -> dict[str, Any]:
    """The contents of an editing model's zs2.json. base: the name of the checkpoint that its other parts are from."""
    guidance = {"guidance": EDIT_GUIDANCE, "image_guidance": IMAGE_GUIDANCE}
    return {"base": base, "steps": STEPS, **guidance, "lam": LAM, "prompts": list(EDITS)}


def own_settings(things: Sequence[str]) -> dict[str, Any]:
    """The contents of the checkpoint's zs2.json. Of the examples, it has those whose things the checkpoint knows."""
    return {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "lam": LAM,
        "prompts": [f"{thing} on a {colour} background" for thing, colour in EXAMPLES.items() if thing in things],
        "open_prompts": ["", *(thing for thing in OPEN_EXAMPLES if thing in things)],
        "things": list(things),
    }


def relisted(file: Path, things: Sequence[str]) -> dict[str, Any]:
    """The contents of a checkpoint's zs2.json with these things. All else stays, except the examples that the recipe
    wrote: they go with the things."""
    before = read_json(file) if file.exists() else own_settings(things)
    if before == own_settings(before.get("things") or ()):
        return own_settings(things)
    return before | {"things": list(things)}


def write(file: Path, content: Mapping[str, Any] | Sequence[str]) -> None:
    """Write a JSON file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)


def write_part(folder: Path, part: str, config: dict[str, Any], model: nn.Module, stem: str) -> None:
    """Write a part of the checkpoint: weights in half precision, then the configuration, which marks it as complete."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{part}: {name} does not fit half precision")
    save(folder / part / f"{stem}.safetensors", tensors, {"format": "pt"})
    write(folder / part / "config.json", config)


def read_part(folder: Path) -> dict[str, Tensor]:
    """The weights of a part of the checkpoint, in one file or several."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def shard(folder: Path, limit: int) -> None:
    """Split the weights of each part into files of at most `limit` bytes, in diffusers' layout, or join them again.

    Some machines send back small files only. Raises: InputError if the folder has no part, or one without weights.
    """
    configs = sorted(folder.glob("*/config.json"))
    if not configs:
        raise InputError(f"{folder} has no part of a checkpoint (PART/config.json): expected a folder of one")
    for config in configs:
        if not any(config.parent.glob("*.safetensors")):
            raise InputError(f"{config.parent} has no weights: expected a .safetensors file beside its config.json")
    for config in configs:
        files = sorted(config.parent.glob("*.safetensors"))
        stem = files[0].stem.partition("-")[0]
        shards: list[dict[str, Tensor]] = [{}]
        room = limit - HEADER
        for name, tensor in read_part(config.parent).items():
            if tensor.nbytes > room and shards[-1]:
                shards, room = [*shards, {}], limit - HEADER
            shards[-1][name] = tensor
            room -= tensor.nbytes
        count = len(shards)
        names = [f"{stem}-{i:05}-of-{count:05}" for i in range(1, count + 1)] if count > 1 else [stem]
        for name, tensors in zip(names, shards, strict=True):
            save(config.parent / f"{name}.safetensors", tensors, {"format": "pt"})
        index = config.parent / f"{stem}.safetensors.index.json"
        if count > 1:
            where = {key: f"{name}.safetensors" for name, of in zip(names, shards, strict=True) for key in of}
            size = sum(tensor.nbytes for of in shards for tensor in of.values())
            write(index, {"metadata": {"total_size": size}, "weight_map": where})
        else:
            index.unlink(missing_ok=True)
        for file in files:
            if file.stem not in names:
                file.unlink()


def blank(module: nn.Module) -> None:
    """Initialise CLIP's embeddings. zs2 leaves them uninitialised, because it only loads them."""
    for name, weight in module.named_parameters():
        if name.endswith("class_embedding") or name.endswith("embedding.weight"):
            nn.init.normal_(weight, std=0.02)


def is_there(folder: Path, part: str) -> bool:
    """Whether a part was written."""
    return (folder / part / "config.json").exists()
