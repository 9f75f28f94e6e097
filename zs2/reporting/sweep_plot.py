"""A sweep as a drawing: motion against λ or μ with its intervals, and the authors' own figures. SVG, as text."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from zs2.reporting.numbers import number
from zs2.reporting.tables import sweep_title
from zs2.study.results import Sweep

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 330, 56, 14, 50, 44  # of the drawing, and its margins
LEGEND = ((LEFT, 12), (LEFT + 210, 12), (LEFT, 31), (LEFT + 210, 31))  # where its entries stand
MARKS = (  # of each line, about its points
    '<circle r="3.5"/>',
    '<circle r="3.5"/>',
    '<rect x="-3.2" y="-3.2" width="6.4" height="6.4"/>',
    '<path d="M0-4.6 4.6 0 0 4.6-4.6 0z"/>',
)


class Point(NamedTuple):
    """A value of the sweep, with the ends of its interval if it has one."""

    at: float
    value: float
    low: float | None = None
    high: float | None = None


def curve(sweep: Sweep) -> str:
    """The drawing, with a legend above it and a description for screen readers."""
    lines = {"the authors'": [Point(*pair) for pair in zip(sweep.at, sweep.authors, strict=True)]}
    for name, estimates in sweep.motion.items():
        pairs = zip(sweep.at, estimates, strict=True)
        lines[f"{name} prompts"] = [Point(at, e.value, e.low, e.high) for at, e in pairs if e is not None]
    step = _step(max(value for points in lines.values() for p in points for value in p[1:] if value is not None))

    def x(value: float) -> float:
        return LEFT + 8 + (value - sweep.at[0]) / (sweep.at[-1] - sweep.at[0]) * (WIDTH - LEFT - RIGHT - 16)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / (4 * step) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for i in range(5):
        at = f"{y(step * i):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at}" dy=".34em" text-anchor="end">{step * i:.3g}</text>')
    for place in sweep.at:
        parts.append(
            f'<text class="tick" x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{place:g}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{sweep.parameter}</text>'
    )
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">motion</text>')

    for i, (name, points) in enumerate(lines.items()):
        shift = 4 * (i - 2) if i else 0  # so that intervals at one value do not hide each other
        places = [(x(p.at) + shift, p) for p in points]
        parts.append(
            f'<g class="line{i}"><polyline points="{" ".join(f"{a:.1f},{y(p.value):.1f}" for a, p in places)}"/>'
        )
        for a, p in places:
            if p.low is not None and p.high is not None:
                parts.append(f'<path class="bar" d="M{a:.1f} {y(p.low):.1f}V{y(p.high):.1f}"/>')
            parts.append(f'<g transform="translate({a:.1f} {y(p.value):.1f})">{MARKS[i]}</g>')
        left, row = LEGEND[i]
        parts.append(f'<polyline points="{left},{row} {left + 26},{row}"/>')
        parts.append(f'<g transform="translate({left + 13} {row})">{MARKS[i]}</g>')
        parts.append(f'<text x="{left + 33}" y="{row}" dy=".34em">{escape(name)}</text></g>')
    lines_of_text = [
        sweep_title(sweep),
        *(f"{name}: {', '.join(f'{number(p.value)} at {p.at:g}' for p in points)}" for name, points in lines.items()),
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape("; ".join(lines_of_text))}">'
        f"{''.join(parts)}</svg>"
    )


def _step(top: float) -> float:
    """The least round number of which four reach `top`."""
    unit = 10.0 ** math.floor(math.log10(max(top, 1e-6) / 4))
    return next(unit * factor for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12) if 4 * unit * factor >= top)
