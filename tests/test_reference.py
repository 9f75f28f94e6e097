"""zs2 against diffusers and transformers, live: whole models of SD 1.5's and SD 2.1's size with random weights.

Deselected by default, for it needs both libraries, 9 GiB of memory, 5 GiB of disk and some minutes:
`python -m pytest -m reference tests/test_reference.py`.
"""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.prompts import random_prompts
from fixtures.reference import noise, over_frames, scramble, set_attention
from helpers import CHECKPOINT, MODULE, assert_close
from torch import Tensor

from zs2 import ZS2
from zs2.config import ScheduleConfig
from zs2.ddim import timesteps
from zs2.errors import InputError
from zs2.tokenizer import Tokenizer

pytestmark = pytest.mark.reference

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "act_fn": "silu",
}
SD21_UNET = SD15_UNET | {
    "sample_size": 96,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}
SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
SD21_TEXT = SD15_TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FAMILIES = {
    "sd15": (SD15_UNET, SD15_TEXT, SCHEDULE),
    "sd21": (SD21_UNET, SD21_TEXT, SCHEDULE | {"prediction_type": "v_prediction"}),
}
FRAMES = 2  # and two branches of guidance
T = 601


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed at once: pytest would keep the last three, 5 GiB each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def inputs(context_dim: int) -> dict[str, Tensor]:
    """What both sides compute from."""
    ids = torch.randint(3, 49000, (2, 77), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[0, 9:], ids[1, 70:] = 49406, 49407, 49407
    return {
        "x": noise(2, 2 * FRAMES, 4, 32, 32),
        "odd": noise(3, 2 * FRAMES, 4, 9, 13),
        "context": noise(4, 2, 77, context_dim),
        "ids": ids,
        "pixels": noise(5, 1, 3, 64, 96).clamp(-1, 1),
        "z": noise(6, 1, 4, 8, 12),
    }


def reference_outputs(family: str, folder: Path, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Build a model by the libraries, save it in the diffusers layout, and return what it computes."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet_config, text_config, schedule = FAMILIES[family]
    parts = StableDiffusionPipeline(
        unet=scramble(UNet2DConditionModel(**unet_config), 10),
        vae=scramble(AutoencoderKL(**VAE), 11),
        text_encoder=scramble(CLIPTextModel(CLIPTextConfig(**text_config)), 12),
        tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
        scheduler=DDIMScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts.save_pretrained(folder)
    outputs = {
        "text": parts.text_encoder(given["ids"]).last_hidden_state,
        "encoded": parts.vae.encode(given["pixels"]).latent_dist.mean,
        "decoded": parts.vae.decode(given["z"]).sample,
    }
    context = over_frames(given["context"], FRAMES)
    for attn, mu in (("sa", 0.0), ("tma", 0.98), ("cfa", 1.0)):
        set_attention(parts.unet, attn, mu, FRAMES)
        for size in ("x", "odd"):
            outputs[f"{attn} {size}"] = parts.unet(given[size], T, encoder_hidden_states=context).sample
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_model_of_full_size(family: str, scratch: Path) -> None:
    given = inputs(FAMILIES[family][0]["cross_attention_dim"])
    want = reference_outputs(family, scratch, given)
    gc.collect()  # one model in memory at a time
    model = ZS2.from_pretrained(scratch, attn="sa", device="cpu")
    assert_close(model.text_encoder(given["ids"]), want["text"], MODULE)
    assert_close(model.vae.encode(given["pixels"]), want["encoded"], MODULE)
    assert_close(model.vae.decode(given["z"]), want["decoded"], MODULE)
    for attn in ("sa", "tma", "cfa"):
        unet = model.variant(attn=attn).unet
        for size in ("x", "odd"):
            assert_close(unet(given[size], T, given["context"], frames=FRAMES), want[f"{attn} {size}"], MODULE)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_every_number_of_steps(spacing: str) -> None:
    from diffusers import DDIMScheduler

    json = {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")}
    scheduler, config = DDIMScheduler(**json), ScheduleConfig.from_json(json)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        want = scheduler.timesteps.tolist()[:steps]  # trailing spacing sometimes has one more, -1, by a rounding error
        if want[0] >= 1000:  # diffusers fails later, when it looks up what the schedule does not have
            with pytest.raises(InputError):
                timesteps(config, steps)
        else:
            assert timesteps(config, steps) == want, f"{steps} steps"


def test_tokenizer_on_many_prompts() -> None:
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    tokenizer = Tokenizer.from_folder(CHECKPOINT / "tokenizer")
    length = reference.model_max_length
    prompts = random_prompts(10_000, seed=7)
    want = reference(prompts, padding="max_length", max_length=length, truncation=True).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many are too long
        got = tokenizer.encode(prompts).tolist()
    for prompt, a, b in zip(prompts, got, want, strict=True):
        assert a == b, f"{prompt!r}"
