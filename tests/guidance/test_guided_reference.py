"""Sources, edits and ControlNets live, by random models of SD 1.5's size: frame 0 is that of diffusers' pipelines.

Deselected by default, as tests/test_reference.py is.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.store import scramble
from helpers import CHECKPOINT, CLIP, VOCABULARY, assert_close, assert_same_picture
from PIL import Image
from test_reference import SCHEDULE, SD15_TEXT, SD15_UNET, VAE

from zs2 import ZS2

pytestmark = pytest.mark.reference

SIZE = 128  # pixels, a square
PROMPT = "red apple on a table"
WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # channels of the UNet, and options in zs2's words
    "source": (4, {"strength": 0.7, "guidance": 5.0}),
    "edit": (8, {"image_guidance": 1.8, "guidance": 5.0}),
    "control": (4, {"control_scale": 0.8, "guidance": 5.0}),
}
NAMES = {
    "guidance": "guidance_scale",
    "image_guidance": "image_guidance_scale",
    "control_scale": "controlnet_conditioning_scale",
    "steps": "num_inference_steps",
}


def reference(folder: Path, way: str, channels: int, options: dict[str, Any], picture: torch.Tensor) -> dict[str, Any]:
    """Latents and picture of the pipeline, which is written to a folder."""
    import diffusers as d
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    kind = {
        "source": d.StableDiffusionImg2ImgPipeline,
        "edit": d.StableDiffusionInstructPix2PixPipeline,
        "control": d.StableDiffusionControlNetPipeline,
    }[way]
    left_out = ("sample_size", "out_channels", "up_block_types")
    shared = {key: value for key, value in SD15_UNET.items() if key not in left_out}
    more = {"controlnet": scramble(d.ControlNetModel(**shared), 20)} if way == "control" else {}
    parts = kind(
        **more,
        unet=scramble(d.UNet2DConditionModel(**SD15_UNET | {"in_channels": channels}), 10),
        vae=scramble(d.AutoencoderKL(**VAE), 11),
        text_encoder=scramble(CLIPTextModel(CLIPTextConfig(**SD15_TEXT | {"vocab_size": VOCABULARY})), 12),
        tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
        scheduler=d.DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts.save_pretrained(folder)
    parts.set_progress_bar_config(disable=True)
    latents = parts(
        PROMPT,
        image=Image.fromarray(picture.numpy()),
        generator=torch.Generator("cpu").manual_seed(4),
        output_type="latent",
        **{NAMES.get(name, name): value for name, value in options.items()},
    ).images
    decoded = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample
    pixels = parts.image_processor.postprocess(decoded, output_type="np")
    return {"latents": latents, "picture": torch.from_numpy((pixels * 255).round().astype("uint8"))[0]}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_frame_0_at_full_size(way: str, tmp_path: Path) -> None:
    channels, how = WAYS[way]
    options = how | {"steps": 3}
    coarse = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    picture = (smooth * 60 + 128).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()
    want = reference(tmp_path / "model", way, channels, options, picture)
    gc.collect()
    networks = tmp_path / "model" if way == "control" else ()
    model = ZS2.from_pretrained(tmp_path / "model", device="cpu", controlnet=networks)
    clip = {"control" if way == "control" else "source": torch.stack([picture, picture.flip(0)]).numpy()}
    latents = model.latents(PROMPT, seed=4, frames=2, height=SIZE, width=SIZE, **options, **clip)
    assert_close(latents[:1], want["latents"], CLIP)
    assert_same_picture(torch.from_numpy(model.decode(latents[:1]))[0], want["picture"])
