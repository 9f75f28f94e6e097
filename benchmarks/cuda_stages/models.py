"""Models with random weights that are made on the device: of Stable Diffusion 1.5's size and XL's, or tiny."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from sd15 import TEXT, UNET, VAE
from torch import nn

from cuda_stages.stage import Stage
from zs2 import ZS2
from zs2.checkpoints.single_file import SCHEDULE
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import ScheduleConfig, UNetConfig, VAEConfig
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import Momentum
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE as VAEModel
from zs2.system.modules import without_weights

M = TypeVar("M", bound=nn.Module)
PROMPT = "a photograph of an astronaut riding a horse"
XL = {  # of SDXL, beside what UNET has
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TEXT_2 = {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280}
TEXT_2 |= {"intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}

SMALL = {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64, "sample_size": 8}
SMALL_XL = {"block_out_channels": [32, 64, 64], "cross_attention_dim": 128, "sample_size": 8}
SMALL_XL |= {"attention_head_dim": [1, 2, 2], "transformer_layers_per_block": [1, 1, 2]}
SMALL_XL |= {"projection_class_embeddings_input_dim": 6 * 256 + 64}
SMALL_VAE = {"block_out_channels": [32, 32, 32, 32]}
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL_TEXT |= {"projection_dim": 64}


def configurations(stage: Stage, family: str = "sd15") -> dict[str, dict[str, Any]]:
    """The JSON of each part of a model of a family, `sd15` or `xl`, tiny in a rehearsal."""
    unet, parts = dict(UNET), {"vae": dict(VAE), "text_encoder": dict(TEXT)}
    if family == "xl":
        unet |= XL
        parts["text_encoder_2"] = TEXT | TEXT_2
    if stage.tiny:
        unet |= SMALL_XL if family == "xl" else SMALL
        parts = {part: json | (SMALL_VAE if part == "vae" else SMALL_TEXT) for part, json in parts.items()}
    return {"unet": unet, **parts}


def filled(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """A module of the meta device with random weights, small ones, so that nothing overflows."""
    torch.manual_seed(0)
    for name, weight in module.state_dict().items():
        owner, _, last = name.rpartition(".")
        random = torch.randn(weight.shape, device=device, dtype=dtype) * 0.02
        setattr(module.get_submodule(owner), last, nn.Parameter(random, requires_grad=False))
    return module.eval()


def unet(stage: Stage, dtype: torch.dtype, attn: str | Momentum = "sa", family: str = "sd15") -> UNet:
    """A UNet."""
    with without_weights():
        module = UNet(UNetConfig.from_json(configurations(stage, family)["unet"]), attn)
    return filled(module, stage.device, dtype)


def shared(unet: UNet, attn: str | Momentum) -> UNet:
    """A UNet with another attention over frames on the same weights."""
    with without_weights():
        other = UNet(unet.config, attn)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def vae(stage: Stage, dtype: torch.dtype) -> VAEModel:
    """A VAE."""
    with without_weights():
        module = VAEModel(VAEConfig.from_json(configurations(stage)["vae"]))
    return filled(module, stage.device, dtype)


def model(stage: Stage, dtype: torch.dtype, family: str = "sd15") -> ZS2:
    """A whole model. In float16 its VAE is float32, as that of a checkpoint that says nothing."""
    towers = []
    for part, json_ in configurations(stage, family).items():
        if part.startswith("text"):
            config = TextConfig.from_json(json_, part)
            with without_weights():
                encoder = TextEncoder(config, projection=part == "text_encoder_2")
            pad = "!" if part == "text_encoder_2" else "<|endoftext|>"
            towers.append((filled(encoder, stage.device, dtype), Tokenizer.of_clip(77, pad)))
    text = PromptEncoder(towers, zero_empty=len(towers) > 1)
    half = torch.float32 if dtype == torch.float16 else dtype
    return ZS2(unet(stage, dtype, "tma", family), vae(stage, half), text, ScheduleConfig.from_json(SCHEDULE))


def half(stage: Stage) -> torch.dtype:
    """float16; in a rehearsal on a CPU float32, because many a CPU is slow in float16."""
    return torch.float32 if stage.device.type == "cpu" else torch.float16
