"""Time sampling with one ControlNet: zs2 against diffusers' StableDiffusionControlNetPipeline, in turns.

    python benchmarks/controlnet.py                 one frame of 256² in two steps, five rounds
    python benchmarks/controlnet.py --steps 4 --size 512

UNet and ControlNet are of Stable Diffusion 1.5's size, with random weights that both share; attention is `sa`, guidance
7.5. Sampling is timed from the encoded text to the latents. Before that, the latents of both are compared.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from common import add_json, bar, machine, ratio, save, sentence, timed, turns
from PIL import Image
from sd15 import TEXT, UNET, VAE, weights

from zs2 import ZS2
from zs2.checkpoints.single_file import SCHEDULE
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import ScheduleConfig, UNetConfig, VAEConfig
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE as VAEModel
from zs2.system.modules import assign, without_weights

SHARED = ("block_out_channels", "down_block_types", "layers_per_block", "attention_head_dim", "cross_attention_dim")
CONTROL = {key: UNET[key] for key in SHARED}
SMALL_VAE = VAE | {"block_out_channels": [8] * 4, "norm_num_groups": 4}  # it is not timed
MOST = 1.05  # times diffusers' time
SMALL_TEXT = TEXT | {"num_hidden_layers": 1}


def load() -> ZS2:
    """The model of zs2, with its ControlNet."""
    torch.manual_seed(0)
    with without_weights():
        parts: list[Any] = [
            UNet(UNetConfig.from_json(UNET), "sa"),
            VAEModel(VAEConfig.from_json(SMALL_VAE)),
            TextEncoder(TextConfig.from_json(SMALL_TEXT), projection=False),
            ControlNet(ControlNetConfig.from_json(CONTROL), "sa"),
        ]
    unet, vae, text, control = (assign(part, weights(part), "", torch.float32, torch.device("cpu")) for part in parts)
    towers = PromptEncoder([(text, Tokenizer.of_clip(77, "<|endoftext|>"))], False)
    return ZS2(unet, vae, towers, ScheduleConfig.from_json(SCHEDULE), controls=[control]).variant(attn="sa")


def reference(model: ZS2) -> Any:
    """The pipeline of diffusers, on the same weights."""
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        StableDiffusionControlNetPipeline,
        UNet2DConditionModel,
    )

    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel.from_config(UNET), "controlnet": ControlNetModel.from_config(CONTROL)}
        parts["vae"] = AutoencoderKL.from_config(SMALL_VAE)
    control = model.image_model.controls[0]
    for part, own in zip(parts.values(), (model.unet, control, model.vae), strict=True):
        part.load_state_dict(own.state_dict(), assign=True)
    pipeline = StableDiffusionControlNetPipeline(
        **parts,
        text_encoder=None,
        tokenizer=None,
        scheduler=DDIMScheduler.from_config(SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Print the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    add_json(parser)
    args = parser.parse_args(argv)
    model = load()
    pipeline, side = reference(model), args.size
    hint = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    encoded = model.text(["a fox"], [""], 0, 1).context  # the negative prompt comes first
    calls = {
        "zs2": lambda: model.latents(
            "a fox", frames=1, steps=args.steps, guidance=7.5, height=side, width=side, control=hint
        ),
        "diffusers": lambda: (
            pipeline(
                prompt_embeds=encoded[1:],
                negative_prompt_embeds=encoded[:1],
                image=Image.fromarray(hint),
                num_inference_steps=args.steps,
                guidance_scale=7.5,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
        ),
    }
    got, want = (calls[way]() for way in calls)  # also warms up
    apart = float((got - want).abs().max() / want.abs().max())
    hardware = machine()
    print(sentence(hardware))
    print(f"latents differ by {apart:.1e} of the largest value")
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    for _, way in turns(list(calls), args.rounds):
        seconds[way].append(timed(calls[way], torch.device("cpu")))
    for way, values in seconds.items():
        print(f"{way:<12}{np.median(values):8.2f} s")
    both = ratio(seconds["zs2"], seconds["diffusers"])
    print(f"zs2 / diffusers: {both}")
    print(bar("sampling with one control, to diffusers", both.median, MOST, least=False))
    save(args.json, hardware, apart=apart, seconds=seconds)


if __name__ == "__main__":
    main()
