"""Muon: momentum whose steps are made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

A matrix's momentum has a few large directions and many small ones. Muon steps equally far in all of them. After 300
steps, the VAE's reconstruction is 3.4 dB better with Muon than with AdamW, for a fifth more time per step. The UNet's
matrices are larger, so its steps take 1.6 times as long. In the same 170 seconds, its error still falls further.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """An optimizer for weights of at least two dimensions. Those of a convolution count as (out, in·h·w).

    Args:
        lr: the length of a step: the root mean square of the change in the image of a unit vector.
        momentum: that of the gradient's moving average.
        decay: weight decay. It holds singular values below its inverse, because no step adds more than `lr` to one.
        pieces: how many threads share the work on a CPU, matrix by matrix.
        dtype: that of the multiplications.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.0,
        pieces: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})
        self.pieces, self.dtype = pieces, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: defaultdict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"]).flatten(1)  # Nesterov's
                alike[ahead.shape[0], ahead.shape[1]].append((weight, ahead))
            stacks = [torch.stack([ahead for _, ahead in pairs]) for pairs in alike.values()]
            for pairs, steps in zip(alike.values(), self._orthogonal(stacks), strict=True):
                rows, columns = steps.shape[1:]
                for (weight, _), step in zip(pairs, steps * max(1.0, rows / columns) ** 0.5, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"])
                    weight.sub_(step.view_as(weight), alpha=group["lr"])

    def _orthogonal(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        of_stack = partial(orthogonal, dtype=self.dtype)
        if self.pieces == 1 or any(stack.device.type != "cpu" for stack in stacks):
            return [of_stack(stack) for stack in stacks]
        each = max(1, torch.get_num_threads() // self.pieces)
        largest_first = sorted(range(len(stacks)), key=lambda i: -stacks[i].numel())
        with ThreadPoolExecutor(self.pieces, initializer=torch.set_num_threads, initargs=(each,)) as threads:
            found = dict(zip(largest_first, threads.map(of_stack, [stacks[i] for i in largest_first]), strict=True))
        return [found[i] for i in range(len(stacks))]


def orthogonal(matrices: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring the singular values of matrices (b, m, n) near to 1 (0.7 to 1.2), by Newton-Schulz iterations.

    Each iteration multiplies by a polynomial of the Gram matrix, which is small if a convolution's matrix is wide. So
    the polynomials are multiplied first, and the matrix itself only once. In bfloat16 that loses too much; there, the
    matrix is multiplied each time, which is still faster.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if dtype == torch.bfloat16:
        x = x.bfloat16()
        for _ in range(iterations):
            gram = x @ x.mT
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
        x = x.to(matrices.dtype)
        return x.mT if tall else x
    one = torch.eye(x.shape[1], device=x.device)
    gram, product = x @ x.mT, one
    for _ in range(iterations):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x
