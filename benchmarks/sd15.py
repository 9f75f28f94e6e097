"""A model of Stable Diffusion 1.5's size: its configurations, and random weights as files in both layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zs2.checkpoints.single_file import SCHEDULE
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE as VAEModel
from zs2.system.modules import without_weights

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "pad_token_id": 49407,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def weights(module: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights for a module, which may be on the meta device. They are small, so that nothing overflows."""
    return {name: (torch.randn(w.shape) * 0.02).to(dtype) for name, w in module.state_dict().items()}


def write_model(scratch: Path, *, single: bool = True) -> float:
    """Write a model as `scratch/folder` and, if wanted, as `scratch/model.safetensors`.

    Returns: the weights' size in GB.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fixtures"))
    from original import single_file, write

    folder = scratch / "folder"
    with without_weights():
        parts = {
            "unet": (UNet(UNetConfig.from_json(UNET)), UNET, "diffusion_pytorch_model"),
            "vae": (VAEModel(VAEConfig.from_json(VAE)), VAE, "diffusion_pytorch_model"),
            "text_encoder": (TextEncoder(TextConfig.from_json(TEXT), projection=False), TEXT, "model"),
        }
    written: list[Path] = []
    write_configuration(folder, {part: config for part, (_, config, _) in parts.items()})
    for part, (module, _, stem) in parts.items():
        written.append(folder / part / f"{stem}.safetensors")
        write(written[-1], weights(module), {"format": "pt"})
    if single:
        write(scratch / "model.safetensors", single_file(1, *map(load_file, written)))
    return sum(file.stat().st_size for file in written) / 1e9


def write_configuration(folder: Path, parts: dict[str, dict[str, Any]]) -> None:
    """Write all of a model's folder but its weights: the configuration of each part, the schedule and the tokenizer."""
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULE))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "tokenizer").mkdir()
    saved = json.loads(Tokenizer.of_clip().backend.to_str())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(saved["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": 77}))
