"""ZS2: from a prompt to a clip. Noise (noise.py), sampling (sampler.py, models/), decoding (decode.py)."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL
import torch
from torch import Tensor

from zs2.checkpoints.checkpoint import Checkpoint, without_collector, without_weights
from zs2.checkpoints.digests import sha256
from zs2.checkpoints.lora import LoRA, lora_files, merge
from zs2.errors import InputError, whole
from zs2.method import Method
from zs2.models.config import LAM, TEXT2VIDEO_ZERO, ScheduleConfig
from zs2.models.image_model import check_parts, choose_device, choose_dtype
from zs2.models.prompt_encoder import Text
from zs2.models.temporal import Momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.noise import noises, stream
from zs2.sampling.decoding import decode
from zs2.sampling.memory import Plan, fitting, free_memory, plan
from zs2.sampling.request import Request
from zs2.sampling.sampler import SOLVERS, Sampler, Step
from zs2.system.background import beside
from zs2.version import __version__
from zs2.video.clip import FPS_MAX, Clip
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from zs2.sampling.frame_parallel import Group

STREAM_CHUNK = 8  # frames, by default: where none come before the first chunk is done, it should not be long


class ZS2:
    """An image model as a video sampler.

    `ZS2.from_pretrained(folder)` makes one; calling it with a prompt makes a clip. The parts are attributes: `unet`,
    `vae`, `text` (with `text_encoder` and `tokenizer`, the first tower's), `schedule`.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        text: Text,
        schedule: ScheduleConfig,
        *,
        method: Method | None = None,
        checkpoint: Checkpoint | None = None,
        lora: Sequence[dict[str, Any]] = (),
    ) -> None:
        check_parts(unet, vae, text)
        self.method = Method() if method is None else method
        self.unet, self.vae, self.text, self.schedule = _with_momentum(unet, self.method.momentum), vae, text, schedule
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
            method: as keywords, those of `Method`: attn, mu, noise, lam, alpha, motion, renoise.
        Raises: InputError, in one line, for anything that can't be loaded or is out of range. Warns of options that
            have no effect with the others.
        """
        chosen = Method().changed(**method)
        device, dtype = choose_device(device), choose_dtype(dtype)
        loras = lora_files(lora)
        for file, _ in loras:  # before anything is fetched
            if not file.is_file():
                raise InputError(f"no such LoRA: {str(file)!r}")
        checkpoint = Checkpoint(model, dtype, device, prediction)
        unet, text = checkpoint.unet(chosen.attn, chosen.momentum.mu), checkpoint.text()
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
        """Another setting of `Method` on the same weights, which are shared; what is not given stays as it is."""
        return ZS2(
            self.unet,
            self.vae,
            self.text,
            self.schedule,
            method=self.method.changed(**method),
            checkpoint=self.checkpoint,
            lora=self.lora,
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self.unet.conv_in.weight.dtype

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
            prompt, and as keywords those of `Request`: negative_prompt, frames, steps, guidance,
                guidance_interval, seed, height, width, chunk, sampler, deep_cache, latents (which say frames, too).
            fps: frames a second of the saved clip.
            callback: called with each finished `Step`; what it raises stops the clip.
            group: the processes that make it together: see processes.py. All call this, and all get the clip.
        Returns: a `Clip` with `frames`, uint8 (F, H, W, 3), and `settings`, which say how it was made.
        Raises: InputError for what can't be meant, or does not fit the free memory; FloatingPointError if the latents
            become NaN or infinite; OutOfMemory.
        """
        made, fps = self.planned(_request(prompt, **request), group), whole("fps", fps, 1, FPS_MAX)
        settings = beside(lambda: self.settings(made, fps, group))  # which hashes the weights, once
        frames = self.decode(_last(self.sample(made, group), callback), made.chunk, group)
        return Clip(frames, fps, settings())

    def latents(
        self,
        prompt: str | Sequence[str],
        *,
        callback: Callable[[Step], object] | None = None,
        group: Group | None = None,
        **request: Any,
    ) -> Tensor:
        """As a call, but the scaled latents before decoding: float32 (F, c, h, w) on the model's device."""
        return _last(self.sample(self.planned(_request(prompt, **request), group), group), callback)

    def sample(self, request: Request, group: Group | None = None) -> Iterator[Step]:
        """The sampler: yields after every step; close it to cancel. Where a chunk is given, it is taken to fit.

        Raises: InputError for a request that does not fit the model, or the free memory; FloatingPointError for NaN or
            infinite latents; OutOfMemory.
        """
        if request.frames is None:
            raise InputError("frames is None: expected a number (only stream goes on without end)")
        request = self.planned(request, group) if request.chunk is None else request
        return self._sampler(request, group).steps()

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
        made = _request(prompt, frames=frames, **request)
        made = self.planned(made, group, stream=True, state_device=state_device)
        return self.frames(made, group, state_device)

    @torch.no_grad()
    def frames(
        self, request: Request, group: Group | None = None, state_device: str | torch.device | None = None
    ) -> Iterator[Frames]:
        """As `stream`, of a request that was `planned`."""
        device = None if state_device is None else choose_device(state_device)
        for latents in self._sampler(request, group, device).chunks(request.frames):
            yield from self.decode(latents, request.chunk, group)

    def _sampler(self, request: Request, group: Group | None, state_device: torch.device | None = None) -> Sampler:
        return Sampler(
            self.unet,
            self.text,
            SOLVERS[request.sampler](self.schedule, request.steps),
            self.method,
            request,
            size=self.size(request)[::-1],
            noises=self.noises(request),
            renoised=self.method.noise == TEXT2VIDEO_ZERO and request.latents is None and request.frames != 1,
            group=group,
            state_device=state_device,
        )

    def plan(
        self, request: Request, chunk: int, *, stream: bool = False, state_device: str | torch.device | None = None
    ) -> Plan:
        """The memory that a request is expected to need in chunks of so many frames: see memory.py."""
        _, h, w = self.shape(request)
        return plan(
            self.unet,
            self.vae,
            self.text,
            size=(h, w),
            frames=request.frames,
            chunk=chunk,
            branches=1 if request.guidance in (0, 1) else 2,
            texts=1 if isinstance(request.prompt, str) else len(request.prompt),
            kept_states=0 if not stream else 1 if self._is_another(state_device) else request.steps,
            remembered=SOLVERS[request.sampler](self.schedule, request.steps).remembered,
            deep_cache=request.deep_cache > 1,
        )

    def planned(
        self,
        request: Request,
        group: Group | None = None,
        *,
        stream: bool = False,
        state_device: str | torch.device | None = None,
    ) -> Request:
        """The request with its chunk decided: as given, or as many frames as fit the free memory, which is said if that
        is not the whole clip; in a stream, 8. Of processes that share a clip all call this, and get the same.

        Raises: InputError, as `check` does, and for a chunk that does not fit, with one that does.
        """
        self.check(request)
        frames = request.frames if group is None or request.frames is None else -(-request.frames // group.size)
        if group is not None and request.frames is not None and request.frames < group.size:
            raise InputError(f"{group.size} processes for {request.frames} frames: expected at most one a frame")
        wanted = request.chunk or (STREAM_CHUNK if stream else frames) or STREAM_CHUNK
        wanted = wanted if frames is None else min(wanted, frames)

        def needs(chunk: int) -> Plan:
            return self.plan(request, chunk, stream=stream, state_device=state_device)

        free = free_memory(self.device, 1 if group is None else group.here)
        chunk = fitting(needs, wanted, free, asked=request.chunk is not None)
        if group is not None:  # each has measured for itself
            chunk = group.least(chunk, self.device)
        if chunk < wanted:
            warnings.warn(f"{chunk} frames at a time, as many as fit the free memory, not {wanted}", stacklevel=3)
        if request.deep_cache > 1 and self._begins_anew(request):
            warnings.warn(
                f"deep_cache {request.deep_cache} with text2video-zero in {request.steps} steps: frame 0 is only "
                "nearly the model's image, as its deep features are made once more where the other frames join",
                stacklevel=3,
            )
        if stream and state_device is not None and not self._is_another(state_device):
            warnings.warn(f"state_device {state_device} has no effect: the model is there, too", stacklevel=3)
        return request.in_chunks(chunk)

    def _begins_anew(self, request: Request) -> bool:
        """Whether text2video-zero's frames join in a step that takes over deep features."""
        _, t1 = self.method.settings(request.steps, request.latents is not None)["renoise"] or (0, request.steps - 1)
        return request.frames != 1 and (request.steps - t1 - 1) % request.deep_cache > 0

    def _is_another(self, device: str | torch.device | None) -> bool:
        """Whether a device is not the model's. Raises: InputError if it can't be used here."""
        other = self.device if device is None else choose_device(device)
        return (other.type, other.index or 0) != (self.device.type, self.device.index or 0)

    def check(self, request: Request) -> None:
        """Raise InputError if this model can't sample a request: its size, its steps or its latents."""
        SOLVERS[request.sampler](self.schedule, request.steps)
        self.shape(request)
        self.method.settings(request.steps, request.latents is not None)
        if request.latents is not None:
            self.noises(request)

    def noises(self, request: Request) -> Iterator[Tensor]:
        """The noise of each frame, float32 (c, h, w) on the CPU: without end, or as many as were given as latents. (Of
        text2video-zero's only the first counts.)

        Raises: InputError for a size that does not divide, or given latents of another shape, dtype or not finite.
        """
        shape = self.shape(request)
        if request.latents is None:
            method = self.method
            if method.noise == TEXT2VIDEO_ZERO:
                return iter([stream(request.seed, 0, shape)()])
            lam = LAM if method.lam is None else method.lam
            return noises(method.noise, shape, request.seed, lam=lam, alpha=method.alpha)
        given, want = request.latents, (request.frames, *shape)
        if given.shape != want or given.dtype != torch.float32:
            raise InputError(f"latents are {given.dtype} {tuple(given.shape)}: expected torch.float32 {want}")
        if not given.isfinite().all():
            raise InputError("latents: some are NaN or infinite")
        return iter(given.cpu())

    def initial_noise(self, request: Request) -> Tensor:
        """The noise that sampling starts from: float32 (F, c, h, w) on the CPU; with text2video-zero, frame 0's alone.

        Raises: InputError as `noises` does.
        """
        return torch.stack(list(islice(self.noises(request), request.frames)))

    def shape(self, request: Request) -> tuple[int, int, int]:
        """The shape (c, h, w) of a frame's latents. Raises: InputError for a size that does not divide."""
        reduction = self.vae.config.reduction
        h, w = self.unet.config.sample_size if request.latents is None else request.latents.shape[-2:]
        height = h * reduction if request.height is None else whole("height", request.height, reduction)
        width = w * reduction if request.width is None else whole("width", request.width, reduction)
        if height % reduction or width % reduction or not height or not width:
            raise InputError(f"size {width}x{height}: expected multiples of {reduction}, the VAE's reduction")
        return self.vae.config.latent_channels, height // reduction, width // reduction

    def size(self, request: Request) -> tuple[int, int]:
        """The width and height of a frame in pixels. Raises: InputError for a size that does not divide."""
        _, h, w = self.shape(request)
        return w * self.vae.config.reduction, h * self.vae.config.reduction

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None, group: Group | None = None) -> Frames:
        """Scaled latents (F, c, h, w) → frames, uint8 (F, H, W, 3); see decode.py.

        chunk: at most so many are decoded at once. group: processes that share the work, and all get the frames.
        Raises: FloatingPointError if a pixel is NaN or infinite.
        """
        chunk = len(latents) if chunk is None else chunk
        pieces = []
        for piece in latents.split(chunk if group is None else chunk * group.size):
            share = None if group is None else group.share(len(piece))
            mine = piece if share is None else piece[share.mine]
            frames = decode(self.vae, mine, self.vae.config.scaling_factor, chunk)
            pieces.append(frames if share is None else share.gather(frames.to(self.device)).cpu())
        return torch.cat(pieces).numpy()

    def settings(self, request: Request, fps: int, group: Group | None = None) -> dict[str, Any]:
        """All that decides a clip, for its metadata: no path, time or host; None where a setting has no effect."""
        given = request.latents
        width, height = self.size(request)
        return {
            "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
            "negative_prompt": request.negative_prompt,
            "frames": request.frames,
            "steps": request.steps,
            "sampler": request.sampler,
            "deep_cache": request.deep_cache,
            "guidance": request.guidance,
            "guidance_interval": list(request.guidance_interval),
            "seed": request.seed if given is None else None,
            "width": width,
            "height": height,
            "fps": fps,
            "chunk": request.chunk,  # and the number of processes: the last bits depend on them
            "processes": 1 if group is None else group.size,
            **self.method.settings(request.steps, given is not None),
            "latents": None if given is None else hashlib.sha256(given.cpu().numpy().tobytes()).hexdigest(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "model": None if self.checkpoint is None else self.checkpoint.name,
            "weights": None if self.checkpoint is None else self.checkpoint.digests,
            "lora": self.lora or None,
            "versions": {
                "zs2": __version__,
                "pillow": PIL.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }


def _request(prompt: str | Sequence[str], **given: Any) -> Request:
    """A request of as many frames as there are latents, where it has no other number."""
    latents = given.get("latents")
    if given.get("frames") is None and isinstance(latents, Tensor) and latents.ndim == 4:
        given["frames"] = len(latents)
    return Request(prompt, **given)


def _last(steps: Iterator[Step], callback: Callable[[Step], object] | None) -> Tensor:
    for step in steps:
        if callback is not None:
            callback(step)
    return step.latents


def _with_momentum(unet: UNet, momentum: Momentum) -> UNet:
    """The UNet with this attention over frames: itself, or another module that shares its weights."""
    if unet.momentum == momentum:
        return unet
    with without_weights():
        other = UNet(unet.config, momentum.kind, momentum.mu)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval().requires_grad_(False)
