"""The noise models: how the initial noises of the frames of a clip depend on each other.

Every model yields εⁱ for i = 0, 1, 2, …; ε⁰ is the noise that diffusers draws for a seed, and each εⁱ alone is N(0, I).
Only those of dnm-search are so nearly, because it chooses among draws.

    iid          εⁱ independent
    shared       εⁱ = ε⁰
    mixed        εⁱ = (a·s + zⁱ) / √(1+a²), one s for all frames      (PYoCo, arXiv 2305.10474; a = 1)
    progressive  εⁱ = (a·εⁱ⁻¹ + zⁱ) / √(1+a²)                         (PYoCo; a = 2)
    dnm          εⁱ = ρ·εⁱ⁻¹ + √(1−ρ²)·zⁱ,  ρ = 1 − λ/√e              (ZS², arXiv 2407.21475; λ = 0.01)
    dnm-search   εⁱ = √α·εⁱ⁻¹ + √(1−α)·z, z and α searched so that the divergence of the two noises is nearest λ

In files of their own beside this one:

    freq         dnm with a ρ for low spatial frequencies and another for high ones      (spectrum.py)
    loop         dnm around a circle, for a clip without a seam                          (loop.py)
    freenoise    independent noises, repeated in shuffled blocks (arXiv 2310.15169)      (window.py)
    warp         one noise, carried along by a movement (after arXiv 2501.08331)         (warp.py)

ZS² measures how far a frame's noise is from the previous one by D = mean[exp(εⁱ⁻¹)·(εⁱ⁻¹ − εⁱ)], and searches for noise
with D = λ. Since E[exp(p)·p] = √e for p ~ N(0, 1), E[D] = √e·(1 − ρ). So `dnm` has in closed form what the search looks
for: it is an AR(1) process with corr(εⁱ, εʲ) = ρ^|i−j|. λ runs from 0 (one noise) to √e (independent noises).

Each model is a function here and a row of NOISE_MODELS in method.py, with its parameters and its correlation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.method import LAM_MAX, NOISE_MODELS, PARAMETERS, check_seed
from zs2.system.registry import load

Draw = Callable[[], Tensor]  # standard normal noise (c, h, w) of one frame, from that frame's own stream
Draws = Callable[[int], Draw]  # the stream of a frame by its index; −1 is a stream that all frames share


def iid(draws: Draws) -> Iterator[Tensor]:
    """Independent noises."""
    return (draws(i)() for i in itertools.count())


def shared(draws: Draws) -> Iterator[Tensor]:
    """One noise for all frames."""
    return itertools.repeat(draws(0)())


def mixed(draws: Draws, alpha: float) -> Iterator[Tensor]:
    """One noise s in all frames. s = (a·ε⁰ + w)/√(1+a²) has the joint distribution of PYoCo's, and keeps ε⁰."""
    first, w = draws(0)(), draws(-1)()
    yield first
    common = (alpha * first + w) / math.sqrt(1 + alpha**2)
    for i in itertools.count(1):
        yield (alpha * common + draws(i)()) / math.sqrt(1 + alpha**2)


def progressive(draws: Draws, alpha: float) -> Iterator[Tensor]:
    """The noise of the previous frame, mixed with new noise."""
    return ar1(draws, alpha / math.sqrt(1 + alpha**2))


def dnm(draws: Draws, lam: float) -> Iterator[Tensor]:
    """The dependency noise model in closed form."""
    return ar1(draws, 1 - lam / LAM_MAX)


def ar1(draws: Draws, rho: float) -> Iterator[Tensor]:
    """A first-order autoregression over frames: corr(εⁱ, εʲ) = ρ^|i−j|."""
    noise = draws(0)()
    for i in itertools.count(1):
        yield noise
        noise = rho * noise + math.sqrt(1 - rho**2) * draws(i)()


def divergence(previous: Tensor, noise: Tensor) -> float:
    """The paper's D: `kl_div(noise, previous, log_target=True)` of raw samples, averaged over all elements."""
    return (previous.exp() * (previous - noise)).mean().item()


