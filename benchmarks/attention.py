"""Time self-attention over frames alone, on each level of Stable Diffusion 1.5's UNet, against other implementations.

    python benchmarks/attention.py                     8 frames × 2 branches at 256²
    python benchmarks/attention.py --size 512 --frames 16

A level is defined by its width and its number of tokens. One self-attention is timed, from normalised hidden states to
the output projection, blend included. All implementations share random weights. Two others run in diffusers' Attention:
`listing` is the paper's second listing as it is meant (one product of the matrix U with keys, one with values), and
`processor` is the recursion on keys and values as an attention processor. With μ = 1 they are `cfa`. diffusers' own
processor is `sa`. All implementations of a kind must agree before they are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import peers
import torch
from common import add_json, bar, machine, ratio, save, sentence, spread, timed, turns
from diffusers.models.attention_processor import Attention as PeerAttention
from diffusers.models.attention_processor import AttnProcessor2_0
from sd15 import UNET
from torch import Tensor

from zs2.models.attention import Attention
from zs2.models.config import UNetConfig
from zs2.models.temporal import momentum
from zs2.system.devices import PRECISIONS
from zs2.system.progress import progress

MU = 0.98
AGREE = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}


def ways(channels: int, heads: int, frames: int, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """The compared functions, by kind and implementation. Each takes hidden states (b, n, c) and returns (b, n, c)."""
    own = Attention(channels, channels, heads).to(dtype).eval()
    peer = PeerAttention(channels, heads=heads, dim_head=channels // heads).to(dtype).eval()
    peer.load_state_dict(own.state_dict())

    def ours(kind: str) -> Callable[[Tensor], Tensor]:
        over_frames = momentum(kind, mu=MU)
        return lambda h: own(h, own.keys_values(over_frames.blend(h, frames)[0]))

    def theirs(processor: object) -> Callable[[Tensor], Tensor]:
        return lambda h: processor(peer, h)  # type: ignore[operator]

    found = {kind: ours(kind) for kind in ("sa", "cfa", "tma")}
    found["sa diffusers"] = theirs(AttnProcessor2_0())
    for kind, mu in (("cfa", 1.0), ("tma", MU)):
        found[f"{kind} processor"] = theirs(peers.MomentumProcessor(frames, mu))
        found[f"{kind} listing"] = theirs(peers.ListingProcessor(frames, mu))
    return found


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--frames", type=int, default=8)
    p.add_argument("--branches", type=int, default=2, help="guidance branches (default 2)")
    p.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--dtype", choices=PRECISIONS, default="float32")
    p.add_argument("--device", default="cpu")
    add_json(p)
    args = p.parse_args(argv)
    dtype, device, hardware = getattr(torch, args.dtype), torch.device(args.device), machine(args.device)
    torch.manual_seed(0)
    config = UNetConfig.from_json(UNET)
    print(f"one self-attention, {args.frames} frames × {args.branches} branches, {args.size}², {args.dtype}")
    print(f"{sentence(hardware)}; median of {args.rounds} (least … most)")
    figures = {}
    for level, channels in enumerate(config.block_out_channels):
        tokens = (args.size // 8 // 2**level) ** 2
        h = torch.randn(args.branches * args.frames, tokens, channels, dtype=dtype, device=device)
        compared = ways(channels, config.heads[level], args.frames, dtype)
        outputs = {name: way(h) for name, way in compared.items()}
        for name, out in outputs.items():
            want = outputs[name.split()[0]]
            if not (out - want).abs().max() <= AGREE[args.dtype] * want.abs().max():
                raise SystemExit(f"{name} and zs2 disagree at {channels} channels")
        runs: dict[str, list[float]] = {name: [] for name in compared}
        for _, name in progress(turns(list(compared), args.rounds), args.rounds * len(compared), f"level {level}"):
            runs[name].append(timed(partial(compared[name], h), device))
        print(f"\nlevel {level}: {tokens} tokens of {channels} channels, {config.heads[level]} heads")
        print(f"{'':<14} {'milliseconds':<24} {'over sa':<22} over zs2's of this kind")
        for name, times in runs.items():
            kind = name.split()[0]
            over = "" if kind == name else str(ratio(times, runs[kind]))
            print(f"{name:<14} {spread([1000 * t for t in times], 2):<24} {ratio(times, runs['sa'])!s:<22} {over}")
        print(bar("tma over sa", ratio(runs["tma"], runs["sa"]).median, 1.03, least=False))
        print(bar("cfa over sa", ratio(runs["cfa"], runs["sa"]).median, 1.0, least=False))
        figures[f"{tokens}x{channels}"] = runs
    save(args.json, hardware, frames=args.frames, size=args.size, dtype=args.dtype, seconds=figures)


if __name__ == "__main__":
    main()
