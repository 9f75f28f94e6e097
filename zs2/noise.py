"""The noise models: how the initial noises of the frames of a clip depend on each other.

Every model yields εⁱ for i = 0, 1, 2, …; each εⁱ alone is N(0, I), and ε⁰ is the noise that diffusers draws for a seed.

    iid          εⁱ independent
    shared       εⁱ = ε⁰
    mixed        εⁱ = (a·s + zⁱ) / √(1+a²), one s for all frames      (PYoCo, arXiv 2305.10474; a = 1)
    progressive  εⁱ = (a·εⁱ⁻¹ + zⁱ) / √(1+a²)                         (PYoCo; a = 2)
    dnm          εⁱ = ρ·εⁱ⁻¹ + √(1−ρ²)·zⁱ,  ρ = 1 − λ/√e              (ZS², arXiv 2407.21475; λ = 0.01)
    dnm-search   εⁱ = √α·εⁱ⁻¹ + √(1−α)·z, z and α searched so that the divergence of the two noises is nearest λ

ZS² measures how far a frame's noise is from the one before by D = mean[exp(εⁱ⁻¹)·(εⁱ⁻¹ − εⁱ)] and searches for noise of
a given D = λ. Since E[exp(p)·p] = √e for p ~ N(0, 1), E[D] = √e·(1 − ρ): `dnm` is what the search looks for, in closed
form, an AR(1) process with corr(εⁱ, εʲ) = ρ^|i−j|. λ runs from 0 (one noise) to √e (independent noises).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zs2.errors import InputError, choose, whole
from zs2.models.config import ALPHA as ALPHA
from zs2.models.config import LAM_MAX as LAM_MAX
from zs2.models.config import NOISE_KINDS, SEED_MAX
from zs2.models.config import uses_lam as uses_lam

Draw = Callable[[], Tensor]  # standard normal noise of one frame, from that frame's own stream


def ar1(first: Tensor, draws: Iterator[Draw], rho: float) -> Iterator[Tensor]:
    """`dnm`, and `progressive` with ρ = a/√(1+a²): a first-order autoregression over frames."""
    noise = first
    while True:
        yield noise
        noise = rho * noise + math.sqrt(1 - rho**2) * next(draws)()


def mixed(first: Tensor, draws: Iterator[Draw], w: Tensor, a: float) -> Iterator[Tensor]:
    """One noise in all frames: s = (a·ε⁰ + w)/√(1+a²) has the joint law of PYoCo's and leaves ε⁰ as it is."""
    yield first
    shared = (a * first + w) / math.sqrt(1 + a**2)
    while True:
        yield (a * shared + next(draws)()) / math.sqrt(1 + a**2)


def divergence(previous: Tensor, noise: Tensor) -> float:
    """The paper's D: `kl_div(noise, previous, log_target=True)` of raw samples, averaged over all elements."""
    return (previous.exp() * (previous - noise)).mean().item()


def search(first: Tensor, draws: Iterator[Draw], lam: float) -> Iterator[Tensor]:
    """`dnm-search`: the published listing, in float32 as it would run, with the α it ends at kept in [0, 1].

    An α outside [0, 1] has no noise, so its error counts as grown (as printed, the listing returns NaN there).
    """
    noise = first
    while True:
        yield noise
        draw, previous = next(draws), noise
        tries = [draw() for _ in range(10)]
        errors = [abs(divergence(previous, z) - lam) for z in tries]
        bound = min(errors)
        z = tries[errors.index(bound)]
        alpha, step = torch.tensor(0.1), 0.1
        for _ in range(15):
            error = abs(divergence(previous, alpha.sqrt() * previous + (1 - alpha).sqrt() * z) - lam)
            if error <= bound:
                alpha, bound = alpha + step, error
            else:
                alpha, step = alpha - 0.8 * step, 0.2 * step
        alpha = alpha.clamp(0, 1)
        noise = alpha.sqrt() * previous + (1 - alpha).sqrt() * z


def check(kind: str, lam: float, alpha: float | None = None) -> None:
    """Raise InputError for an unknown kind, a λ outside [0, √e], or an a outside [0, 10⁶]."""
    choose("noise model", kind, NOISE_KINDS)
    if not isinstance(lam, int | float) or not 0 <= lam <= LAM_MAX:
        raise InputError(
            f"lam is {lam}: expected a number from 0 (one noise) to √e = {LAM_MAX:.4f} (independent noises)"
        )
    if alpha is not None and not 0.0 <= alpha <= 1e6:
        raise InputError(f"alpha is {alpha}: expected a number from 0 (independent noises) to 1e6 (as good as one)")


def noises(
    kind: str, shape: tuple[int, ...], seed: int, *, lam: float = 0.01, alpha: float | None = None
) -> Iterator[Tensor]:
    """The initial noises of the frames of a clip, without end; frame k is the same however many are taken.

    Args:
        kind: one of those above. shape: of one frame, (c, h, w). seed: from 0 to 2³²−1.
        lam: λ, for `dnm` and `dnm-search`. alpha: a of `mixed` (default 1) and `progressive` (default 2).
    Yields: float32 tensors on the CPU, shaped as asked.
    Raises: InputError as `check` and `stream` say.
    """
    check(kind, lam, alpha)
    a = ALPHA.get(kind, 0.0) if alpha is None else alpha
    first = stream(seed, 0, shape)()
    draws = (stream(seed, i, shape) for i in itertools.count(1))
    if kind == "iid":
        return itertools.chain([first], (draw() for draw in draws))
    if kind == "shared":
        return itertools.repeat(first)
    if kind == "mixed":
        return mixed(first, draws, stream(seed, -1, shape)(), a)
    if kind == "progressive":
        return ar1(first, draws, a / math.sqrt(1 + a**2))
    if kind == "dnm":
        return ar1(first, draws, 1 - lam / LAM_MAX)
    return search(first, draws, lam)


def stream(seed: int, index: int, shape: tuple[int, ...]) -> Draw:
    """The standard normal stream of a frame: on the CPU, in float32, whatever the model's device and dtype.

    Frame 0's generator has the clip's seed; frame i's has `stream_seed(seed, i)`; index −1 is what all frames share.
    Raises: InputError for a seed outside 0 … 2³²−1.
    """
    generator = torch.Generator("cpu").manual_seed(stream_seed(whole("seed", seed, 0, SEED_MAX), index))
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float32)


def stream_seed(seed: int, index: int) -> int:
    """The seed of a frame's stream. Never to be changed: every clip depends on it.

    With mix = MurmurHash3's 32-bit finaliser, a bijection: mix(index·0x9E3779B9 + mix(seed xor 0x5A532200)) mod 2³².
    For one seed the map is one to one: no two frames after the first share a stream. Frame 0 keeps the seed itself; the
    chance that another frame has it too is 2⁻³² a frame.
    """
    return seed if index == 0 else _mix((index * 0x9E3779B9 + _mix(seed ^ 0x5A532200)) % 2**32)


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)
