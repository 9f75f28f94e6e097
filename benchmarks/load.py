"""From nothing to the first step: a process starts, imports, reads the weights, encodes the text, and calls the UNet.

A model of Stable Diffusion 1.5's size with random float32 weights is written once, as a folder and as a single file,
and read by zs2 and by diffusers (from_pretrained, from_single_file, with accelerate, offline), in turns, each in a
process of its own; the files are in the page cache. Seconds are from the start of the process to the call of the UNet.
Memory is the highest resident size of the process after one step at 64² pixels, when every weight has been read, less
that of a process that only imports torch; memory-mapped weights count in it.

Needs diffusers and transformers (pip install -e '.[reference]'), 8 GB of disk, and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a photograph of an astronaut riding a horse"
WAYS = ("torch", "zs2 folder", "diffusers folder", "zs2 file", "diffusers file")
BEGUN = "ZS2_BENCHMARK_BEGUN"
BAR_TIME, BAR_MEMORY = 1 / 3, 1.15


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to time (default: all)")
    p.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    ways = list(dict.fromkeys(["torch", *args.ways]))
    with tempfile.TemporaryDirectory() as scratch:
        size = write_model(Path(scratch))
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(args.rounds + 1):
            for way in ways if turn % 2 else reversed(ways):
                measured = run(way, Path(scratch))
                if turn:  # the first fills the page cache
                    runs[way].append(measured)
    report(runs, size, args.json)


def run(way: str, folder: Path) -> tuple[float, float]:
    """One process: seconds to the first step, and its highest resident size in GB."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", BEGUN: repr(time.monotonic())}
    command = [sys.executable, __file__, "--child", way, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr}")
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def child(way: str, folder: Path) -> None:
    """Go one way to the first step, through it, and say how long it took and how much memory."""
    who, _, what = way.partition(" ")
    path = folder / ("folder" if what == "folder" else "model.safetensors")
    at: list[float] = []

    def finish(*_: object) -> None:
        memory = highest_resident_size()
        seconds = (at[0] if at else time.monotonic()) - float(os.environ[BEGUN])
        print(json.dumps([seconds, memory]), flush=True)
        os._exit(0)

    if who == "torch":
        import torch  # noqa: F401

        finish()
    elif who == "zs2":
        from zs2 import ZS2, Request

        model = ZS2.from_pretrained(path, device="cpu")
        unet = model.unet
        steps = model.sample(Request(PROMPT, frames=1, steps=1, height=64, width=64))
        unet.register_forward_pre_hook(lambda *_: at.append(time.monotonic()))
        unet.register_forward_hook(finish)
        next(steps)
    else:
        from diffusers import StableDiffusionPipeline

        if what == "folder":
            pipeline = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
        else:
            given = {"config": str(folder / "folder"), "local_files_only": True, "safety_checker": None}
            pipeline = StableDiffusionPipeline.from_single_file(str(path), **given)
        pipeline.unet.register_forward_pre_hook(lambda *_: at.append(time.monotonic()))
        pipeline.unet.register_forward_hook(finish)
        pipeline(PROMPT, num_inference_steps=1, height=64, width=64)
    sys.exit("the UNet was never called")


def highest_resident_size() -> float:
    """Of this process, in GB. (getrusage would begin with that of the process that started it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


# --- the model --------------------------------------------------------------------------------------------------------

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "pad_token_id": 49407,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def write_model(scratch: Path) -> float:
    """Write a model of SD 1.5's size in both layouts. Returns: the weights' size in GB."""
    import torch
    from safetensors.torch import load_file

    from zs2.checkpoint import without_weights
    from zs2.config import TextConfig, UNetConfig, VAEConfig
    from zs2.models.clip import TextEncoder
    from zs2.models.unet import UNet
    from zs2.models.vae import VAE as VAEModel
    from zs2.tokenizer import Tokenizer

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fixtures"))
    from original import single_file, write

    folder = scratch / "folder"
    with without_weights():
        parts = {
            "unet": (UNet(UNetConfig.from_json(UNET)), UNET, "diffusion_pytorch_model"),
            "vae": (VAEModel(VAEConfig.from_json(VAE)), VAE, "diffusion_pytorch_model"),
            "text_encoder": (TextEncoder(TextConfig.from_json(TEXT), projection=False), TEXT, "model"),
        }
    written = []
    for part, (module, config, stem) in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        tensors = {name: torch.randn(w.shape) * 0.02 for name, w in module.state_dict().items()}
        written.append(folder / part / f"{stem}.safetensors")
        write(written[-1], tensors, {"format": "pt"})
        del tensors
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "tokenizer").mkdir()
    saved = json.loads(Tokenizer.of_clip().backend.to_str())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(saved["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": 77}))
    write(scratch / "model.safetensors", single_file(1, *map(load_file, written)))
    return sum(file.stat().st_size for file in written) / 1e9


# --- the table --------------------------------------------------------------------------------------------------------


def report(runs: dict[str, list[tuple[float, float]]], size: float, json_file: str | None) -> None:
    """Print the figures, zs2 beside diffusers, and whether the bars are met."""
    import torch

    base = statistics.median(memory for _, memory in runs["torch"])
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    print(f"SD 1.5's size, float32, {size:.2f} GB of weights; {machine}; median of {len(runs['torch'])} (min … max)")
    print(f"{'':<17} {'seconds to the first step':<26} {'memory above torch':<19} of the weights")
    figures = {}
    for way, measured in runs.items():
        times, above = [t for t, _ in measured], [memory - base for _, memory in measured]
        figures[way] = {"seconds": times, "memory_above_torch_gb": above}
        spread = f"{statistics.median(times):6.2f} ({min(times):.2f} … {max(times):.2f})"
        print(f"{way:<17} {spread:<26} {statistics.median(above):>6.2f} GB {statistics.median(above) / size:>20.2f}")
    for what in ("folder", "file"):
        ours, theirs = (runs.get(f"{who} {what}") for who in ("zs2", "diffusers"))
        if ours and theirs:
            ratios = [mine / other for (mine, _), (other, _) in zip(ours, theirs, strict=True)]
            share = statistics.median(ratios)
            memory = max(memory - base for _, memory in ours) / size
            print(
                f"{what}: zs2 takes {share:.2f} of diffusers' time ({min(ratios):.2f} … {max(ratios):.2f}; "
                f"bar {BAR_TIME:.2f}: {'met' if share <= BAR_TIME else 'MISSED'}), memory {memory:.2f} of the weights "
                f"(bar {BAR_MEMORY}: {'met' if memory <= BAR_MEMORY else 'MISSED'})"
            )
    if json_file:
        said = {"machine": machine, "weights_gb": size, "runs": figures}
        Path(json_file).write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
