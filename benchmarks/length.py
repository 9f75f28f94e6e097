"""Measure the cost of a long clip: its memory against a short clip's, the accuracy of the plan, and the time per frame.

Every figure of memory is the peak of a process of its own, with the loading of the model (VmHWM in /proc/self/status,
so this needs Linux). `default` is the default checkpoint. `sd15` has Stable Diffusion 1.5's size, random weights in
bfloat16 and a small text tower, at 256². The two lengths are timed in turn, in chunks, after a warm-up.

    python benchmarks/length.py memory default      256 frames in chunks of 8 against 8 frames: at most 1.10 times
    python benchmarks/length.py memory sd15         32 frames in chunks of 8 against 8 frames, 2 steps
    python benchmarks/length.py speed               frames a second at 256 frames in chunks of 8, and at 8 frames
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from zs2 import ZS2, Request
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.sampling.memory import planned_memory
from zs2.system.free_memory import amount
from zs2.system.modules import assign, without_weights

PROMPT = "red apple on a sky blue background"
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}  # diffusers' other defaults are those of SD 1.5
SD_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
LENGTHS = {"default": (8, 256), "sd15": (8, 32)}
REQUESTS = {
    "default": {"steps": 2},
    "sd15": {"steps": 2, "height": 256, "width": 256},
}


def random_weights(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.randn(w.shape, dtype=dtype) * 0.02 for name, w in module.state_dict().items()}


def load(which: str) -> ZS2:
    if which == "default":
        return ZS2.from_pretrained(DEFAULT_MODEL, device="cpu")
    torch.manual_seed(0)
    small, cpu = Checkpoint(DEFAULT_MODEL), torch.device("cpu")
    text = TextConfig.from_json({**small.source.json("text_encoder"), "hidden_size": 768})
    with without_weights():
        unet = UNet(UNetConfig.from_json(SD15))
        vae, encoder = VAE(VAEConfig.from_json(SD_VAE)), TextEncoder(text, projection=False)
    for module, dtype in ((unet, torch.bfloat16), (vae, torch.bfloat16), (encoder, torch.bfloat16)):
        assign(module, random_weights(module, dtype), "random", dtype, cpu)
    return ZS2(unet, vae, PromptEncoder([(encoder, small.tokenizer())]), small.schedule())


def peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def one(which: str, frames: int, stream: bool) -> None:
    """Sample in a process of its own. Print the peak of its memory, and the planned peak."""
    model = load(which)
    request = {"frames": frames, "chunk": 8, **REQUESTS[which]}
    plan = planned_memory(model.plan(Request(PROMPT, **request), stream=stream))
    if stream:
        for _ in model.stream(PROMPT, **request):
            pass
    else:
        model(PROMPT, **request)
    print(json.dumps({"peak": peak(), "plan": plan.total}))


def memory(which: str) -> None:
    rows = {}
    for stream in (False, True):
        for frames in LENGTHS[which]:
            words = [sys.executable, __file__, "one", which, str(frames), *["--stream"] * stream]
            rows[frames, stream] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    base = rows[LENGTHS[which][0], False]["peak"]
    print(f"{which}: peak of the whole process, chunks of 8, {REQUESTS[which]}")
    for (frames, stream), row in rows.items():
        how = "streamed" if stream else ""
        print(
            f"{frames:>5} frames {how:<9}{amount(row['peak']):>12}  {row['peak'] / base:.3f} of 8 frames; "
            f"planned {amount(row['plan'])}, {row['plan'] / row['peak'] - 1:+.1%}"
        )


def speed(rounds: int) -> None:
    """Print the time per frame. A round has 256 frames in chunks and, before and after, 8 frames several times."""
    model, ratios = load("default"), []

    def seconds(frames: int) -> float:
        start = time.perf_counter()
        model.latents(PROMPT, frames=frames, chunk=8, steps=1)
        return (time.perf_counter() - start) / frames

    seconds(8)
    for _ in range(rounds):
        shorts = [seconds(8) for _ in range(8)]
        long = seconds(256)
        shorts += [seconds(8) for _ in range(8)]
        ratios.append(statistics.mean(shorts) / long)
        print(f"a frame-step: {1000 * long:.1f} ms of 256 frames, {1000 * statistics.mean(shorts):.1f} ms of 8")
    low, high = min(ratios), max(ratios)
    share = f"{statistics.median(ratios):.3f} ({low:.3f} … {high:.3f})"
    print(f"frames a second at 256 frames in chunks of 8, of those at 8: {share}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=["memory", "speed", "one"])
    p.add_argument("model", nargs="?", choices=list(LENGTHS), default="default")
    p.add_argument("frames", nargs="?", type=int, help="for `one`, which is a measurement of `memory`")
    p.add_argument("--stream", action="store_true", help="for `one`")
    p.add_argument("--rounds", type=int, default=5, help="for `speed`")
    args = p.parse_args()
    if args.what == "one":
        one(args.model, args.frames, args.stream)
    elif args.what == "memory":
        memory(args.model)
    else:
        speed(args.rounds)


if __name__ == "__main__":
    main()
