"""ZS2: load a model, vary its method, and make a clip, its latents, or a stream of frames from a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.digests import sha256
from zs2.checkpoints.lora import LoRA, lora_files, merge
from zs2.checkpoints.own_settings import OwnSettings
from zs2.errors import InputError, check_keywords, whole
from zs2.method import METHOD, Method
from zs2.models.config import ScheduleConfig
from zs2.models.image_model import ImageModel
from zs2.models.loading import without_collector
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.provenance import clip_settings
from zs2.sampling.decoding import decode, decode_frames
from zs2.sampling.plan import SamplingPlan, plan_sampling
from zs2.sampling.request import Request
from zs2.sampling.sampler import Sampler, Step
from zs2.system.background import in_background
from zs2.system.devices import choose_device, choose_dtype
from zs2.video.clip import FPS_MAX, Clip
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from zs2.sampling.frame_parallel import Group

CALLS = {  # their keywords
    "model()": (*(one.name for one in fields(Request)), "fps", "callback", "group"),
    "model.variant()": METHOD,
    "ZS2.from_pretrained()": (*METHOD, "device", "dtype", "prediction", "lora"),
}


class ZS2:
    """An image model as a video sampler.

    `ZS2.from_pretrained(folder)` makes one; calling it with a prompt makes a clip. The parts are attributes: `unet`,
    `vae`, `text` (with `text_encoder` and `tokenizer`, the first tower's), `schedule`.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        text: PromptEncoder,
        schedule: ScheduleConfig,
        *,
        method: Method | None = None,
        checkpoint: Checkpoint | None = None,
        lora: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.method = Method() if method is None else method
        attention = momentum(self.method.attn, **self.method.attention_parameters)
        self.image_model = ImageModel(unet, vae, text, schedule).with_momentum(attention)
        self.unet, self.vae, self.text, self.schedule = self.image_model.unet, vae, text, schedule
        self.text_encoder, self.tokenizer = text.towers[0]
        self.checkpoint = checkpoint
        self.lora = list(lora)  # what was merged into the weights: for the settings

    @classmethod
    @without_collector()
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        prediction: str | None = None,
        lora: LoRA | Sequence[LoRA] = (),
        **method: Any,
    ) -> ZS2:
        """Load a checkpoint.

        Args:
            model: a folder in the diffusers layout, a `.safetensors` file in the original layout, or a model on the
                hub: `owner/name`, `owner/name@revision`, or a short name (`python -m zs2.models`).
            device: by default cuda, mps or cpu, the first there is. dtype: of the networks; latents are float32 always.
            prediction: `epsilon` or `v`, which single files of SD 2 do not say.
            lora: one or several LoRA files to merge into the weights, each a path, `FILE:SCALE`, or (file, scale).
            method: as keywords, those of `Method`: attn, mu, noise, lam, alpha, motion, renoise. By default as the
                checkpoint's own zs2.json has them, or the paper.
        Raises: InputError, in one line, for anything that can't be loaded or is out of range. Warns of options that
            have no effect with the others.
        """
        check_keywords("ZS2.from_pretrained()", method, CALLS)
        chosen = Method().changed(**method)
        device, dtype = choose_device(device), choose_dtype(dtype)
        loras = lora_files(lora)
        for file, _ in loras:  # before anything is fetched
            if not file.is_file():
                raise InputError(f"no such LoRA: {str(file)!r}")
        checkpoint = Checkpoint(model, dtype, device, prediction)
        own = checkpoint.own_settings.method
        chosen = replace(chosen, **{name: value for name, value in own.items() if getattr(chosen, name) is None})
        unet, text = checkpoint.unet(momentum(chosen.attn, **chosen.attention_parameters)), checkpoint.text()
        for file, scale in loras:
            merge(file, scale, unet, text.encoders)
        return cls(
            unet,
            checkpoint.vae(),
            text,
            checkpoint.schedule(),
            method=chosen,
            checkpoint=checkpoint,
            lora=[{"sha256": sha256([file]), "scale": float(scale)} for file, scale in loras],
        )

    def variant(self, **method: Any) -> ZS2:
        """Another setting of `Method` on the same weights, which are shared; a setting that is absent stays."""
        check_keywords("model.variant()", method, CALLS)
        return ZS2(
            self.unet,
            self.vae,
            self.text,
            self.schedule,
            method=self.method.changed(**method),
            checkpoint=self.checkpoint,
            lora=self.lora,
        )

    def __repr__(self) -> str:
        method = self.method
        settings = {"attn": method.attn, **method.attention_parameters}
        settings |= {"noise": method.noise, **method.noise_parameters}
        height, width = (side * self.vae.config.reduction for side in self.unet.config.sample_size)
        name = repr(self.own_settings.name) if self.checkpoint else "…"
        shown = "".join(f", {key}={value!r}" for key, value in settings.items())
        return f"<ZS2({name}{shown}): {width}x{height}, {str(self.dtype).removeprefix('torch.')} on {self.device}>"

    @property
    def own_settings(self) -> OwnSettings:
        """What the checkpoint's zs2.json says: the defaults of a call, and the things that the model knows."""
        return OwnSettings() if self.checkpoint is None else self.checkpoint.own_settings

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.image_model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self.image_model.dtype

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        fps: int = 8,
        callback: Callable[[Step], object] | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Clip:
        """Make a clip.

        Args:
            prompt, and as keywords those of `Request`: negative_prompt, frames, steps, sampler, deep_cache, guidance,
                guidance_interval, seed, height, width, chunk, latents (which say frames, too). Steps and guidance are
                by default as the checkpoint's own zs2.json has them, or `Request`.
            fps: frames a second of the saved clip.
            callback: called with each finished `Step`; an exception that it raises stops the clip.
            group: the processes that make it together: see frame_parallel.py. All call this, and all get the clip.
        Returns: a `Clip` with `frames`, uint8 (F, H, W, 3), and `settings`, which say how it was made.
        Raises: InputError for values out of range, or that do not fit the model or the free memory; FloatingPointError
            if the latents become NaN or infinite; OutOfMemory.
        """
        plan, fps = self.plan(self._request(prompt, **request), group), whole("fps", fps, 1, FPS_MAX)
        settings = in_background(lambda: self.settings(plan, fps))  # which hashes the weights, once
        for step in Sampler(plan).steps():
            if callback is not None:
                callback(step)
        return Clip(decode_frames(plan, step.latents), fps, settings())

    def latents(
        self,
        prompt: str | Sequence[str],
        *,
        callback: Callable[[Step], object] | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Tensor:
        """As a call, but the scaled latents before decoding: float32 (F, c, h, w) on the model's device."""
        for step in Sampler(self.plan(self._request(prompt, **request), group)).steps():
            if callback is not None:
                callback(step)
        return step.latents

    def stream(
        self,
        prompt: str | Sequence[str],
        frames: int | None = None,
        *,
        state_device: str | torch.device | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Iterator[Frames]:
        """Finished frames one by one, while later ones are still to be made: those of the clip of any length.

        Each chunk goes through all steps before the next one begins, so that the first frame is there after one chunk's
        work. What is kept of earlier frames is one momentum state a layer and step, whatever their number.

        Args:
            prompt, and as keywords those of `Request`; the chunk is 8 frames by default, or fewer if these do not fit.
            frames: how many; None goes on until the caller stops, or the given latents end.
            state_device: where the momentum states are kept (default: with the model).
        Yields: uint8 (H, W, 3)
        Raises: as a call does.
        """
        asked = self._request(prompt, frames=frames, **request)
        return stream_frames(self.plan(asked, group, stream=True, state_device=state_device))

    def sample(self, request: Request, group: Group | None = None) -> Iterator[Step]:
        """The sampler: yields after every step; close it to cancel. Raises: as a call does."""
        return Sampler(self.plan(request, group)).steps()

    def plan(
        self,
        request: Request,
        group: Group | None = None,
        *,
        stream: bool = False,
        state_device: str | torch.device | None = None,
    ) -> SamplingPlan:
        """The plan of a request for this model: see sampling/plan.py, also for the errors."""
        return plan_sampling(self.image_model, self.method, request, group, stream=stream, state_device=state_device)

    def settings(self, plan: SamplingPlan, fps: int) -> dict[str, Any]:
        """How a clip of this plan is made: see provenance.py."""
        return clip_settings(plan, fps, self.checkpoint, self.lora)

    def _request(self, prompt: str | Sequence[str], **options: Any) -> Request:
        """A request with the checkpoint's own defaults, and of as many frames as there are latents."""
        check_keywords("model()", options, CALLS)
        latents = options.get("latents")
        if options.get("frames") is None and isinstance(latents, Tensor) and latents.ndim == 4:
            options["frames"] = len(latents)
        request = Request(prompt, **self.own_settings.request | options)
        if request.guidance != 0:
            self.own_settings.warn_of_unknown_things(prompt)
        return request

    def decode(self, latents: Tensor, chunk: int | None = None) -> Frames:
        """Scaled latents (F, c, h, w), at most `chunk` at once → frames, uint8 (F, H, W, 3).

        Raises: FloatingPointError if a pixel is NaN or infinite.
        """
        return decode(self.vae, latents, len(latents) if chunk is None else chunk).numpy()


def stream_frames(plan: SamplingPlan) -> Iterator[Frames]:
    """The frames (H, W, 3) of a stream's plan, as they are finished."""
    for latents in Sampler(plan).chunks():
        yield from decode_frames(plan, latents)
