"""Clips from the prompt to the frames, large models, the VAE's dtypes, long chunks and streams; and a cold start."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import alone, since_begun
from safetensors.torch import save_file
from sd15 import write_configuration

from cuda_stages.blends import Product
from cuda_stages.models import PROMPT, configurations, filled, half, model, shared, unet, vae
from cuda_stages.stage import Stage, error, exact_float32
from cuda_stages.steps import MU, Inputs
from zs2 import FAST, ZS2, Request
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.sampling.sampler import Sampler
from zs2.system.modules import Upload, without_weights

SCRIPT = str(Path(__file__).resolve().parents[1] / "cuda.py")


@torch.no_grad()
def clips(stage: Stage) -> None:
    """Frames a second, of Stable Diffusion 1.5's size and of XL's."""
    exact_float32(False)
    _sd15(stage)
    _vae(stage)
    _long_step(stage)
    if stage.cuda:
        torch.cuda.empty_cache()
    xl, frames = model(stage, half(stage), "xl"), 1 if stage.tiny else 4
    xl(PROMPT, frames=1, steps=1)
    seconds = stage.seconds(lambda: xl.latents(PROMPT, frames=frames, steps=4)) / 4
    stage.figure(f"xl, a step of {frames} frames", round(seconds, 3), "s")
    _streams(stage, xl, "xl")


def _sd15(stage: Stage) -> None:
    """Clips of 8 frames, in 25 steps of DDIM and as --fast, and streams."""
    one = model(stage, half(stage))
    frames, steps = (2, 2) if stage.tiny else (8, 25)
    for name, options in (("sd15", {"steps": steps}), ("sd15 fast", {**FAST, "steps": min(steps, 20)})):
        request: dict[str, Any] = {"frames": frames, **options}
        one(PROMPT, **request | {"steps": 2})
        begun = time.perf_counter()
        latents = one.latents(PROMPT, **request)
        stage.wait()
        sampled = time.perf_counter()
        one.decode(latents)
        ended = time.perf_counter()
        stage.figure(f"{name}, {frames} frames, {options['steps']} steps", round(ended - begun, 3), "s")
        stage.figure(f"{name}, decoding", round(ended - sampled, 3), "s")
        stage.figure(f"{name}, frames a second", round(frames / (ended - begun), 3))
    _streams(stage, one, "sd15")


def _vae(stage: Stage) -> None:
    """Decoding in each dtype; float32 also without TF32."""
    z = torch.randn(2 if stage.tiny else 8, 4, *(2 * (8 if stage.tiny else 64,)), device=stage.device)
    ways = {"float32, TF32": (torch.float32, False), "float32": (torch.float32, True)}
    if stage.device.type != "cpu":
        ways |= {"bfloat16": (torch.bfloat16, True), "float16": (torch.float16, True)}
    want = None
    for name, (dtype, exact) in ways.items():
        exact_float32(exact)
        one = vae(stage, dtype)
        pixels = torch.cat([one.decode(piece) for piece in z.split(1)])
        seconds = statistics.median(
            stage.seconds(lambda one=one: [one.decode(p) for p in z.split(1)]) for _ in range(3)
        )
        stage.figure(f"VAE, {name}, {len(z)} frames", round(seconds * 1e3, 1), "ms")
        want = pixels if name == "float32" else want
        if want is not None:
            stage.figure(f"VAE, {name}, error", error(pixels, want))
    exact_float32(False)


def _long_step(stage: Stage) -> None:
    """A step of 64 frames at once: the recursion has an operator a frame and layer."""
    dtype, frames = half(stage), 4 if stage.tiny else 64
    sa = unet(stage, dtype)
    inputs = Inputs(stage, sa, dtype, frames)
    others = {"tma": momentum("tma", mu=MU), "tma by a product": Product(MU)}
    ways = {"sa": inputs.step(sa)} | {name: inputs.step(shared(sa, one)) for name, one in others.items()}
    stage.report(stage.in_turns(ways, 8, rounds=5), f"{frames} frames", "sa")


def _streams(stage: Stage, one: ZS2, name: str) -> None:
    """A stream with its states on the device, and on the host: the same frames, and at what cost."""
    chunk = 2 if stage.tiny else 8 if name == "sd15" else 2
    request = Request(PROMPT, frames=3 * chunk, chunk=chunk, steps=2 if stage.tiny else 6)
    found = {}
    for where in (None, *["cpu"] * (stage.device.type != "cpu")):
        plan = one.plan(request, stream=True, state_device=where)
        pieces: list[torch.Tensor] = []
        seconds = stage.seconds(lambda plan=plan, pieces=pieces: pieces.extend(Sampler(plan).chunks()))
        found[where] = torch.cat(pieces)
        stage.figure(f"{name}, a stream, states {'here' if where is None else 'on the host'}", round(seconds, 3), "s")
    if "cpu" in found:
        stage.holds(f"{name}, the same stream", torch.equal(found[None], found["cpu"]))


def start(stage: Stage) -> None:
    """A cold start from memory: from a new process to the first step, and the loading alone."""
    memory = Path("/dev/shm")
    room = memory.is_dir() and shutil.disk_usage(memory).free > 6e9
    stage.figure("weights are", "in memory" if room else "on the disk")
    with tempfile.TemporaryDirectory(dir=memory if room else None) as scratch:
        folder = Path(scratch, "folder")
        size = _write(stage, folder)
        stage.figure("weights", round(size / 1e9, 2), "GB")
        for who in ("zs2", "diffusers"):
            times = []
            for _ in range(1 if stage.tiny else 3):
                if stage.left < 8:
                    break
                try:
                    times.append(alone(SCRIPT, "--call", "clips:first_step", who, str(folder), str(stage.device)))
                except SystemExit as problem:
                    stage.figure(f"{who}, a start", str(problem).splitlines()[-1][:120])
                    break
            if times:
                stage.figure(f"{who}, to the first step", round(min(times), 2), "s")
        stage.figure("loading", round(_loading(stage, folder), 3), "s")
        if stage.device.type not in ("cpu", "mps"):
            plain = Upload.__call__
            Upload.__call__ = lambda self, tensor: tensor  # type: ignore[method-assign]
            stage.figure("loading, plain copies, converted on the host", round(_loading(stage, folder), 3), "s")
            Upload.__call__ = plain  # type: ignore[method-assign]
            stage.figure("loading again", round(_loading(stage, folder), 3), "s")


def _loading(stage: Stage, folder: Path) -> float:
    return stage.seconds(lambda: ZS2.from_pretrained(folder, device=stage.device))


def _write(stage: Stage, folder: Path) -> int:
    """A model of Stable Diffusion 1.5's size in float16. Returns: its bytes."""
    parts = configurations(stage)
    write_configuration(folder, parts)
    with without_weights():
        modules: dict[str, torch.nn.Module] = {
            "unet": UNet(UNetConfig.from_json(parts["unet"])),
            "vae": VAE(VAEConfig.from_json(parts["vae"])),
            "text_encoder": TextEncoder(TextConfig.from_json(parts["text_encoder"]), projection=False),
        }
    total = 0
    for part, module in modules.items():
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        file = folder / part / f"{name}.safetensors"
        weights = filled(module, stage.device, torch.float16).state_dict()
        save_file({name: weight.cpu() for name, weight in weights.items()}, file, {"format": "pt"})
        total += file.stat().st_size
    return total


def first_step(who: str, folder: str, device: str) -> None:
    """In a new process: print the seconds since its start when the UNet is first called, and end."""

    def finish(*_: object) -> None:
        print(json.dumps(since_begun()), flush=True)
        os._exit(0)

    if who == "zs2":
        loaded: Any = ZS2.from_pretrained(folder, device=device)
        loaded.unet.register_forward_pre_hook(finish)
        loaded.latents(PROMPT, frames=1, steps=1)
    else:
        from diffusers import StableDiffusionPipeline

        dtype = torch.float32 if device == "cpu" else torch.float16
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None).to(device)
        pipe.unet.register_forward_pre_hook(finish)
        pipe(PROMPT, num_inference_steps=1)
