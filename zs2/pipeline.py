"""ZS2: from a prompt to a clip. Noise (noise.py), denoising with momentum (models/, ddim.py), decoding (vae.py)."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from zs2 import __version__
from zs2.checkpoint import Checkpoint, without_collector, without_weights
from zs2.checks import check_parts, choose_device, choose_dtype
from zs2.config import LAM, TEXT2VIDEO_ZERO, ScheduleConfig
from zs2.ddim import DDIM
from zs2.errors import InputError, whole
from zs2.lora import merge
from zs2.lora import parse as parse_lora
from zs2.method import Method
from zs2.models.attention import TextKV
from zs2.models.temporal import Momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.noise import noises, stream
from zs2.request import Request
from zs2.text import Text
from zs2.text2video_zero import MOTION, after, spread
from zs2.video import FPS_MAX, Clip
from zs2.weights import sha256

PIXELS_AT_ONCE = 512 * 512  # decoded together: small frames in batches, large ones one by one


@dataclass(frozen=True)
class Step:
    """A finished step of the sampler: its index from 0, of how many, its timestep, and the latents after it.

    While text2video-zero samples frame 0 alone, in its first steps, the latents are of one frame.
    """

    index: int
    steps: int
    timestep: int
    latents: Tensor  # (F, 4, h, w), scaled, float32, on the model's device


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
        lora: str | Sequence[str | tuple[str | Path, float]] = (),
        **method: Any,
    ) -> ZS2:
        """Load a checkpoint.

        Args:
            model: a folder in the diffusers layout, a `.safetensors` file in the original layout, or a model on the
                hub: `owner/name`, `owner/name@revision`, or a short name (`python -m zs2.models`).
            device: by default cuda, mps or cpu, the first there is. dtype: of the networks; latents are float32 always.
            prediction: `epsilon` or `v`, which single files of SD 2 do not say.
            lora: one or several LoRA files to merge into the weights, each `FILE`, `FILE:SCALE`, or (file, scale).
            method: as keywords, those of `Method`: attn, mu, noise, lam, alpha, motion, renoise.
        Raises: InputError, in one line, for anything that can't be loaded or is out of range. Warns of options that
            have no effect with the others.
        """
        chosen = Method().changed(**method)
        device, dtype = choose_device(device), choose_dtype(dtype)
        entries = [lora] if isinstance(lora, str) else lora
        loras = [parse_lora(entry) if isinstance(entry, str) else (Path(entry[0]), entry[1]) for entry in entries]
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
        **request: Any,
    ) -> Clip:
        """Make a clip.

        Args:
            prompt, and as keywords those of `Request`: negative_prompt, frames, steps, guidance, seed, height, width,
                latents.
            fps: frames a second of the saved clip.
            callback: called with each finished `Step`; what it raises stops the clip.
        Returns: a `Clip` with `frames`, uint8 (F, H, W, 3), and `settings`, which say how it was made.
        Raises: InputError for what can't be meant; FloatingPointError if the latents become NaN or infinite.
        """
        made, fps = Request(prompt, **request), whole("fps", fps, 1, FPS_MAX)
        return Clip(self.decode(_last(self.sample(made), callback)), fps, self.settings(made, fps))

    def latents(
        self, prompt: str | Sequence[str], *, callback: Callable[[Step], object] | None = None, **request: Any
    ) -> Tensor:
        """As a call, but the scaled latents before decoding: float32 (F, 4, h, w) on the model's device."""
        return _last(self.sample(Request(prompt, **request)), callback)

    @torch.no_grad()
    def sample(self, request: Request) -> Iterator[Step]:
        """The sampler: yields after every step; close it to cancel.

        Raises: InputError for a request that does not fit the model; FloatingPointError for NaN or infinite latents.
        """
        ddim = DDIM(self.schedule, request.steps)
        denoise = self._denoiser(request, ddim)
        x = self.initial_noise(request).to(self.device)
        t0, t1 = after(request.steps, self.method.renoise) if len(x) < request.frames else (0, 0)
        for i, t in enumerate(ddim.timesteps):
            if len(x) < request.frames and i == request.steps - t1 - 1:
                motion = self.method.motion or MOTION
                x = spread(x, denoise, ddim, frames=request.frames, seed=request.seed, motion=motion, t0=t0, t1=t1)
            x = denoise(i, x)
            yield Step(i, request.steps, t, x)

    def _denoiser(self, request: Request, ddim: DDIM) -> Callable[[int, Tensor], Tensor]:
        """A step of all frames, or of frame 0 alone: (index, latents before) → latents after, checked."""
        text, added, branches = self.conditions(request)
        rows = text[0][0].shape[0]
        alone = [(k[:: rows // branches], v[:: rows // branches]) for k, v in text]
        added_alone = None if added is None else added[:: rows // branches]

        def denoise(i: int, x: Tensor) -> Tensor:
            whole_clip = len(x) == request.frames
            output = self.unet(
                torch.cat([x] * branches).to(self.dtype),  # (branches·F, 4, h, w)
                ddim.timesteps[i],
                text if whole_clip else alone,
                frames=len(x),
                added=added if whole_clip else added_alone,
            ).float()
            if branches == 2:
                negative, positive = output.chunk(2)
                output = negative + request.guidance * (positive - negative)
            x = ddim.step(i, x, output)
            if not x.isfinite().all():
                other = "" if self.dtype == torch.float32 else "float32, or "
                raise FloatingPointError(
                    f"the latents are NaN or infinite after step {i + 1} of {request.steps} "
                    f"(timestep {ddim.timesteps[i]}) in {self.dtype}: try {other}a smaller guidance than "
                    f"{request.guidance:g}"
                )
            return x

        return denoise

    def check(self, request: Request) -> None:
        """Raise InputError if this model can't sample a request: its size, its steps or its latents."""
        DDIM(self.schedule, request.steps)
        self.shape(request)
        self.method.settings(request.steps, request.latents is not None)
        if request.latents is not None:
            self.initial_noise(request)

    def initial_noise(self, request: Request) -> Tensor:
        """The noise that sampling starts from: float32 (F, 4, h, w) on the CPU; with text2video-zero, frame 0's alone.

        Raises: InputError for a size that does not divide, or given latents of another shape, dtype or not finite.
        """
        shape = self.shape(request)
        if request.latents is None:
            method = self.method
            if method.noise == TEXT2VIDEO_ZERO:
                return stream(request.seed, 0, shape[1:])()[None]
            lam = LAM if method.lam is None else method.lam
            drawn = noises(method.noise, shape[1:], request.seed, lam=lam, alpha=method.alpha)
            return torch.stack(list(islice(drawn, request.frames)))
        given = request.latents
        if given.shape != shape or given.dtype != torch.float32:
            raise InputError(f"latents are {given.dtype} {tuple(given.shape)}: expected torch.float32 {shape}")
        if not given.isfinite().all():
            raise InputError("latents: some are NaN or infinite")
        return given.cpu()

    def shape(self, request: Request) -> tuple[int, int, int, int]:
        """The shape (F, 4, h, w) of a request's latents. Raises: InputError for a size that does not divide."""
        reduction = self.vae.config.reduction
        h, w = self.unet.config.sample_size if request.latents is None else request.latents.shape[-2:]
        height = h * reduction if request.height is None else whole("height", request.height, reduction)
        width = w * reduction if request.width is None else whole("width", request.width, reduction)
        if height % reduction or width % reduction or not height or not width:
            raise InputError(f"size {width}x{height}: expected multiples of {reduction}, the VAE's reduction")
        return request.frames, self.vae.config.latent_channels, height // reduction, width // reduction

    @torch.no_grad()
    def conditions(self, request: Request) -> tuple[list[TextKV], Tensor | None, int]:
        """What the UNet is conditioned on, computed once a clip: the text's keys and values, a row for each branch, or
        for each branch and frame with one prompt a frame; what SDXL adds to the time embedding; the number of branches.
        """
        prompts, negatives = request.prompts, [request.negative_prompt] * len(request.prompts)
        encoded = self.text([] if request.guidance == 0 else prompts, [] if request.guidance == 1 else negatives)
        added = None
        if encoded.pooled is not None:
            _, _, h, w = self.shape(request)
            size = (h * self.vae.config.reduction, w * self.vae.config.reduction)
            added = self.unet.added_embedding(encoded.pooled, size)
        return self.unet.text_keys_values(encoded.context), added, len(encoded.context) // len(prompts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (F, 4, h, w) → frames, uint8 (F, H, W, 3). Raises: FloatingPointError if a pixel is NaN."""
        config = self.vae.config
        pixels = config.reduction**2 * latents[0, 0].numel()
        pieces = []
        for z in latents.split(max(1, PIXELS_AT_ONCE // pixels)):
            piece = self.vae.decode(z / config.scaling_factor)
            if not piece.isfinite().all():
                raise FloatingPointError("the VAE decoded NaN or infinite pixels: are these latents of this model?")
            pieces.append(((piece / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu())
        return torch.cat(pieces).permute(0, 2, 3, 1).contiguous().numpy()

    def settings(self, request: Request, fps: int) -> dict[str, Any]:
        """All that decides a clip, for its metadata: no path, time or host; None where a setting has no effect."""
        given = request.latents
        frames, _, h, w = self.shape(request)
        return {
            "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
            "negative_prompt": request.negative_prompt,
            "frames": frames,
            "steps": request.steps,
            "guidance": request.guidance,
            "seed": request.seed if given is None else None,
            "width": w * self.vae.config.reduction,
            "height": h * self.vae.config.reduction,
            "fps": fps,
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
