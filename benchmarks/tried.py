"""What could make a UNet step faster and was tried: what it saves, or the most that it could save.

    python benchmarks/tried.py                         the default checkpoint's UNet, and one of SD 1.5's size (256²)
    python benchmarks/tried.py --models default

Whole steps in another way take turns with steps as they are: a ratio is the median over rounds. Parts that could be
computed once a clip, or merged with their neighbours, are timed alone: that saves at most their share of a step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine, ratio, save, sentence, timed, turns
from sd15 import UNET, weights
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.checkpoint import Checkpoint, without_weights
from zs2.config import DEFAULT_MODEL, UNetConfig
from zs2.models.layers import ResnetBlock
from zs2.models.unet import UNet
from zs2.progress import progress

CPU = torch.device("cpu")
Step = Callable[[], Tensor]


class InPlace(ResnetBlock):
    """SiLU in the memory of its input."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def load(which: str) -> UNet:
    """The UNet of the default checkpoint, or one of Stable Diffusion 1.5's size with random weights."""
    if which == "default":
        return Checkpoint(Path(__file__).resolve().parent.parent / DEFAULT_MODEL).unet("tma", 0.98)
    with without_weights():
        unet = UNet(UNetConfig.from_json(UNET), "tma", 0.98).eval()
    unet.load_state_dict(weights(unet, torch.float32), assign=True)
    return unet


def alone(unet: UNet, step: Step, rounds: int) -> dict[str, float]:
    """Seconds of a step that go into parts, each timed alone on what the step gives it; medians over steps."""
    found: dict[str, float] = {}

    def timing(what: str, again: Callable[[nn.Module, Any, Tensor], Any]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[what] = found.get(what, 0.0) + timed(lambda: again(module, inputs, output), CPU)

        return hook

    embedding, silu = "time embedding and its projections", "SiLU after GroupNorm"
    resnets = [module for module in unet.modules() if isinstance(module, ResnetBlock)]
    projections = [p for resnet in resnets if (p := resnet.time_emb_proj) is not None]
    handles = [
        module.register_forward_hook(timing(embedding, lambda m, i, _: m.forward(*i)))
        for module in (unet.time_embedding, *projections)
    ]
    for norm in [norm for resnet in resnets for norm in (resnet.norm1, resnet.norm2)]:
        handles.append(norm.register_forward_hook(timing(silu, lambda m, i, output: F.silu(output))))
    totals: dict[str, list[float]] = {embedding: [], silu: []}
    for _ in range(rounds):
        found.clear()
        step()
        for what, values in totals.items():
            values.append(found[what])
    for handle in handles:
        handle.remove()
    return {what: statistics.median(values) for what, values in totals.items()}


@torch.no_grad()
def compare(which: str, rounds: int) -> dict[str, Any]:
    """Print the table of a UNet, and return its figures."""
    unet, frames, side = (load(which), *((8, 8) if which == "default" else (2, 32)))
    x, t = torch.randn(2 * frames, unet.config.in_channels, side, side), torch.tensor(500)
    text = unet.text_keys_values(0.1 * torch.randn(2, 77, unet.config.cross_attention_dim))
    in_place, last = copy.deepcopy(unet, {id(p): p for p in unet.parameters()}), copy.deepcopy(unet)
    for module in in_place.modules():
        if isinstance(module, ResnetBlock):
            module.__class__ = InPlace
    last.to(memory_format=torch.channels_last)

    def step(net: UNet, layout: torch.memory_format = torch.contiguous_format) -> Step:
        return lambda: net(x.to(memory_format=layout), t, text, frames=frames)

    steps = {"as it is": step(unet), "SiLU in place": step(in_place), "channels last": step(last, torch.channels_last)}
    outs = [way() for way in steps.values()]  # which also warms up
    assert all((out - outs[0]).abs().max() <= 1e-3 * outs[0].abs().max() for out in outs)
    runs: dict[str, list[float]] = {way: [] for way in steps}
    for _, way in progress(turns(list(steps), rounds), rounds * len(steps), f"timing {which}"):
        runs[way].append(timed(steps[way], CPU))
    parts = alone(unet, steps["as it is"], rounds)
    whole = statistics.median(runs["as it is"])
    print(f"\n{which}: a step of {frames} frames × 2 branches, {whole:.3f} s")
    for way, times in runs.items():
        if way != "as it is":
            print(f"{way:<36} {ratio(times, runs['as it is'])} of a step as it is")
    for what, seconds in parts.items():
        print(f"{what:<36} {seconds / whole:.2%} of a step")
    return {"seconds": runs, "parts": parts}


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--models", nargs="+", choices=["default", "sd15"], default=["default", "sd15"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    args = p.parse_args(argv)
    said = machine()
    print(f"{sentence(said)}; median of {args.rounds} (least … most)")
    save(args.json, said, models={which: compare(which, args.rounds) for which in args.models})


if __name__ == "__main__":
    main()
