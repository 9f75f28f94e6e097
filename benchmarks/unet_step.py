"""What attention over frames costs: one UNet step of Stable Diffusion 1.5's size, each kind against `sa`.

Random weights, shared by all kinds; `sa again` is a control that shows what is noise. The kinds take turns, and a
ratio is the median over rounds of kind / sa in one round, so that a machine whose speed drifts does not decide.
The blend is also timed alone: it is all that `tma` adds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from zs2.checkpoint import without_weights
from zs2.config import ATTENTION_KINDS, DTYPES, UNetConfig
from zs2.models.attention import TransformerBlock
from zs2.models.unet import UNet
from zs2.progress import progress

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}  # all else is the default of diffusers, which is SD 1.5


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--frames", type=int, default=2)
    p.add_argument("--branches", type=int, default=2, help="guidance branches (default 2)")
    p.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--attn", nargs="+", choices=ATTENTION_KINDS, default=list(ATTENTION_KINDS), help="what to time")
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)

    torch.manual_seed(0)
    config = UNetConfig.from_json(SD15)
    with without_weights():
        unets = {kind: UNet(config, kind, 0.98).eval() for kind in ["sa", "tma", *args.attn]}
        unets["sa again"] = UNet(config, "sa", 0.98).eval()  # the control: how far two equal things are apart here
    shapes = {name: w.shape for name, w in unets["sa"].state_dict().items()}
    weights = {name: torch.randn(shape, dtype=dtype, device=device) * 0.02 for name, shape in shapes.items()}
    for unet in unets.values():
        unet.load_state_dict(weights, assign=True)
    side = args.size // 8
    x = torch.randn(args.branches * args.frames, 4, side, side, dtype=dtype, device=device)
    context = torch.randn(args.branches, 77, 768, dtype=dtype, device=device)

    def seconds(unet: UNet) -> float:
        text = unet.text_keys_values(context)
        start = time.perf_counter()
        unet(x, 500, text, frames=args.frames)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def blend_seconds(unet: UNet) -> float:
        """The momentum alone, in every self-attention of a step: what `tma` adds to `sa`."""
        total = 0.0

        def before(block: TransformerBlock, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal total
            h = torch.randn_like(inputs[0])
            start = time.perf_counter()
            block.momentum.blend(h, args.frames)
            if device.type == "cuda":
                torch.cuda.synchronize()
            total += time.perf_counter() - start

        blocks = [module for module in unet.modules() if isinstance(module, TransformerBlock)]
        handles = [block.register_forward_pre_hook(before) for block in blocks]
        seconds(unet)
        for handle in handles:
            handle.remove()
        return total

    runs: dict[str, list[float]] = {kind: [] for kind in unets}
    with torch.no_grad():
        seconds(unets["sa"])  # warm-up
        turns = [kind for i in range(args.rounds) for kind in (unets if i % 2 else reversed(list(unets)))]
        for kind in progress(turns, len(turns), "timing"):
            runs[kind].append(seconds(unets[kind]))
        blends = [blend_seconds(unets["tma"]) for _ in range(3)]

    print(
        f"UNet of SD 1.5's size, {args.frames} frames × {args.branches} branches, {args.size}², {args.dtype}, {device}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{'attn':<12} {'seconds':>8} {'min':>7} {'max':>7}   ratio to sa (min … max)")
    for kind, times in runs.items():
        ratios = [mine / base for mine, base in zip(times, runs["sa"], strict=True)]
        median = f"{statistics.median(times):>8.3f} {min(times):>7.3f} {max(times):>7.3f}"
        print(f"{kind:<12} {median}   {statistics.median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})")
    share = statistics.median(blends) / statistics.median(runs["sa"])
    print(f"the blend alone, all layers of a step: {statistics.median(blends):.4f} s, {share:.2%} of a step of sa")


if __name__ == "__main__":
    main()
