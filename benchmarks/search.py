"""The error |D − λ| of the published search against its steps, against random and linear search and the closed form.

    python benchmarks/search.py

    listing   10 draws, of which the nearest to λ stays, then 15 linear steps of α
    random    25 draws
    linear    1 draw, then 24 linear steps
    closed    the closed form, which does not search: its error is the spread of D over a tensor's numbers

Each is the mean over pairs of a frame and the next, of noises of 4×64×64 numbers. The first ten draws are the same.
Below the table stands the time of the processor that the noise of a frame takes, the median over frames.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from common import add_json, machine, save

from zs2.method import LAM_MAX
from zs2.noise.models import divergence, noises, search, stream

SHAPE = (4, 64, 64)
LAMBDAS = (0.01, 0.1, 0.25, 1.0)
WAYS = {"listing": (10, 15), "random": (25, 0), "linear": (1, 24)}  # draws, linear steps
AT = (1, 5, 10, 15, 20, 25)  # steps that are shown


def curves(lam: float, pairs: int) -> dict[str, list[float]]:
    """The mean error after each step, for each way; of the closed form one number."""
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    closed = []
    rho = 1 - lam / LAM_MAX
    for seed in range(pairs):
        previous = stream(seed, 0, SHAPE)()
        for way, (tries, steps) in WAYS.items():
            found[way].append(search(previous, stream(seed, 1, SHAPE), lam, tries, steps)[1])
        noise = rho * previous + (1 - rho**2) ** 0.5 * stream(seed, 1, SHAPE)()
        closed.append(abs(divergence(previous, noise) - lam))
    means = {way: [statistics.fmean(step) for step in zip(*rows, strict=True)] for way, rows in found.items()}
    return means | {"closed": [statistics.fmean(closed)]}


def cost(kind: str, frames: int) -> float:
    """The seconds of processor time that a noise model takes for the noise of a frame, the median over frames."""
    drawn, times = noises(kind, SHAPE, 0, lam=0.1), []
    next(drawn)
    for _ in range(frames):
        start = time.process_time()
        next(drawn)
        times.append(time.process_time() - start)
    return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="of a frame and the next (default 100)")
    add_json(parser)
    options = parser.parse_args(argv)
    print("| λ | search | " + " | ".join(f"{step}" for step in AT) + " |")
    print("|--:|---|" + "--:|" * len(AT))
    figures = {}
    for lam in LAMBDAS:
        figures[f"{lam:g}"] = rows = curves(lam, options.pairs)
        for way, values in rows.items():
            cells = [f"{values[step - 1]:.2g}" for step in AT] if way != "closed" else [f"{values[0]:.2g}"] + [""] * 5
            print(f"| {lam:g} | {way} | " + " | ".join(cells) + " |")
    costs = {kind: cost(kind, options.pairs) for kind in ("dnm", "dnm-search")}
    print("\n" + ", ".join(f"{kind}: {1000 * seconds:.2f} ms a frame" for kind, seconds in costs.items()))
    save(options.json, machine(), seconds=costs, pairs=options.pairs, errors=figures)


if __name__ == "__main__":
    main()
