"""One training loop for all parts. It can be killed at any moment and resumed, with the same result.

No random state is kept between steps: a step draws from a generator that is seeded by the part's name and the step's
number. So a resumed run sees the same batches. (The last bits depend on the machine and on its number of threads, as
everywhere in torch.)
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weights.recipe.muon import Muon
from weights.recipe.settings import Schedule
from zs2.system.progress import progress

SAVE_EVERY, LOG_EVERY = 120, 20  # in seconds, in steps
A = TypeVar("A")
B = TypeVar("B")
Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


class OutOfTime(Exception):
    """The time of this run is over. Its state is kept."""


class Clock:
    """The time that this process may still take. limit: seconds, or None."""

    def __init__(self, limit: float | None = None) -> None:
        self.end = math.inf if limit is None else time.monotonic() + limit

    def check(self) -> None:
        """Raises: OutOfTime"""
        if time.monotonic() > self.end:
            raise OutOfTime


def numbered(name: str, stage: int) -> str:
    """The name of a stage of a training, counted from 0. The name of the first stage has no number."""
    return f"{name}-{stage + 1}" if stage else name


def generator(seed: int, name: str, number: int) -> torch.Generator:
    """The random generator of one step, or of one piece of the data, of a part."""
    digest = hashlib.sha256(f"{seed} {name} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


@contextmanager
def fast(device: torch.device) -> Iterator[None]:
    """A context in which matrices are multiplied and pictures convolved in bfloat16, where the processor is made for
    it; weights, optimizers and averages stay in float32. Elsewhere nothing changes."""
    if not (device.type == "cuda" or (device.type == "cpu" and bfloat16_cpu())):
        yield
        return
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # threads would share a cache
        if device.type == "cuda":
            yield
        else:
            with _FloatAttention():
                yield


def bfloat16_cpu() -> bool:
    """Whether this processor multiplies bfloat16 numbers (AVX-512 BF16, or AMX). Older versions of torch can't say."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported is not None and supported() for supported in asked)


