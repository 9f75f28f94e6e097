"""Measure ideas for a faster UNet step that were tried: what they save, or the most that they could save.

    python benchmarks/tried.py                         all: the default UNet, one of SD 1.5's size (256²), the next
    python benchmarks/tried.py --models towers         memory, if the text tower is dropped when the text is encoded
    python benchmarks/tried.py --models sd15 --dtype bfloat16

Whole steps of each variant take turns with steps whose weights are contiguous. A ratio is the median over rounds.
`contiguous again` shows how far apart two equal variants are. (zs2 lays out the weights that it converts channels-last,
and leaves mapped ones as they are.) In `no products`, the convolutions of small pictures are convolutions like all
others. In `packed`, the convolutions that are no products have their weights in the layout that oneDNN computes in, by
a private operator of torch. `GEGLU in one` computes both halves by one product.

Parts that could be computed once per clip, or merged with their neighbours, are timed alone. That would save at most
their share of a step. The text tower is dropped at the first call of the UNet. This is measured in a process of its own
that makes a clip of SD 1.5's size.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import add_json, alone, highest_resident_size, machine, ratio, save, sentence, spread, timed, turns
from sd15 import UNET, weights, write_model
from torch import Tensor, nn
from torch.nn import functional as F

from zs2 import ZS2, Request
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.models.config import UNetConfig
from zs2.models.layers import GEGLU, Conv2d, ResnetBlock
from zs2.models.unet import UNet
from zs2.system.devices import PRECISIONS
from zs2.system.modules import without_weights
from zs2.system.progress import progress

CPU = torch.device("cpu")
WHICH = ("default", "sd15", "towers")
Step = Callable[[], Tensor]


class InPlace(ResnetBlock):
    """SiLU in the memory of its input."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class InOne(GEGLU):
    """Compute both halves by one product, and split each row of the result."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class Plain(Conv2d):
    """Never a product of matrices."""

    forward = nn.Conv2d.forward


class Packed(Conv2d):
    """If it is no product, use a weight in oneDNN's own layout, which is computed at the first call."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        how = [list(self.padding), list(self.stride), list(self.dilation), self.groups]
        if not hasattr(self, "laid"):
            self.laid = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.laid, bias, *how, "none", [], "")


def load(which: str, dtype: torch.dtype) -> UNet:
    """The UNet of the default checkpoint, or one of Stable Diffusion 1.5's size with random weights."""
    if which == "default":
        return Checkpoint(Path(__file__).resolve().parent.parent / DEFAULT_MODEL, dtype).unet("tma", 0.98)
    with without_weights():
        unet = UNet(UNetConfig.from_json(UNET), "tma", 0.98).eval()
    unet.load_state_dict(weights(unet, dtype), assign=True)
    return unet


def changed(unet: UNet, before: type[nn.Module], after: type[nn.Module]) -> UNet:
    """A UNet on the same weights, with modules of one class replaced by those of another."""
    other = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    for module in other.modules():
        if type(module) is before:
            module.__class__ = after
    return other


def parts_of(unet: UNet, step: Step, rounds: int) -> dict[str, float]:
    """The seconds of parts of a step. Each part is timed alone, on its inputs in the step. Medians over steps."""
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
def compare(which: str, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Print the table of a UNet, and return its figures."""
    small = which == "default"  # its steps are short, so there are more rounds
    unet, frames, side, rounds = (load(which, dtype), *((8, 8, 5 * rounds) if small else (2, 32, rounds)))
    unet.to(memory_format=torch.contiguous_format)
    x, t = torch.randn(2 * frames, unet.config.in_channels, side, side, dtype=dtype), torch.tensor(500)
    text = unet.text_keys_values(0.1 * torch.randn(2, 77, unet.config.cross_attention_dim, dtype=dtype))
    last = copy.deepcopy(unet).to(memory_format=torch.channels_last)

    def step(net: UNet) -> Step:
        return lambda: net(x, t, text, frames=frames).prediction

    steps = {"contiguous": step(unet), "contiguous again": step(unet)}
    steps |= {"SiLU in place": step(changed(unet, ResnetBlock, InPlace))}
    steps |= {"GEGLU in one": step(changed(unet, GEGLU, InOne)), "channels last": step(last)}
    steps |= {"channels last, no products": step(changed(last, Conv2d, Plain))}
    steps |= {"channels last, packed": step(changed(last, Conv2d, Packed))}
    outs = [way() for way in steps.values()]  # this also warms up
    if dtype == torch.float32 or not small:  # by the rounding of half precision, the default one makes another picture
        limit = (1e-3 if dtype == torch.float32 else 0.05) * outs[0].abs().max()
        assert all((out - outs[0]).abs().max() <= limit for out in outs)
    runs: dict[str, list[float]] = {way: [] for way in steps}
    for _, way in progress(turns(list(steps), rounds), rounds * len(steps), f"timing {which}"):
        runs[way].append(timed(steps[way], CPU))
    parts = parts_of(unet, steps["contiguous"], rounds)
    whole = statistics.median(runs["contiguous"])
    name = str(dtype).removeprefix("torch.")
    print(f"\n{which}: a step of {frames} frames × 2 branches, {name}, {whole:.3f} s")
    for way, times in runs.items():
        if way != "contiguous":
            print(f"{way:<36} {ratio(times, runs['contiguous'])} of a step")
    for what, seconds in parts.items():
        print(f"{what:<36} {seconds / whole:.2%} of a step")
    return {"seconds": runs, "parts": parts}


def towers(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Print the memory of a clip at SD 1.5's size, with the text tower kept or dropped. Returns: the figures."""
    runs: dict[str, list[tuple[float, float]]] = {"kept": [], "let go": []}
    with tempfile.TemporaryDirectory() as scratch:
        size = write_model(Path(scratch), single=False)
        for _, how in turns(list(runs), rounds):
            runs[how].append(tuple(alone(__file__, "--child", how, str(Path(scratch, "folder")))))
    print(f"\ntext tower, of weights of {size:.2f} GB:   most memory, GB        memory at the end, GB")
    for how, found in runs.items():
        most, end = zip(*found, strict=True)
        print(f"{how:<41} {spread(most, 2):<22} {spread(end, 2)}")
    return runs


def clip(how: str, folder: str) -> list[float]:
    """Make a clip. Returns: the highest resident size, and the resident size at the end, in GB."""
    model = ZS2.from_pretrained(folder)

    def let_go(*_: object) -> None:
        model.text.towers.clear()
        del model.text_encoder
        handle.remove()
        gc.collect()

    handle = model.unet.register_forward_pre_hook(let_go if how == "let go" else lambda *_: None)
    for step in model.sample(Request("an astronaut", frames=2, steps=2, height=64, width=64)):
        latents = step.latents
    model.decode(latents)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [highest_resident_size(), pages * os.sysconf("SC_PAGE_SIZE") / 1e9]


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--models", nargs="+", choices=WHICH, default=WHICH)
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--dtype", choices=PRECISIONS, default="float32", help="dtype of the UNets (default float32)")
    add_json(p)
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.child:
        print(json.dumps(clip(*args.child)))
        return
    hardware, dtype = machine(), getattr(torch, args.dtype)
    print(f"{sentence(hardware)}; median of {args.rounds} (default: {5 * args.rounds}; least … most)")
    found = {which: towers(3) if which == "towers" else compare(which, args.rounds, dtype) for which in args.models}
    save(args.json, hardware, models=found)


if __name__ == "__main__":
    main()
