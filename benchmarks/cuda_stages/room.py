"""Memory: the plan against what was allocated, too little of it, and two processes on one device."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cuda_stages.models import PROMPT, half, model
from cuda_stages.stage import Stage, error, exact_float32
from zs2 import ZS2, Request
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError, OutOfMemory
from zs2.sampling.decoding import decode_frames
from zs2.sampling.sampler import Sampler
from zs2.system.free_memory import free_memory

BENCHMARKS = Path(__file__).resolve().parents[1]
CHECKPOINT = BENCHMARKS.parent / DEFAULT_MODEL
NEAR = 0.15  # how far the peak may be from the plan


def memory(stage: Stage) -> None:
    """The plan against the peak of torch's allocator, in chunks and streams; then too little memory."""
    sd15 = model(stage, half(stage))
    frames = {"frames": 4, "chunk": 2} if stage.tiny else {"frames": 16, "chunk": 8}
    cases: list[tuple[str, ZS2, dict[str, Any], dict[str, Any]]] = [
        ("8 frames at once", sd15, {"frames": frames["chunk"]}, {}),
        ("chunks", sd15, frames, {}),
        ("deep cache", sd15, frames | {"deep_cache": 2, "sampler": "dpm++"}, {}),
        ("stream", sd15, frames, {"stream": True}),
        ("stream, states on the host", sd15, frames, {"stream": True, "state_device": "cpu"}),
    ]
    for name, one, request, options in cases:
        if stage.device.type == "cpu":
            options.pop("state_device", None)
        _measure(stage, name, one, Request(PROMPT, steps=3, **request), options)
    _too_little(stage, sd15)
    del sd15, cases, one
    if stage.cuda:
        torch.cuda.empty_cache()
    _measure(stage, "XL, 1 frame", model(stage, half(stage), "xl"), Request(PROMPT, steps=2, frames=1), {})


def _measure(stage: Stage, name: str, one: ZS2, request: Request, options: dict[str, Any]) -> None:
    plan = one.plan(request, **options)
    planned = plan.memory.total
    stage.figure(f"{name}, plan", round(planned / 2**20), "MiB")
    if stage.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(stage.device)
    if plan.stream:
        for latents in Sampler(plan).chunks():
            decode_frames(plan, latents)
    else:
        for step in Sampler(plan).steps():
            latents = step.latents
        decode_frames(plan, latents)
    if stage.cuda:
        peak, reserved = torch.cuda.max_memory_allocated(stage.device), torch.cuda.max_memory_reserved(stage.device)
        stage.figure(f"{name}, peak", round(peak / 2**20), "MiB")
        stage.figure(f"{name}, reserved", round(reserved / 2**20), "MiB")
        stage.check(f"{name}, peak over plan", peak / planned, 1 + NEAR)
        stage.check(f"{name}, peak over plan", peak / planned, 1 - NEAR, least=True)


def _too_little(stage: Stage, one: ZS2) -> None:
    """A chunk that can't fit is refused; one that fits by plan and fails says what to try; and the next one works."""
    if free_memory(stage.device) is None:
        return
    try:
        one.latents(PROMPT, frames=10**6, chunk=10**6, steps=1, height=1024, width=1024)
        stage.holds("too large a chunk is refused", False, "it was sampled")
    except InputError as refused:
        stage.holds("too large a chunk is refused", "would fit" in str(refused) or "fits" in str(refused), str(refused))
    if not stage.cuda:
        return
    total = torch.cuda.get_device_properties(stage.device).total_memory
    torch.cuda.empty_cache()
    limit = (torch.cuda.memory_reserved(stage.device) + 256 * 2**20) / total
    torch.cuda.set_per_process_memory_fraction(limit, stage.device)
    try:
        one.latents(PROMPT, frames=16, chunk=16, steps=1)
        stage.holds("out of memory", False, "there was enough")
    except OutOfMemory as ended:
        stage.holds("out of memory", "--chunk" in str(ended), str(ended))
    torch.cuda.set_per_process_memory_fraction(1.0, stage.device)
    torch.cuda.empty_cache()
    stage.holds("and then it goes on", bool(one.latents(PROMPT, frames=2, steps=1).isfinite().all()))


CLIP = {"frames": 7, "chunk": 3, "steps": 3, "guidance": 3.0, "height": 32, "width": 32}


def processes(stage: Stage) -> None:
    """Two processes on one device make the clip of one. By torchrun, two on one GPU are an error before they meet."""
    exact_float32()
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, file = free.getsockname()[1], Path(scratch, "latents.pt")
        free.close()
        env = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
        words = [sys.executable, str(BENCHMARKS / "cuda.py"), "--call", "room:one_of_two", str(port)]
        words += [str(stage.device), str(file)]
        both = [subprocess.Popen([*words, rank], env=env, stderr=subprocess.PIPE, text=True) for rank in "01"]
        alone = ZS2.from_pretrained(CHECKPOINT, device=stage.device, dtype="float32").latents("rose", **CLIP)
        ended = [one.communicate(timeout=max(5, stage.left)) for one in both]
        errors = "\n".join(errors for _, errors in ended if errors)[-2000:]
        stage.holds("both ended well", all(one.returncode == 0 for one in both), errors)
        if file.exists():
            stage.check("the clip of one process", error(torch.load(file), alone), 1e-4)
    if stage.cuda and torch.cuda.device_count() == 1:
        line = "-m torch.distributed.run --nproc-per-node 2 -m zs2.sample rose --steps 1 --frames 2"
        run = subprocess.run(
            [sys.executable, *line.split()], env=env, capture_output=True, text=True, timeout=max(5, stage.left)
        )
        stage.holds("torchrun refuses", "2 processes for 1 GPU(s)" in run.stderr, run.stderr[-500:])


def one_of_two(port: str, device: str, file: str, number: str) -> None:
    """One of the two processes. The first one writes the latents."""
    rank = int(number)
    import torch.distributed as dist

    from zs2.sampling.frame_parallel import Group

    exact_float32()
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = ZS2.from_pretrained(CHECKPOINT, device=device, dtype="float32")
    latents = model.latents("rose", **CLIP, group=Group(rank, 2, 2))
    if rank == 0:
        torch.save(latents.cpu(), file)
    dist.barrier()
    dist.destroy_process_group()
