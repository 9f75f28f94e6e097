"""Text2Video-Zero's noise (Khachatryan et al. 2023, arXiv 2303.13439, section 3.3.1): frames that move by translation.

This noise needs the sampler. Frame 0 is denoised alone until timestep T' = t₁, and on to T'' = t₀ < t₁. Frame k is then

    x̃ᵏ(t₀) = shift(x⁰(t₀), k·δ)                          by δ pixels of 512 per frame, nearest, reflected at borders
    xᵏ(t₁) = √a·x̃ᵏ(t₀) + √(1−a)·εᵏ,  a = Π α over t₀ … t₁   back to t₁ with fresh noise

From t₁ on, all frames are sampled together. Frame 0 starts there from its own x⁰(t₁), so it stays the image of the
model. With cross-frame attention (`cfa`) this is Text2Video-Zero without its background smoothing, which needs a
saliency model. The paper's δ is (12, 12). Of 50 steps, its t₀ = 881 and t₁ = 941 are those with 44 and 47 more to come.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from zs2.method import Method, renoise_at
from zs2.noise.models import stream
from zs2.sampling.plan import Joined
from zs2.sampling.request import Request
from zs2.sampling.sampler import Chunk, Sampler, Step
from zs2.sampling.solver import Solver


class MovedFrames:
    """The start of a sampling with this noise; see plan.Start. step: the step of t₁."""

    def __init__(self, method: Method, request: Request) -> None:
        self.motion = method.noise_parameters["motion"]
        self.t0, self.t1 = renoise_at(method.renoise, request.steps)
        self.step = request.steps - self.t1 - 1
        self.warped = request.steps - self.t0 - 1  # the step of t₀
        self.seed = request.seed

    def run(self, sampler: Sampler) -> Generator[Step, None, Joined]:
        """Sample frame 0 alone until t₁, and on to t₀. Compute the other frames from it."""
        chunk = Chunk(0, next(sampler.initial())[None])
        for i in range(self.step):
            sampler.step(i, chunk, (), alone=True)
            yield sampler.finished(i, chunk.latents)
        near, history = chunk.latents[0], chunk.history
        for i in range(self.step, self.warped):
            sampler.step(i, chunk, (), alone=True)
            sampler.check(i, chunk.latents)
        far, solver = chunk.latents[0], sampler.plan.solver
        others = spread(far, solver, seed=self.seed, motion=self.motion, t0=self.t0, t1=self.t1)
        return Joined(itertools.chain([near], others), history)


def spread(
    far: Tensor, solver: Solver, *, seed: int, motion: tuple[float, float], t0: int, t1: int
) -> Iterator[Tensor]:
    """Compute the other frames from frame 0. Yields frames 1, 2, … at t₁, (c, h, w), without end.

    Args:
        far: frame 0 at t₀, (c, h, w), sampled alone.
        seed: the seed of the fresh noise; each frame has its own stream. motion: δ along x and y.
        t0, t1: as `renoise_at` returns them.
    """
    start, end = len(solver.timesteps) - t1 - 1, len(solver.timesteps) - t0 - 1
    # as in diffusers, the product is over t₀ … t₁ − 1; the forward process would have t₀ + 1 … t₁
    before, last = solver.timesteps[end] - 1, solver.timesteps[start] - 1
    cumprod = solver.schedule.alphas_cumprod
    a = (cumprod[last] / (cumprod[before] if before >= 0 else 1)).item()
    for k in itertools.count(1):
        shifted = shift(shift(far, k * motion[0], dim=2), k * motion[1], dim=1)
        noise = stream(seed, k, tuple(far.shape))().to(far.device)
        yield math.sqrt(a) * shifted + math.sqrt(1 - a) * noise


def shift(x: Tensor, pixels: float, dim: int) -> Tensor:
    """Shift a picture along an axis, towards index 0: nearest neighbour, reflected at the borders.

    The axis counts as 512 pixels, whatever its size. A shift by δ pixels samples at j + (δ − ½)·n/512: the grid of the
    reference is half a pixel off, and so is this one.
    """
    n = x.shape[dim]
    place = torch.arange(n, dtype=torch.float64) + (pixels - 0.5) * n / 512
    place = (place + 0.5) % (2 * n)  # reflection at −½ and n − ½ repeats after 2n
    place = torch.where(place > n, 2 * n - place, place) - 0.5
    return x.index_select(dim, place.clamp(0, n - 1).round().long().to(x.device))
