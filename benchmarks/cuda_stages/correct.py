"""Correctness: the stored outputs of the reference libraries, the clips of the CPU, no wait, and the same again."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuda_stages.stage import Stage, error, exact_float32
from zs2 import ZS2, Request
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.sampling.decoding import decode_frames
from zs2.sampling.kept_states import TravellingStates
from zs2.sampling.sampler import Chunk, Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from helpers import CHECKPOINT, Fixture, write_xl

SAME = 1e-4  # of float32 without TF32, whatever the device
HALF = {"TF32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}  # of one network
KINDS = (("sa", 0.98), ("cfa", 0.98), ("tma", 0.98), ("tma", 0.5), ("tma-two-tap", 0.25))
Case = tuple[str, Tensor, Tensor]  # its name, what zs2 computes, and what the reference did


def networks(stage: Stage, dtype: torch.dtype) -> Iterator[Case]:
    """The fixtures of single networks, computed in a dtype."""

    def put(x: Tensor) -> Tensor:
        return x.to(stage.device, dtype if x.is_floating_point() else x.dtype)

    for name in ("unet_sd1", "unet_sd2", "unet_8_channels")[: 1 if stage.tiny else 3]:
        f = Fixture(name)
        unet = f.load(UNet(UNetConfig.from_json(f.config), "sa"), "model").to(stage.device, dtype)
        for size in ("even", "odd", "narrow"):
            x, t, context = (put(f[f"{size}/{what}"]) for what in ("x", "t", "context"))
            yield f"{name} {size}", unet(x, t, context, frames=1).prediction, f[f"{size}/out"]
    for name in ("vae", "vae_plain"):
        f = Fixture(name)
        vae = f.load(VAE(VAEConfig.from_json(f.config)), "model").to(stage.device, dtype)
        for case in ("encode even", "encode odd", "decode even", "decode odd"):
            yield f"{name} {case}", getattr(vae, case.split()[0])(put(f[f"{case}/x"])), f[f"{case}/out"]
    for name in ("text_quick_gelu", "text_gelu"):
        f = Fixture(name)
        encoder = f.load(TextEncoder(TextConfig.from_json(f.config)), "model").to(stage.device, dtype)
        yield f"{name}", encoder(put(f["out/ids"])), f["out/last"]
        yield f"{name} embed", encoder.embed(put(f["out/ids"])), f["out/embed"]
    weights, f = Fixture("unet_sd1"), Fixture("attention_tiny")
    for attn, mu in KINDS:
        unet = weights.load(UNet(UNetConfig.from_json(weights.config), attn, mu), "model").to(stage.device, dtype)
        x, context, want = put(f["x"]).unflatten(0, (2, 4)), put(f["context"]), f[f"{attn} mu={mu}/out"]
        for chunks in ((4,), (1, 3)):
            pieces, states = [], ()
            for chunk in x.split(chunks, dim=1):
                out = unet(chunk.flatten(0, 1), int(f["t"]), context, frames=chunk.shape[1], states=states)
                states = out.states
                pieces.append(out.prediction.unflatten(0, (2, -1)))
            yield f"{attn} {mu}, chunks {chunks}", torch.cat(pieces, dim=1).flatten(0, 1), want


def samplings(stage: Stage) -> Iterator[Case]:
    """The fixtures of whole samplings with the default checkpoint, in float32."""
    model = ZS2.from_pretrained(CHECKPOINT, device=stage.device, dtype="float32")
    f = Fixture("checkpoint_images")
    for number, image in enumerate(f.config["images"][: 1 if stage.tiny else None]):
        latents = model.latents(**image, frames=1)
        yield f"image {number}", latents, f[f"{number}/latents"]
    f = Fixture("checkpoint_clip")
    arguments = dict(f.config["clip"])
    momentum = model.variant(attn="tma", mu=arguments.pop("mu"))
    yield "clip", momentum.latents(**arguments, latents=f["noise"]), f["latents"]
    f = Fixture("text2video_zero")
    for number in range(1 if stage.tiny else 3):
        case = f.config["cases"][number]
        zero = model.variant(attn="cfa", noise="text2video-zero", motion=case["motion"], renoise=case["renoise"])
        yield f"text2video-zero {number}", zero.latents(**f.config["clip"], steps=case["steps"]), f[f"{number}/latents"]


@torch.no_grad()
def parity(stage: Stage) -> None:
    """All fixtures in float32, without TF32."""
    exact_float32()
    worst = 0.0
    for cases in (networks(stage, torch.float32), samplings(stage)):
        for name, got, want in cases:
            found = error(got, want)
            worst = max(worst, found)
            stage.check(name, found, SAME)
    stage.figure("largest error", worst)


@torch.no_grad()
def precision(stage: Stage) -> None:
    """The networks with TF32, in float16 and in bfloat16."""
    for name, dtype in (("TF32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        exact_float32(name != "TF32")
        found = {case: error(got, want) for case, got, want in networks(stage, dtype)}
        worst = max(found, key=lambda case: float("inf") if found[case] != found[case] else found[case])
        stage.check(f"{name}, largest error ({worst})", found[worst], HALF[name])


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the method, and of the request
    "chunks": ({}, {"chunk": 2}),
    "cfa, shared noise": ({"attn": "cfa", "noise": "shared"}, {"chunk": 2}),
    "two-tap, DPM-Solver++": ({"attn": "tma-two-tap", "noise": "progressive"}, {"chunk": 2, "sampler": "dpm++"}),
    "deep cache, guided at first": ({}, {"deep_cache": 2, "guidance_interval": (0, 0.5), "chunk": 2}),
    "travel": ({"noise": "mixed"}, {"prompt": ["rose", "rose", "fox face"], "guidance_interval": (0, 0.5)}),
    "text2video-zero": ({"attn": "cfa", "noise": "text2video-zero", "renoise": (0, 1)}, {"sampler": "dpm++"}),
}


def _stream(model: ZS2, state_device: str | None, **request: Any) -> tuple[Tensor, Tensor]:
    """Latents and frames of a stream."""
    plan = model.plan(Request(**request), stream=True, state_device=state_device)
    pieces = list(Sampler(plan).chunks())
    return torch.cat(pieces), torch.cat([torch.from_numpy(decode_frames(plan, piece)) for piece in pieces])


def clips(stage: Stage) -> None:
    """Whole clips against the CPU's, in float32 without TF32."""
    exact_float32()
    small = {"prompt": "rose", "frames": 3, "steps": 3, "guidance": 3.0, "height": 32, "width": 32}
    if not stage.tiny:
        small |= {"steps": 8, "height": 64, "width": 64}
    here, there = (ZS2.from_pretrained(CHECKPOINT, device=one, dtype="float32") for one in ("cpu", stage.device))
    for way, (method, options) in WAYS.items():
        latents = [model.variant(**method).latents(**small | options) for model in (there, here)]
        stage.check(way, error(*latents), SAME)
    want, frames = _stream(here, None, **small, chunk=2)
    for name, place in (("with the model", None), ("on the host", "cpu" if stage.device.type != "cpu" else None)):
        got, pictures = _stream(there, place, **small, chunk=2)
        stage.check(f"stream, states {name}", error(got, want), SAME)
        stage.check(f"stream, states {name}, levels of a pixel", float((pictures.int() - frames.int()).abs().max()), 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_xl(Path(scratch), Fixture("xl"))
        latents = [
            ZS2.from_pretrained(folder, device=one, dtype="float32").latents(**small | {"chunk": 2})
            for one in (stage.device, "cpu")
        ]
        stage.check("XL", error(*latents), SAME)


STEPS: tuple[dict[str, Any], ...] = (
    {"steps": 3},
    {"steps": 3, "guidance": 1.0},
    {"steps": 4, "sampler": "dpm++", "deep_cache": 2},
    {"steps": 6, "guidance_interval": (0.2, 0.8), "deep_cache": 3},
)


@torch.no_grad()
def waits(stage: Stage) -> None:
    """No step waits for the device, and no state that travels. torch raises where one would."""
    model = ZS2.from_pretrained(CHECKPOINT, device=stage.device, lam=0.5)
    for attn in ("tma", "cfa", "tma-two-tap", "sa"):
        for options in STEPS:
            request = Request(**({"prompt": "rose", "frames": 4, "chunk": 2} | options))
            sampler = Sampler(model.variant(attn=attn).plan(request))
            for first in (0, 2):  # the text is encoded and projected once a clip
                sampler.conditioning.frames(first, 2, request.guidance)
                sampler.conditioning.frames(first, 2, 1.0)
            x = sampler.plan.initial_noise().to(stage.device)
            chunks = [Chunk(first, x[first : first + 2]) for first in (0, 2)]
            kept = TravellingStates(request.steps, stage.device, torch.device("cpu"))
            stage.wait()
            failed = ""
            try:
                if stage.cuda:
                    torch.cuda.set_sync_debug_mode("error")
                for chunk in chunks:
                    for i in range(request.steps):
                        kept.keep(i, sampler.step(i, chunk, kept.take(i)))
            except RuntimeError as problem:
                failed = str(problem)
            finally:
                if stage.cuda:
                    torch.cuda.set_sync_debug_mode("default")
            stage.holds(f"{attn}, {options}", not failed, failed)


def seeds(stage: Stage) -> None:
    """A seed's noise is that of the CPU; twice the same clip is the same; a replay is the same file."""
    from zs2.sample import main

    here, there = (ZS2.from_pretrained(CHECKPOINT, device=one) for one in ("cpu", stage.device))
    request = Request("rose", frames=3, steps=3, seed=7)
    noises = [torch.stack([*islice(Sampler(one.plan(request)).initial(), 3)]).cpu() for one in (here, there)]
    stage.holds("the noise of a seed", torch.equal(*noises))
    for chunk in (3, 2):
        twice = [there.latents("rose", frames=3, steps=3, seed=7, chunk=chunk).cpu() for _ in range(2)]
        stage.holds(f"twice the same, chunks of {chunk}", torch.equal(*twice))
    with tempfile.TemporaryDirectory() as scratch:
        first, again = (str(Path(scratch, name)) for name in ("first.webp", "again.webp"))
        common = ["--device", str(stage.device), "--no-sheet"]
        status = main(["rose", *common, "--frames", "3", "--steps", "3", "--out", first])
        status += main(["--replay", first, *common, "--out", again])
        same = status == 0 and Path(first).read_bytes() == Path(again).read_bytes()
        stage.holds("a replay", same, f"status {status}")
