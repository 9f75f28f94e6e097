"""Time one UNet step of Stable Diffusion 1.5's size: each kind of attention, against diffusers and against the machine.

    python benchmarks/unet_step.py                     2 frames × 2 branches at 256², float32 and bfloat16
    python benchmarks/unet_step.py --full              8 frames at 512²
    python benchmarks/unet_step.py --attn sa tma --dtype float32 --no-peers
    python benchmarks/unet_step.py --attn sa --no-peers --compile

zs2 and diffusers each load the random weights of a float32 file in their own way: in float32 as they are, in half
precision converted, by zs2 also to its own layout. The ways take turns. A ratio is the median over rounds of one way's
time over another's in the same round, so a drift in the machine's speed has no effect. `sa again` is `sa` once more,
which shows how far apart two equal ways are here.

The peers are diffusers' UNet with its own attention, and with TMA as an attention processor. Before anything is timed,
both must agree with zs2. `of GEMM` is the rate of a step's products and convolutions, over that of one large matrix
product in the same dtype and round. The blend is also timed alone: it is all that `tma` adds to `sa`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import Ratio, add_json, bar, gemm, machine, native, ratio, save, sentence, spread, timed, turns
from sd15 import UNET, weights
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zs2.method import ATTENTION_KINDS
from zs2.models.attention import TransformerBlock
from zs2.models.config import UNetConfig
from zs2.models.unet import UNet
from zs2.system.devices import PRECISIONS
from zs2.system.modules import assign, faster_layout, without_weights
from zs2.system.progress import progress

MU = 0.98
AGREE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # relative to the largest output, after a whole UNet


def flops(config: UNetConfig, x: Tensor, context: Tensor, frames: int) -> int:
    """The number of operations in the products and convolutions of a step with self-attention."""
    with without_weights():
        unet = UNet(config, "sa").to("meta")
    with FlopCounterMode(display=False) as counter:
        text = unet.text_keys_values(context.to("meta", torch.float32))
        unet(x.to("meta", torch.float32), torch.tensor(500, device="meta"), text, frames=frames)
    return counter.get_total_flops()


def blend_seconds(unet: UNet, step: Callable[[], Any], frames: int, device: torch.device) -> float:
    """The seconds of the momentum alone, in every self-attention of a step."""
    total = 0.0

    def before(block: TransformerBlock, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        h = torch.randn_like(inputs[0])
        total += timed(lambda: block.momentum.blend(h, frames), device)

    blocks = [module for module in unet.modules() if isinstance(module, TransformerBlock)]
    handles = [block.register_forward_pre_hook(before) for block in blocks]
    step()
    for handle in handles:
        handle.remove()
    return total


@torch.no_grad()
def compare(dtype_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time all ways in one dtype, print their table, and return the figures."""
    dtype, device, frames = getattr(torch, dtype_name), torch.device(args.device), args.frames
    torch.manual_seed(0)
    config = UNetConfig.from_json(UNET)
    kinds = dict.fromkeys(["sa", *args.attn])
    with without_weights():
        unets = {kind: UNet(config, kind, MU).eval() for kind in kinds}
        for way in ["sa again", *["sa compiled"] * args.compile]:
            unets[way] = UNet(config, "sa").eval()
    stored = weights(unets["sa"])
    shared = assign(unets["sa"], stored, "the UNet", dtype, device, faster_layout(dtype, device)).state_dict()
    for unet in unets.values():
        unet.load_state_dict(shared, assign=True)
    if args.compile:
        unets["sa compiled"].compile()
    side = args.size // 8
    x = torch.randn(args.branches * frames, 4, side, side, dtype=dtype, device=device)
    context = torch.randn(args.branches, 77, 768, dtype=dtype, device=device)
    text, t = unets["sa"].text_keys_values(context), torch.tensor(500, device=device)

    def own(unet: UNet) -> Callable[[], Tensor]:
        return lambda: unet(x, t, text, frames=frames).prediction

    steps = {way: own(unet) for way, unet in unets.items()}
    if args.compile:
        plain, first = steps["sa"](), timed(steps["sa compiled"], device)
        if not (steps["sa compiled"]() - plain).abs().max() <= AGREE[dtype_name] * plain.abs().max():
            raise SystemExit(f"the compiled UNet disagrees in {dtype_name}")
        print(f"{dtype_name}: compiled with the first step, in {first:.0f} s")
    if args.peers:
        import peers

        each = context.repeat_interleave(frames, dim=0)
        theirs = {name: w.to(device, dtype) for name, w in stored.items()}

        def others(unet: Any) -> Callable[[], Tensor]:
            return lambda: unet(x, t, each, return_dict=False)[0]

        for way, mu in (("diffusers sa", None), ("diffusers tma", MU)):
            if way.split()[1] in kinds:
                steps[way] = others(peers.unet(UNET, theirs, frames, mu))
    for way, step in steps.items():  # this also warms up
        out, peer = step(), steps.get(f"diffusers {way}")
        if peer is not None and not (out - peer()).abs().max() <= AGREE[dtype_name] * out.abs().max():
            raise SystemExit(f"{way}: diffusers and zs2 disagree in {dtype_name}")

    runs: dict[str, list[float]] = {way: [] for way in steps}
    rates: list[float] = []  # rates of a large product, in FLOP/s
    ways = [*steps, "GEMM"]
    for _, way in progress(turns(ways, args.rounds), args.rounds * len(ways), f"timing {dtype_name}"):
        if way in steps:
            runs[way].append(timed(steps[way], device))
        else:
            rates.append(gemm(dtype, device))
    blends = [blend_seconds(unets["tma"], steps["tma"], frames, device) for _ in range(3 * ("tma" in unets))]

    work = flops(config, x, context, frames)
    print(
        f"\n{frames} frames × {args.branches} branches, {args.size}², {dtype_name}: {work / 1e9:.0f} GFLOP a step; ",
        end="",
    )
    print(f"GEMM: {spread([rate / 1e9 for rate in rates], 0)} GFLOP/s")
    print(f"{'':<14} {'seconds':<22} {'of GEMM':<22} {'over sa':<22} over diffusers' of this kind")
    ratios: dict[str, dict[str, Ratio]] = {}
    for way, times in runs.items():
        found = {"sa": ratio(times, runs["sa"])}
        if (peer := runs.get(f"diffusers {way}")) is not None:
            found["diffusers"] = ratio(times, peer)
        share = [work / seconds / rate for seconds, rate in zip(times, rates, strict=True)]
        print(f"{way:<14} {spread(times):<22} {spread(share, 2):<22} {found['sa']!s:<22} {found.get('diffusers', '')}")
        ratios[way] = found
    if blends:
        part = statistics.median(blends) / statistics.median(runs["sa"])
        print(f"the blend alone, all layers of a step: {statistics.median(blends):.4f} s, {part:.2%} of a step of sa")
    if args.peers:
        speed = 1 / ratios["sa"]["diffusers"].median
        print(bar("speed of sa over diffusers'", speed, 0.98 if dtype_name == "float32" else 1.1, least=True))
    for kind, limit in (("tma", 1.03), ("cfa", 1.0)):
        if kind in ratios:
            print(bar(f"{kind} over sa", ratios[kind]["sa"].median, limit, least=False))
    return {"gflop": work / 1e9, "seconds": runs, "gemm_flops": rates, "blend_seconds": blends}


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--frames", type=int, help="default 2")
    p.add_argument("--branches", type=int, default=2, help="guidance branches (default 2)")
    p.add_argument("--size", type=int, help="pixels a side (default 256)")
    p.add_argument("--full", action="store_true", help="8 frames at 512²")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--attn", nargs="+", choices=ATTENTION_KINDS, default=list(ATTENTION_KINDS), help="what to time")
    p.add_argument("--dtype", nargs="+", choices=PRECISIONS, help="default: float32, and bfloat16 if the device has it")
    p.add_argument("--device", default="cpu")
    p.add_argument("--compile", action="store_true", help="also time a compiled UNet, with self-attention")
    p.add_argument("--no-peers", dest="peers", action="store_false", help="without diffusers")
    add_json(p)
    args = p.parse_args(argv)
    args.frames = args.frames or (8 if args.full else 2)
    args.size = args.size or (512 if args.full else 256)
    device, hardware = torch.device(args.device), machine(args.device)
    dtypes = args.dtype or ["float32", *["bfloat16"] * native(torch.bfloat16, device)]
    print(f"UNet of SD 1.5's size on {sentence(hardware)}; median of {args.rounds} (least … most)")
    if "bfloat16" not in dtypes and not args.dtype:
        print("bfloat16 left out: this device has no arithmetic in it (--dtype bfloat16 times it anyway)")
    save(args.json, hardware, frames=args.frames, size=args.size, dtypes={name: compare(name, args) for name in dtypes})


if __name__ == "__main__":
    main()