def dnm_search(draws: Draws, lam: float) -> Iterator[Tensor]:
    """The published listing, in float32 as it would run. Its final α is clamped to [0, 1].

    For an α outside [0, 1] there is no noise, so its error counts as grown. (The printed listing returns NaN there.)
    """
    noise = draws(0)()
    for i in itertools.count(1):
        yield noise
        noise, _ = search(noise, draws(i), lam)


def search(previous: Tensor, draw: Draw, lam: float, tries: int = 10, steps: int = 15) -> tuple[Tensor, list[float]]:
    """The listing's search for one frame: of so many draws the nearest to λ, then so many linear steps of α.

    Returns: the noise, and the least |D − λ| so far after each draw and each step.
    """
    drawn = [draw() for _ in range(tries)]
    errors = [abs(divergence(previous, z) - lam) for z in drawn]
    bound = min(errors)
    z = drawn[errors.index(bound)]
    curve = list(itertools.accumulate(errors, min))
    alpha, step = torch.tensor(0.1), 0.1
    for _ in range(steps):
        error = abs(divergence(previous, alpha.sqrt() * previous + (1 - alpha).sqrt() * z) - lam)
        if error <= bound:
            alpha, bound = alpha + step, error
        else:
            alpha, step = alpha - 0.8 * step, 0.2 * step
        curve.append(bound)
    alpha = alpha.clamp(0, 1)
    return alpha.sqrt() * previous + (1 - alpha).sqrt() * z, curve


def noises(
    kind: str,
    shape: tuple[int, ...],
    seed: int,
    *,
    frames: int | None = None,
    first: Tensor | None = None,
    drawn: int = 0,
    **parameters: Any,
) -> Iterator[Tensor]:
    """The initial noises of the frames of a clip.

    The noise of frame k does not depend on the number of frames, if the model allows it.

    Args:
        kind: a name in NOISE_MODELS. shape: that of one frame, (c, h, w). seed: from 0 to 2³²−1.
        frames: how many there will be. None is an endless clip, which a model may refuse.
        first: the noise of frame 0, instead of the seed's. drawn: how many draws of the seed were used already.
        parameters: those of the model, such as lam. One that is absent or None has its default; others are ignored.
    Yields: float32 tensors on the CPU, of that shape, without end or as many as there are frames.
    Raises: InputError for an unknown kind, and for a parameter or a seed out of range.
    """
    model = NOISE_MODELS[kind]
    checked = {name: PARAMETERS[name].check(value) for name, value in parameters.items() if value is not None}
    values: dict[str, Any] = {name: checked.get(name, default) for name, default in model.defaults.items()}
    if model.start is not None:  # its parameters are for the sampler
        values = {}
    if model.needs_frames:
        if frames is None:
            raise InputError(f"noise {kind!r} needs the number of frames in advance: give frames")
        values["frames"] = frames
    if model.check is not None:
        load(model.check)(shape, frames, **values)
    check_seed(seed)

    def draws(index: int) -> Draw:
        draw = stream(seed, index, shape)
        if index == 0 and first is not None:
            return lambda: first
        for _ in range(drawn if index == 0 else 0):
            draw()
        return draw

    return load(model.generate)(draws, **values)


def stream(seed: int, index: int, shape: tuple[int, ...]) -> Draw:
    """The standard normal stream of a frame: on the CPU, in float32, whatever the model's device and dtype.

    The generator of frame 0 has the clip's seed, that of frame i has `stream_seed(seed, i)`. Index −1 is the stream
    that all frames share.
    Raises: InputError for a seed outside 0 … 2³²−1.
    """
    generator = torch.Generator("cpu").manual_seed(stream_seed(check_seed(seed), index))
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float32)


def stream_seed(seed: int, index: int) -> int:
    """The seed of a frame's stream. Never change this: every clip depends on it.

    With mix = MurmurHash3's 32-bit finaliser, a bijection: mix(index·0x9E3779B9 + mix(seed xor 0x5A532200)) mod 2³².
    For one seed the map is one to one, so no two frames after the first share a stream. Frame 0 keeps the seed itself.
    The chance that another frame has that seed too is 2⁻³² per frame.
    """
    return seed if index == 0 else _mix((index * 0x9E3779B9 + _mix(seed ^ 0x5A532200)) % 2**32)


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)
