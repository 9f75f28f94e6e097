"""Measure what half precision changes: clips in float16 and bfloat16, against float32 with the same prompts and seeds.

    python benchmarks/precision.py                     the default checkpoint, its closed prompts
    python benchmarks/precision.py --model sd15

Only the networks are in half precision, and the VAE only in bfloat16. Latents, schedule and momentum are in float32.
PSNR compares each clip with that in float32, in dB. A CPU without half-precision arithmetic is slow here.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from common import add_json, machine, native, psnr, run, save, sentence, spread

from zs2 import ZS2
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.own_settings import OwnSettings
from zs2.study.prompts import default_prompts
from zs2.system.devices import PRECISIONS
from zs2.system.progress import progress


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=DEFAULT_MODEL)
    p.add_argument("--prompts", type=int, default=8, metavar="N", help="first N closed prompts (default 8)")
    p.add_argument("--frames", type=int, default=4)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--guidance", type=float, default=5.0)
    p.add_argument("--lam", type=float, default=0.1)
    add_json(p)
    args = p.parse_args(argv)
    prompts = default_prompts(OwnSettings.of(args.model))
    texts = [prompt.text for prompt in prompts if prompt.set == "closed"][: args.prompts]
    request = {"frames": args.frames, "steps": args.steps, "guidance": args.guidance, "seed": 0}

    models = {dtype: ZS2.from_pretrained(args.model, dtype=dtype, lam=args.lam) for dtype in PRECISIONS}
    found: dict[str, list[float]] = {dtype: [] for dtype in PRECISIONS[1:]}
    for text in progress(texts, len(texts), "prompts"):
        full = models["float32"](text, **request).frames
        for dtype, values in found.items():
            values.append(psnr(models[dtype](text, **request).frames, full))

    device = models["float32"].device
    hardware: dict[str, Any] = machine(str(device))
    print(sentence(hardware))
    print(f"{args.model}: {len(texts)} clips of {args.frames} frames, {args.steps} steps, guidance {args.guidance:g}")
    for dtype, values in found.items():
        slow = "" if native(getattr(torch, dtype), device) else "; not this machine's own arithmetic"
        print(f"{dtype:<9} PSNR against float32: {spread(values, 1)} dB, mean {statistics.mean(values):.1f}{slow}")
    save(args.json, hardware, psnr=found)


if __name__ == "__main__":
    run(main)