class _FloatAttention(TorchFunctionMode):
    """Attention in float32 within autocast on a CPU: in bfloat16, its gradient takes three times as long (measured)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(x.float() for x in args), **(kwargs or {}))


def save(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(as_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata))
    part.replace(file)


def rate(schedule: Schedule, step: int) -> float:
    """The share of the full rate in a step, counted from 0."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    fall = schedule.steps - schedule.warmup if schedule.fall is None else schedule.fall
    done = max(0, step - schedule.steps + fall) / max(1, fall)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _optimizers(weights: Mapping[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, and if the schedule has a rate for it, Muon for the matrices between the first and the last layer."""
    ends = ("conv_in.weight", "conv_out.weight")
    inner = {key: w for key, w in weights.items() if schedule.muon and w.ndim > 1 and not key.endswith(ends)}
    held = [w for key, w in inner.items() if key.endswith((".attn2.to_q.weight", ".attn2.to_k.weight"))]
    free = [w for w in inner.values() if not any(w is other for other in held)]
    rest = [w for key, w in weights.items() if key not in inner]
    adam = torch.optim.AdamW(
        [
            {"params": [w for w in rest if w.ndim > 1], "weight_decay": schedule.decay},
            {"params": [w for w in rest if w.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=schedule.rate,
        betas=(0.9, 0.99),
        fused=all(w.device.type in ("cpu", "cuda") for w in rest),
    )
    optimizers: list[torch.optim.Optimizer] = [adam]
    low = all(w.device.type == "cpu" for w in inner.values()) and bfloat16_cpu()
    dtype = torch.bfloat16 if low else torch.float32
    optimizers += [
        Muon(some, schedule.muon, decay=decay, pieces=schedule.pieces, dtype=dtype)
        for some, decay in ((free, 0.0), (held, schedule.hold))
        if some
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def train(
    name: str, model: nn.Module, schedule: Schedule, loss: Loss, *, seed: int, folder: Path, clock: Clock | None = None
) -> float:
    """Train a model in place. If the schedule has an average, the model ends with the averaged weights.

    Args:
        loss: (number of the step, generator) → the loss of a piece of the batch, and further figures for the log. Each
            piece has a generator of its own.
        folder: the folder for `NAME.state.safetensors`, to resume from, and for `NAME.log.jsonl`.
    Returns: the seconds that the training took, over all runs.
    Raises: OutOfTime; FloatingPointError if the loss is not finite.
    """
    weights = dict(model.named_parameters())
    optimizers = _optimizers(weights, schedule)
    average = {key: w.detach().clone() for key, w in weights.items()} if schedule.average else {}
    state, log = folder / f"{name}.state.safetensors", folder / f"{name}.log.jsonl"
    start, spent = _resume(state, weights, average, optimizers)
    _keep_lines(log, start)
    begun = saved = time.monotonic()

    def keep(step: int) -> None:
        tensors: dict[str, Tensor] = {f"weights.{key}": w for key, w in weights.items()}
        tensors |= {f"average.{key}": w for key, w in average.items()}
        for key, w in weights.items():
            for optimizer in optimizers:
                kept = optimizer.state.get(w, {}).items()
                tensors |= {f"{what}.{key}": value for what, value in kept if what != "step"}
        save(state, tensors, {"step": str(step), "seconds": str(spent + time.monotonic() - begun)})

    model.train()
    sums: dict[str, float] = {}
    left = range(start, schedule.steps)
    for step in progress(left, len(left), name) if left else ():
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * rate(schedule, step)
        numbers = range(step * schedule.pieces, (step + 1) * schedule.pieces)
        figures = gradients(weights, loss, step, [generator(seed, name, number) for number in numbers])
        norm = nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if average:  # at first it follows faster, because the weights change fast
            decay = min(schedule.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
        for key, figure in (figures | {"gradient": norm}).items():
            sums[key] = sums.get(key, 0.0) + float(figure)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == schedule.steps:
            count = step % LOG_EVERY + 1
            seconds = spent + time.monotonic() - begun
            line = {"step": step + 1, "seconds": round(seconds, 1), "rate": schedule.rate * rate(schedule, step)}
            line |= {key: round(total / count, 6) for key, total in sums.items()}
            with open(log, "a", encoding="utf-8") as out:
                print(json.dumps(line), file=out)
            sums = {}
            if not math.isfinite(line["loss"]):
                raise FloatingPointError(f"{name}: the loss is {line['loss']} at step {step + 1}")
            if time.monotonic() - saved > SAVE_EVERY or step + 1 == schedule.steps:
                keep(step + 1)
                saved = time.monotonic()
            if clock is not None and time.monotonic() > clock.end:
                keep(step + 1)
                raise OutOfTime
    with torch.no_grad():
        for key, w in average.items():
            weights[key].copy_(w)
    model.eval()
    return spent + time.monotonic() - begun


def at_once(function: Callable[[A], B], items: Sequence[A], threads: int) -> list[B]:
    """What a function makes of each item. So many are made at the same time, each by its share of torch's threads.

    Threads that share each convolution instead wait for each other at each; on a busy machine that took five times as
    long.
    """
    if threads == 1:
        return [function(item) for item in items]
    each = max(1, torch.get_num_threads() // threads)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        return list(pool.map(function, items))


def gradients(
    weights: Mapping[str, nn.Parameter], loss: Loss, step: int, generators: Sequence[torch.Generator]
) -> dict[str, Tensor]:
    """Set the weights' gradients to the mean of those of the pieces of a batch, one for each generator.

    Several pieces are learnt at once on a CPU, by as many threads.

    Returns: the figures of the pieces, averaged.
    """

    def learn(source: torch.Generator) -> tuple[Sequence[Tensor | None], dict[str, Tensor]]:
        value, figures = loss(step, source)
        grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        return grads, {"loss": value.detach(), **figures}

    on_cpu = all(w.device.type == "cpu" for w in weights.values())
    pieces = at_once(learn, generators, len(generators) if on_cpu else 1)
    for i, w in enumerate(weights.values()):
        found = [part for grads, _ in pieces if (part := grads[i]) is not None]
        w.grad = torch.stack(found).sum(0) / len(pieces) if found else None
    return {key: torch.stack([figures[key].detach() for _, figures in pieces]).mean() for key in pieces[0][1]}


def _resume(
    file: Path,
    weights: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[int, float]:
    """Resume from a state, if there is one. Returns: the number of finished steps, and the seconds that they took."""
    if not file.exists():
        return 0, 0.0
    keys = {w: key for key, w in weights.items()}
    with safe_open(file, "pt") as state, torch.no_grad():
        metadata = state.metadata()
        for key, w in weights.items():
            w.copy_(state.get_tensor(f"weights.{key}"))
            if average:
                average[key].copy_(state.get_tensor(f"average.{key}"))
        for optimizer in optimizers:
            muon = isinstance(optimizer, Muon)
            for w in (w for group in optimizer.param_groups for w in group["params"]):
                moments = ("momentum",) if muon else ("exp_avg", "exp_avg_sq")
                kept = {moment: state.get_tensor(f"{moment}.{keys[w]}").to(w.device, copy=True) for moment in moments}
                step = torch.tensor(float(metadata["step"]), device=w.device)
                optimizer.state[w] = kept if muon else kept | {"step": step}
    return int(metadata["step"]), float(metadata["seconds"])


def _keep_lines(log: Path, step: int) -> None:
    """Remove the lines that were logged after the state was kept, because those steps are done again."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def batches(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `total`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
