"""The efficiency of several processes that make one clip: measured for 1 and 2, predicted up to 64.

Each of P processes has n frames of a chunk. So P processes make P·n frames in the time in which one makes n, plus the
time of their exchange. A step of one process takes n·t, where t is the time of a frame. Every process sends a state of
S_l bytes in each of the L self-attentions, and its latents, n·Z bytes, after the step. They exchange these by a ring,
in P − 1 rounds one after another, over a link with B bytes per second and a latency a:

    T(P) = n·t + n·r + (P − 1)·((Σ S_l + n·Z) / B + (L + 1)·a)          for P > 1, T(1) = n·t
    efficiency E(P) = T(1) / T(P)

where r is the time of a second pass of the recursion over a frame, which only several processes need. One process
measures t and r here, S_l and Z are counted, and B and a are options. The prediction ignores that processes differ in
speed and wait for each other. The processes of the measurement share this machine's cores, with one thread each.

    python benchmarks/scaling.py                                 the default checkpoint
    python benchmarks/scaling.py --size 512 --link 3 --latency 50
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time

import torch

from zs2 import ZS2, Request
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.cli.torchrun import joined
from zs2.sampling.memory import blocks, state_bytes

PROMPT = "red apple on a sky blue background"


def seconds(model: ZS2, args: argparse.Namespace, group: object = None, processes: int = 1) -> list[float]:
    """The seconds of each step except the first, which warms up."""
    request = Request(
        PROMPT,
        frames=args.frames * processes,
        chunk=args.frames,
        steps=args.steps + 1,
        height=args.size,
        width=args.size,
    )
    marks = [time.perf_counter() for _ in model.sample(request, group)]
    return [last - first for first, last in itertools.pairwise(marks)]


def recursion(model: ZS2, args: argparse.Namespace, latent: tuple[int, int]) -> float:
    """The seconds of the second pass over n frames, in all self-attentions of a step."""
    total, momentum = 0.0, model.unet.momentum
    for channels, tokens in blocks(model.unet.config, latent):
        h = torch.randn(2 * args.frames, tokens, channels)
        momentum.share(h, args.frames, None, first=False)
        start = time.perf_counter()
        momentum.share(h, args.frames, None, first=False)
        total += time.perf_counter() - start
    return total


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--frames", type=int, default=8, help="frames of a chunk per process (default 8)")
    p.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    p.add_argument("--steps", type=int, default=5, help="number of measured steps (default 5)")
    p.add_argument("--link", type=float, default=12.5, help="gigabytes per second (default 12.5: 100 Gbit/s)")
    p.add_argument("--latency", type=float, default=20, help="microseconds (default 20)")
    args = p.parse_args()
    torch.set_num_threads(1)
    model = ZS2.from_pretrained(DEFAULT_MODEL, device="cpu")

    if "RANK" in os.environ:
        with joined("cpu") as group:
            times = seconds(model, args, group, group.size)
        if group.rank == 0:
            print(*times)
        return

    side = args.size // model.vae.config.reduction
    config, momentum = model.unet.config, model.unet.momentum
    states, layers = state_bytes(config, momentum, (side, side), 2, 4), len(blocks(config, (side, side)))
    latents = args.frames * model.vae.config.latent_channels * side * side * 4
    ones, two = seconds(model, args), [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*two, "--nproc-per-node", "2", __file__, *sys.argv[1:]]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    twos = [*map(float, subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.split())]
    ones += seconds(model, args)  # before and after, on a machine whose speed drifts
    one, again = statistics.median(ones), recursion(model, args, (side, side))

    print(f"a step of {args.frames} frames at {args.size}², guidance, one thread each:")
    print(f"  1 process    {one:.3f} s ({min(ones):.3f} … {max(ones):.3f}); the recursion once more: {again:.4f} s")
    print(
        f"  2 processes  {statistics.median(twos):.3f} s ({min(twos):.3f} … {max(twos):.3f}), {2 * args.frames} frames"
    )
    print(f"  measured efficiency of 2: {one / statistics.median(twos):.3f}")
    print(f"sent by a process: {states / 1e6:.2f} MB of states in {layers} layers, {latents / 1e6:.2f} MB of latents")
    print(f"predicted, at {args.link:g} GB/s and {args.latency:g} µs:")
    for processes in (1, 2, 4, 8, 16, 32, 64):
        exchange = (states + latents) / (args.link * 1e9) + (layers + 1) * args.latency * 1e-6
        total = one + (processes > 1) * again + (processes - 1) * exchange
        print(f"  {processes:>2} processes  {one / total:.3f}")


if __name__ == "__main__":
    main()
