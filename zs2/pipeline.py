"""ZS2: load a model, vary its method, and make a clip, its latents, or a stream of frames from a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.controlnets import ControlNetFiles, load_controlnets
from zs2.checkpoints.embeddings import Adapters, EmbeddingFile
from zs2.checkpoints.lora import LoRA
from zs2.checkpoints.own_settings import OwnSettings
from zs2.checkpoints.provenance import clip_settings
from zs2.errors import check_keywords
from zs2.method import METHOD, Method
from zs2.models.config import ScheduleConfig
from zs2.models.controlnet import ControlNet
from zs2.models.image_model import ImageModel
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.sampling.decoding import decode, decode_frames
from zs2.sampling.plan import SamplingPlan, plan_sampling
from zs2.sampling.prompt_syntax import Prompt
from zs2.sampling.request import Request, usual
from zs2.sampling.resume import ResumeFile
from zs2.sampling.sampler import Sampler, Step
from zs2.system.background import in_background
from zs2.system.collector import without_collector
from zs2.system.devices import choose_device, choose_dtype
from zs2.system.progress import progress_if
from zs2.video.clip import Clip
from zs2.video.encoding import Rate, frame_rate
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from zs2.sampling.frame_parallel import Group

REQUEST = tuple(one.name for one in fields(Request) if one.name != "part_of")  # which replays alone have
LOADING = ("device", "dtype", "prediction", "variant", "vae", "lora", "embeddings", "controlnet", "compile")
CALLS = {  # the keywords of each call
    "model()": (*REQUEST, "fps", "callback", "progress", "group"),
    "model.latents()": (*REQUEST, "callback", "progress", "group"),
    "model.stream()": (*REQUEST, "state_device", "resume", "group"),
    "model.variant()": METHOD,
    "ZS2.from_pretrained()": (*METHOD, *LOADING),
}


class ZS2:
    """An image model as a video sampler.

    `ZS2.from_pretrained(folder)` loads one. A call with a prompt makes a clip. The parts are attributes: `unet`, `vae`,
    `text` (with `text_encoder` and `tokenizer`, those of the first tower), `schedule`.
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
        embeddings: Sequence[dict[str, Any]] = (),
        controls: Sequence[ControlNet] = (),
    ) -> None:
        self.image_model = ImageModel(unet, vae, text, schedule, tuple(controls))
        self.vae, self.text, self.schedule = vae, text, schedule
        self.text_encoder, self.tokenizer = text.towers[0]
        self.checkpoint = checkpoint
        self.lora = list(lora)  # the LoRAs that were merged into the weights: for the settings
        self.embeddings = list(embeddings)  # the textual inversions that were added, likewise
        self.control_files: list[ControlNetFiles] = []  # those of the ControlNets, likewise
        self._use(Method() if method is None else method)

    def _use(self, method: Method) -> None:
        self.method = method
        self.image_model = self.image_model.with_momentum(momentum(method.attn, **method.attention_parameters))
        self.unet = self.image_model.unet

    @classmethod
    @without_collector()
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        prediction: str | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        lora: LoRA | Sequence[LoRA] = (),
        embeddings: EmbeddingFile | Sequence[EmbeddingFile] = (),
        controlnet: str | Path | Sequence[str | Path] = (),
        compile: bool = False,
        **method: Any,
    ) -> ZS2:
        """Load a checkpoint.

        Args:
            model: a folder in the diffusers layout, a `.safetensors` file in the original layout, or a model on the
                hub: `owner/name`, `owner/name@revision`, or a short name (`python -m zs2.models`).
            device: by default the first available one of cuda, mps and cpu.
            dtype: that of the networks; latents are always float32. By default, `auto`: float32 on a CPU; on a GPU
                float16, or bfloat16 if the weights are stored in that.
            prediction: `epsilon` or `v`, for single files of SD 2, which do not contain it.
            variant: of a folder's weights, by default the plain one, then `fp16`, then the only one.
            vae: a VAE from elsewhere: a folder in the diffusers layout, a model's folder, or a file in either layout.
            lora: one or several LoRAs to merge into the weights, each a path, `FILE:SCALE`, or (file, scale). A file
                is safetensors, or a folder of PEFT or diffusers. Embeddings in it are added.
            embeddings: one or several textual inversions, each a path, `FILE:TOKEN`, or (file, token). The token is by
                default that of the file, or the file's name.
            controlnet: one or several ControlNets, each a folder in the diffusers layout, a file in either layout, or
                `owner/name` on the hub. A call steers by them with `control`, a clip for each.
            compile: whether to compile the UNet, also of variants. The first step then takes minutes, and the others
                less time; see `UNet.compile`. Last bits differ.
            method: the keywords of `Method`, such as attn, mu, noise and lam. Defaults are those of the checkpoint's
                zs2.json, or the paper's.
        Raises: InputError, in one line, for anything that can't be loaded or is out of range.
        Warns: of options that have no effect with the others.
        """
        check_keywords("ZS2.from_pretrained()", method, CALLS)
        chosen = Method().changed(**method)
        device, dtype = choose_device(device), choose_dtype(dtype)
        adapters = Adapters(lora, embeddings)  # raises before anything is downloaded
        checkpoint = Checkpoint(model, dtype, device, prediction, variant, vae)
        own = checkpoint.own_settings.method
        chosen = replace(chosen, **{name: value for name, value in own.items() if getattr(chosen, name) is None})
        unet, text = checkpoint.unet(momentum(chosen.attn, **chosen.attention_parameters)), checkpoint.text()
        digests, added = adapters.apply(unet, text)
        parts = unet, checkpoint.vae(), text, checkpoint.schedule()
        found = cls(*parts, method=chosen, checkpoint=checkpoint, lora=digests, embeddings=added)
        found = found.with_controlnet(controlnet, variant)
        for network in (found.unet, *found.image_model.controls) if compile else ():
            network.compile()
        return found

    def with_controlnet(self, controlnet: str | Path | Sequence[str | Path], variant: str | None = None) -> ZS2:
        """This model with other ControlNets, which shares all its weights. Arguments and errors: `from_pretrained`."""
        controls, files = load_controlnets(controlnet, self.unet, self.vae.config.reduction, variant)
        other = copy(self)
        other.image_model, other.control_files = replace(self.image_model, controls=controls), list(files)
        return other

    def variant(self, **method: Any) -> ZS2:
        """A model with other settings (see `Method.changed`), on this one's weights. An absent setting stays."""
        check_keywords("model.variant()", method, CALLS)
        other = copy(self)
        other._use(self.method.changed(**method))
        return other

    def __repr__(self) -> str:
        method = self.method
        settings = {"attn": method.attn, **method.attention_parameters}
        settings |= {"noise": method.noise, **method.noise_parameters}
        sides = [str(side * self.vae.config.reduction) for side in reversed(self.unet.config.sample_size or ())]
        size = "x".join(sides) or "no size of its own"
        name = repr(self.own_settings.name) if self.checkpoint else "…"
        shown = "".join(f", {key}={value!r}" for key, value in settings.items() if value is not None)
        return f"<ZS2({name}{shown}): {size}, {str(self.dtype).removeprefix('torch.')} on {self.device}>"

    @property
    def own_settings(self) -> OwnSettings:
        """The contents of the checkpoint's zs2.json: the defaults of a call, and the things that the model knows."""
        return OwnSettings() if self.checkpoint is None else self.checkpoint.own_settings

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.image_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet."""
        return self.image_model.dtype

    def __call__(
        self,
        prompt: Prompt,
        *,
        fps: Rate | float | str = 8,
        callback: Callable[[Step], object] | None = None,
        progress: bool | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Clip:
        """Make a clip.

        Args:
            prompt, and the keywords of `Request`, such as negative_prompt, frames, steps, guidance and seed. Without
                frames, there are as many as latents. Other defaults are those of the checkpoint's zs2.json.
            fps: frames per second of the saved clip, as `Clip` has it.
            callback: called with each finished `Step`. An exception in it stops the clip.
            progress: whether to show a progress bar. None: in a notebook.
            group: the processes that make the clip together, see frame_parallel.py. All call this and get the clip.
        Returns: a `Clip` with `frames`, uint8 (F, H, W, 3), and `settings`, which record how it was made.
        Raises: InputError for values that are out of range, or do not fit the model or the free memory;
            FloatingPointError if the latents become NaN or infinite; OutOfMemory.
        """
        plan, fps = self.plan(self._request("model()", prompt, **request), group), frame_rate(fps)
        settings = in_background(lambda: self.settings(plan, fps))  # hashes the weights, once
        for step in progress_if(progress, Sampler(plan).steps(), plan.step_count, "sampling"):
            if callback is not None:
                callback(step)
        return Clip(decode_frames(plan, step.latents), fps, settings())

    def latents(
        self,
        prompt: Prompt,
        *,
        callback: Callable[[Step], object] | None = None,
        progress: bool | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Tensor:
        """As a call, but return the scaled latents: float32 (F, c, h, w) on the model's device."""
        plan = self.plan(self._request("model.latents()", prompt, **request), group)
        for step in progress_if(progress, Sampler(plan).steps(), plan.step_count, "sampling"):
            if callback is not None:
                callback(step)
        return step.latents

    def stream(
        self,
        prompt: Prompt,
        frames: int | None = None,
        *,
        state_device: str | torch.device | None = None,
        resume: str | Path | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Iterator[Frames]:
        """Yield finished frames one by one, before later ones are sampled. They are those of a clip of any length.

        Each chunk goes through all steps before the next one begins. Of earlier frames, one momentum state per layer
        and step is kept, whatever the number of frames.

        Args:
            prompt, and the keywords of `Request`. The chunk is 8 frames by default, or fewer if 8 do not fit.
            frames: how many. With None the stream goes on until the caller stops, or until there are no more latents.
            state_device: the device on which the momentum states are kept (default: that of the model).
            resume: a file in which the states are kept after each chunk, when the next frame is asked for. If it is
                there, the stream begins with the frame after that chunk, `ResumeFile(resume).finished()`.
        Yields: uint8 (H, W, 3)
        Raises: as a call does; InputError for a file of other settings.
        """
        asked = self._request("model.stream()", prompt, frames=frames, **request)
        plan = self.plan(asked, group, stream=True, state_device=state_device)
        return Sampler(plan).frames(None if resume is None else ResumeFile(Path(resume), self.settings(plan, 8)))

    def sample(self, request: Request, group: Group | None = None) -> Iterator[Step]:
        """Run the sampler. It yields after every step; close it to cancel. Raises: as a call does."""
        return Sampler(self.plan(request, group)).steps()

    def plan(
        self,
        request: Request,
        group: Group | None = None,
        *,
        stream: bool = False,
        state_device: str | torch.device | None = None,
    ) -> SamplingPlan:
        """Plan a request for this model; see sampling/plan.py, also for the errors."""
        plan = plan_sampling(self.image_model, self.method, request, group, stream=stream, state_device=state_device)
        self.method.warn_of_idle(request.frames, request.steps, request.latents is not None)
        return plan

    def settings(self, plan: SamplingPlan, fps: Rate) -> dict[str, Any]:
        """The settings that record how a clip of this plan is made; see provenance.py."""
        controlnet = [files.digest for files in self.control_files if plan.request.control]
        return clip_settings(plan, fps, self.checkpoint, self.lora, self.embeddings, controlnet)

    def _request(self, call: str, prompt: Prompt, **options: Any) -> Request:
        """A request with the checkpoint's own defaults. If frames is not set, it is the number of latents."""
        check_keywords(call, options, CALLS)
        latents = options.get("latents")
        if options.get("frames") is None and isinstance(latents, Tensor) and latents.ndim == 4:
            options["frames"] = len(latents)
        request = Request(prompt, **self.own_settings.request_with(options) | usual(options) | options)
        if request.guidance != 0 and request.context is None:
            self.own_settings.warn_of_unknown_things(request.words)
        self.text.warn_of_unused(request.texts)
        return request

    def decode(self, latents: Tensor, chunk: int | None = None) -> Frames:
        """Scaled latents (F, c, h, w), at most `chunk` at once → frames, uint8 (F, H, W, 3).

        Raises: InputError for anything else; FloatingPointError if a pixel is NaN or infinite.
        """
        return decode(self.vae, latents, chunk).numpy()
