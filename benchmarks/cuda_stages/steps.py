"""A UNet step of Stable Diffusion 1.5's size: 8 frames × 2 branches at 512². Whole, as a CUDA graph, and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import gemm
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from unet_step import flops

from cuda_stages.blends import HalfProduct, Product, exact
from cuda_stages.models import configurations, filled, half, shared, unet
from cuda_stages.stage import Stage, error, exact_float32
from zs2.models.config import UNetConfig
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.system.modules import without_weights

MU = 0.98
AGREE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
KERNELS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cuDNN": "CUDNN_ATTENTION", "plain": "MATH"}
Step = Callable[[], Tensor]


class Inputs:
    """What a step gets: latents, a timestep, and a text of two branches."""

    def __init__(self, stage: Stage, one: UNet, dtype: torch.dtype, frames: int) -> None:
        torch.manual_seed(1)
        side, width = one.config.sample_size[0], one.config.cross_attention_dim  # type: ignore[index]
        put = {"device": stage.device, "dtype": dtype}
        self.frames = frames
        self.x = torch.randn(2 * frames, 4, side, side, **put)
        self.context = torch.randn(2, 77, width, **put)
        self.t = torch.tensor(500, device=stage.device)
        self.text = one.text_keys_values(self.context)

    def step(self, one: UNet, states: Any = ()) -> Step:
        """A call of a UNet."""
        return lambda: one(self.x, self.t, self.text, frames=self.frames, states=states).prediction


@torch.no_grad()
def sd15(stage: Stage) -> None:
    """Kinds of attention, blends, layouts and kernels in turns; diffusers, where it is there."""
    exact_float32(False)
    for dtype in (half(stage),) if stage.tiny else (torch.bfloat16, torch.float16):
        _one_dtype(stage, dtype, stage.left / (1 if dtype != torch.bfloat16 else 2))
    _errors(stage)


def _one_dtype(stage: Stage, dtype: torch.dtype, seconds: float) -> None:
    label, frames = str(dtype).removeprefix("torch."), 2 if stage.tiny else 8
    sa = unet(stage, dtype)
    inputs = Inputs(stage, sa, dtype, frames)
    kinds: dict[str, UNet] = {"sa": sa, "sa again": sa}
    kinds |= {kind: shared(sa, momentum(kind, mu=MU)) for kind in ("cfa", "tma", "tma-two-tap")}
    kinds |= {"tma by a product": shared(sa, Product(MU)), "tma by a half product": shared(sa, HalfProduct(MU))}
    ways: dict[str, Step] = {name: inputs.step(one) for name, one in kinds.items()}
    for name in ("tma", "tma by a product"):
        states = kinds[name](inputs.x, inputs.t, inputs.text, frames=frames).states
        ways[f"{name}, a later chunk"] = inputs.step(kinds[name], states)
    want = {name: way() for name, way in ways.items()}
    stage.check(f"{label}, a product is the recursion", error(want["tma by a product"], want["tma"]), AGREE[dtype])
    for name in ("sa", "tma"):
        last = shared(unet(stage, dtype).to(memory_format=torch.channels_last), momentum(name, mu=MU))
        ways[f"{name} channels-last"] = inputs.step(last)
    ways |= dict(_kernels(stage, label, ways["sa"]))
    ways |= dict(_peers(stage, label, sa, inputs, want))
    runs = stage.in_turns(ways, seconds * 0.8)
    medians = stage.report(runs, label, "sa")
    n = 256 if stage.tiny else 8192
    shapes = [torch.empty(one.shape, device="meta") for one in (inputs.x, inputs.context)]
    rate, work = gemm(dtype, stage.device, n), flops(sa.config, *shapes, frames)
    stage.figure(f"{label}, product of {n}³", round(rate / 1e12, 2), "TFLOP/s")
    stage.figure(f"{label}, a step", round(work / 1e12, 6), "TFLOP")
    for name in ("sa", "tma", "diffusers sa"):
        if name in medians:
            stage.figure(f"{label}, {name}, share of the product's rate", round(work / medians[name] / rate, 3))
    if not stage.tiny:
        for name, limit in (("tma", 1.03), ("cfa", 1.0)):
            stage.check(f"{label}, {name} over sa", medians[name] / medians["sa"], limit)
        if "diffusers sa" in medians:
            for name in ("sa", "tma"):
                stage.check(f"{label}, {name} over diffusers'", medians[name] / medians[f"diffusers {name}"], 1.02)


def _kernels(stage: Stage, label: str, sa: Step) -> Iterator[tuple[str, Step]]:
    """`sa` with each kernel of attention forced, if it takes these tensors."""
    for name, attribute in KERNELS.items():
        backend = getattr(SDPBackend, attribute, None)
        if backend is None:
            continue

        def forced(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return sa()

        try:
            forced()
            yield f"sa, {name} kernel", forced
        except RuntimeError as problem:
            stage.figure(f"{label}, {name} kernel", str(problem).splitlines()[0][:120])


def _peers(stage: Stage, label: str, sa: UNet, inputs: Inputs, want: dict[str, Tensor]) -> Iterator[tuple[str, Step]]:
    """diffusers' UNet on the same weights, with its own attention and with TMA as a processor."""
    try:
        import peers
    except (SystemExit, ImportError) as problem:
        stage.figure(f"{label}, diffusers", f"not here: {str(problem).splitlines()[0][:80]}")
        return
    each = inputs.context.repeat_interleave(inputs.frames, dim=0)
    for kind, mu in (("sa", None), ("tma", MU)):
        one = peers.unet(configurations(stage)["unet"], sa.state_dict(), inputs.frames, mu)

        def step(one: Any = one) -> Tensor:
            return one(inputs.x, inputs.t, each, return_dict=False)[0]

        stage.check(f"{label}, {kind} is diffusers'", error(step(), want[kind]), AGREE[inputs.x.dtype])
        yield f"diffusers {kind}", step


