"""What a user would write without zs2: diffusers' pipelines, and its UNet with TMA as an attention processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    import diffusers
except ImportError as error:
    raise SystemExit("this benchmark needs its peers: pip install -e '.[bench]'") from error


class MomentumProcessor:
    """TMA as in the paper, on the projected keys and values of a diffusers Attention, frame by frame.

    frames: the number of frames in a branch. mu: μ; 1 is cross-frame attention to frame 0.
    """

    def __init__(self, frames: int, mu: float) -> None:
        self.frames, self.mu = frames, mu

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if encoder_hidden_states is None:
            k, v = self.blend(k), self.blend(v)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def blend(self, x: Tensor) -> Tensor:
        """k̃⁰ = k⁰, k̃ⁱ = μ·k̃ⁱ⁻¹ + (1−μ)·kⁱ: (branches·f, n, c), frames innermost"""
        x = x.unflatten(0, (-1, self.frames)).clone()
        for i in range(1, self.frames):
            x[:, i] = self.mu * x[:, i - 1] + (1 - self.mu) * x[:, i]
        return x.flatten(0, 1)


class ListingProcessor(MomentumProcessor):
    """The same as in the published listing, as it is meant: one product with the matrix U over the frames."""

    def blend(self, x: Tensor) -> Tensor:
        i = torch.arange(self.frames, device=x.device)
        powers = self.mu ** (i[:, None] - i[None]).clamp(min=0)
        u = torch.where(i[None] == 0, self.mu ** i[:, None], (1 - self.mu) * powers).tril().to(x.dtype)
        return torch.einsum("fg,bgnc->bfnc", u, x.unflatten(0, (-1, self.frames))).flatten(0, 1)


def unet(config: dict[str, Any], weights: dict[str, Tensor], frames: int = 1, mu: float | None = None) -> Any:
    """diffusers' UNet with these weights, and with its own self-attention, or with a μ that processor."""
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel.from_config(config)
    model.load_state_dict(weights, assign=True)
    if mu is not None:
        model.set_attn_processor(MomentumProcessor(frames, mu))
    return model.eval().requires_grad_(False)


def pipeline(folder: Path | str, **options: Any) -> Any:
    """diffusers' pipeline of a folder, with the paper's sampler."""
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def momentum_clip(pipe: Any, prompt: str, latents: Tensor, *, steps: int, guidance: float, mu: float) -> list[Any]:
    """The clip that diffusers' pipeline with TMA makes from initial noises (f, c, h, w), as PIL pictures."""
    frames, _, h, w = latents.shape
    pipe.unet.set_attn_processor(MomentumProcessor(frames, mu))
    scale = pipe.vae_scale_factor
    output = pipe(
        prompt,
        num_images_per_prompt=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents.to(pipe.unet.dtype),
        height=h * scale,
        width=w * scale,
    )
    return output.images


def text2video_zero(pipe: Any) -> Any:
    """diffusers' deprecated pipeline of Text2Video-Zero, with the parts of another pipeline."""
    parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, pipe.scheduler, None, None)
    zero = diffusers.TextToVideoZeroPipeline(*parts, requires_safety_checker=False)
    zero.set_progress_bar_config(disable=True)
    return zero


def zero_clip(
    zero: Any, prompt: str, latents: Tensor, *, frames: int, steps: int, guidance: float, renoise: Sequence[int]
) -> list[Any]:
    """The clip that this pipeline makes from the first frame's noise (1, c, h, w), as PIL pictures."""
    from PIL import Image

    output = zero(
        prompt=prompt,
        video_length=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        t0=renoise[0],
        t1=renoise[1],
        latents=latents.to(zero.unet.dtype),
        height=latents.shape[2] * zero.vae_scale_factor,
        width=latents.shape[3] * zero.vae_scale_factor,
    )
    return [Image.fromarray((frame * 255).round().astype("uint8")) for frame in output.images]


def write_gif(pictures: list[Any], file: Path, fps: int) -> None:
    """Write a clip as an animated GIF."""
    first, *rest = pictures
    first.save(file, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
