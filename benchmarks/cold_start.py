"""Time a cold start: a process starts, imports, reads the weights, encodes the text, and calls the UNet.

    python benchmarks/cold_start.py                                 the default checkpoint, and SD 1.5's size
    python benchmarks/cold_start.py --ways "zs2 default" "diffusers default"

There are two models: the default checkpoint, and one of Stable Diffusion 1.5's size with random float32 weights, which
is written once as a folder and as a single file. zs2 and diffusers (from_pretrained, from_single_file, with accelerate,
offline) read them in turn, each in a process of its own. The files are in the page cache.

Seconds are from the start of the process to the call of the UNet. Memory is the highest resident size of the process
after one step at 64² pixels, when every weight has been read, less that of a process that only imports torch. It
includes memory-mapped weights.

This needs 8 GB of disk and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import (
    add_json,
    alone,
    bar,
    highest_resident_size,
    machine,
    ratio,
    save,
    sentence,
    since_begun,
    spread,
    turns,
)

from zs2.checkpoints.hub import DEFAULT_MODEL

PROMPT = "a photograph of an astronaut riding a horse"
DEFAULT = Path(__file__).resolve().parent.parent / DEFAULT_MODEL
WAYS = (
    "torch",
    *("zs2 default", "diffusers default"),
    *("zs2 folder", "diffusers folder"),
    *("zs2 file", "diffusers file"),
)
BAR_TIME = {"default": 0.4, "folder": 1 / 3, "file": 1 / 3}
BAR_MEMORY = 1.15  # relative to the weights, at SD 1.5's size


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to time (default: all)")
    add_json(p)
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    ways = list(dict.fromkeys(["torch", *args.ways]))
    with tempfile.TemporaryDirectory() as scratch:
        size = 0.0
        if any(way.split()[-1] in ("folder", "file") for way in ways):
            from sd15 import write_model

            size = write_model(Path(scratch))
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number, way in turns(ways, args.rounds + 1):
            measured = alone(__file__, "--child", way, scratch)
            if number:  # the first round fills the page cache
                runs[way].append(measured)
    report(runs, size, args.json)


def child(way: str, scratch: Path) -> None:
    """Do the first step in one way. Print the time until its call of the UNet, and the memory after it."""
    who, _, what = way.partition(" ")
    path = {"default": DEFAULT, "folder": scratch / "folder", "file": scratch / "model.safetensors"}.get(what)
    at: list[float] = []

    def finish(*_: object) -> None:
        print(json.dumps([at[0] if at else since_begun(), highest_resident_size()]), flush=True)
        os._exit(0)

    if who == "torch":
        finish()
    elif who == "zs2":
        from zs2 import ZS2, Request

        assert path is not None
        model = ZS2.from_pretrained(path, device="cpu")
        unet = model.unet
        steps = model.sample(Request(PROMPT, frames=1, steps=1, height=64, width=64))
        unet.register_forward_pre_hook(lambda *_: at.append(since_begun()))
        unet.register_forward_hook(finish)
        next(steps)
    else:
        import torch
        from diffusers import StableDiffusionPipeline

        options = {"torch_dtype": torch.float32, "safety_checker": None}  # as in zs2, whatever the file has
        if what == "file":
            options |= {"config": str(scratch / "folder"), "local_files_only": True}
            pipeline = StableDiffusionPipeline.from_single_file(str(path), **options)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(path, **options)
        pipeline.unet.register_forward_pre_hook(lambda *_: at.append(since_begun()))
        pipeline.unet.register_forward_hook(finish)
        pipeline(PROMPT, num_inference_steps=1, height=64, width=64)
    sys.exit("the UNet was never called")


def report(runs: dict[str, list[tuple[float, float]]], size: float, file: str | None) -> None:
    """Print the figures of zs2 and diffusers, and whether they meet the bars."""
    base = min(memory for _, memory in runs["torch"])
    hardware, rounds = machine(), len(runs["torch"])
    print(f"{sentence(hardware)}; the weights of SD 1.5's size: {size:.2f} GB; median of {rounds} (least … most)")
    print(f"{'':<18} {'seconds to the first step':<26} memory above torch's, GB")
    figures = {}
    for way, measured in runs.items():
        times, above = [t for t, _ in measured], [memory - base for _, memory in measured]
        figures[way] = {"seconds": times, "memory_above_torch_gb": above}
        print(f"{way:<18} {spread(times, 2):<26} {spread(above, 2)}")
    for what, limit in BAR_TIME.items():
        ours, theirs = (figures.get(f"{who} {what}") for who in ("zs2", "diffusers"))
        if ours and theirs:
            share = ratio(ours["seconds"], theirs["seconds"])
            print(f"{what}: zs2 takes {share} of diffusers' time")
            print(bar("time", share.median, limit, least=False))
        if ours and what != "default":
            print(bar("memory over the weights", max(ours["memory_above_torch_gb"]) / size, BAR_MEMORY, least=False))
    save(file, hardware, weights_gb=size, runs=figures)


if __name__ == "__main__":
    main()