def _errors(stage: Stage) -> None:
    """The errors of the blends against float64, of 64 frames."""
    dtype, frames = half(stage), 8 if stage.tiny else 64
    h = torch.randn(2 * frames, 64, 320, device=stage.device).to(dtype)
    state = torch.randn(2, 64, 320, device=stage.device)
    for name, blend in (
        ("recursion", momentum("tma", mu=MU)),
        ("product", Product(MU)),
        ("half product", HalfProduct(MU)),
    ):
        for chunk, start in (("first", None), ("later", state)):
            _, last = blend.blend(h, frames, start)
            found = error(last, exact(h, frames, MU, start).unflatten(0, (-1, frames))[:, -1])
            stage.figure(f"error of the state by the {name}, {chunk} chunk", found)


@torch.no_grad()
def graph(stage: Stage) -> None:
    """A CUDA graph of the call: what is left of a step when the host launches nothing."""
    exact_float32(False)
    dtype, frames = half(stage), 2 if stage.tiny else 8
    sa = unet(stage, dtype)
    for kind in ("sa", "tma"):
        one = shared(sa, momentum(kind, mu=MU))
        for count in (frames, 1):
            inputs = Inputs(stage, one, dtype, count)
            step, label = inputs.step(one), f"{kind}, {count} frame{'s' * (count > 1)}"
            if not stage.cuda:
                stage.holds(f"{label}, eager", bool(step().isfinite().all()), "graphs are for CUDA")
                continue
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(aside)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                out = step()
            captured.replay()
            stage.check(f"{label}, the graph's result", error(out, step()), AGREE[dtype])
            stage.report(stage.in_turns({"eager": step, "graph": captured.replay}, 4), label, "eager")
            del captured, out


@torch.no_grad()
def compiled(stage: Stage) -> None:
    """Compiled against not, and against diffusers compiled; and another number of frames."""
    exact_float32(False)
    dtype, frames = half(stage), 2 if stage.tiny else 8
    options = {"backend": "eager"} if stage.tiny else {}
    if stage.tiny:
        one_level = configurations(stage)["unet"] | {"block_out_channels": [32]}
        one_level |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
        with without_weights():
            sa = UNet(UNetConfig.from_json(one_level), "sa")
        sa = filled(sa, stage.device, dtype)
    else:
        sa = unet(stage, dtype)
    inputs, ways = Inputs(stage, sa, dtype, frames), {}
    for kind in ("tma",) if stage.tiny else ("sa", "tma"):
        eager, fast = (shared(sa, momentum(kind, mu=MU)) for _ in range(2))
        fast.compile(**options)
        ways[kind], ways[f"{kind} compiled"] = inputs.step(eager), inputs.step(fast)
        stage.figure(f"{kind}, seconds to compile", round(stage.seconds(ways[f"{kind} compiled"]), 1), "s")
        found = error(ways[f"{kind} compiled"](), ways[kind]())
        stage.check(f"{kind}, the compiled result", found, AGREE[dtype])
        stage.report(stage.in_turns({name: ways[name] for name in ways if name.startswith(kind)}, 5), "compiled", kind)
        if kind == "sa":
            _compiled_peer(stage, sa, inputs, ways["sa compiled"])
    later = Inputs(stage, sa, dtype, frames // 2)
    stage.figure("tma, another number of frames", round(stage.seconds(later.step(fast)), 1), "s")
    states = eager(inputs.x, inputs.t, inputs.text, frames=frames).states
    stage.figure("tma, with states", round(stage.seconds(inputs.step(fast, states)), 1), "s")


def _compiled_peer(stage: Stage, sa: UNet, inputs: Inputs, own: Step) -> None:
    """diffusers' UNet, compiled, against zs2's, compiled."""
    with contextlib.suppress(SystemExit, ImportError):
        import peers

        each = inputs.context.repeat_interleave(inputs.frames, dim=0)
        theirs = peers.unet(configurations(stage)["unet"], sa.state_dict())
        theirs.compile()

        def step() -> Tensor:
            return theirs(inputs.x, inputs.t, each, return_dict=False)[0]

        stage.figure("diffusers sa, seconds to compile", round(stage.seconds(step), 1), "s")
        runs = stage.in_turns({"sa compiled": own, "diffusers sa compiled": step}, 5)
        stage.report(runs, "compiled, peers", "diffusers sa compiled")
