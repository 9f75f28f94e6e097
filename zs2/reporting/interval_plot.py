"""Paired differences as drawings, one a row: the interval as a line, the difference as a dot, and 0. SVG, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zs2.reporting.tables import seen
from zs2.study.stats import Estimate

WIDTH, HEIGHT, MARGIN = 220, 16, 6  # of a row's drawing


def interval_plots(changes: Iterable[Estimate | None]) -> Callable[[Estimate | None], str]:
    """Differences, all on one axis with 0 → the drawing of one of them. Its numbers stand in the table."""
    ends = [
        value for one in changes if one is not None for value in (one.value, one.low, one.high) if value is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    scale = (WIDTH - 2 * MARGIN) / ((high - low) or 1.0)

    def x(value: float) -> str:
        return f"{MARGIN + (value - low) * scale:.1f}"

    def draw(change: Estimate | None) -> str:
        parts = [f'<path class="zero" d="M{x(0)} 0V{HEIGHT}"/>']
        if change is not None and change.low is not None and change.high is not None:
            parts.append(f'<path class="bar" d="M{x(change.low)} {HEIGHT / 2:g}H{x(change.high)}"/>')
        if change is not None:
            parts.append(f'<circle cx="{x(change.value)}" cy="{HEIGHT / 2:g}" r="3.4"/>')
        kind = "interval differs" if seen(change) else "interval"
        return f'<svg class="{kind}" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'

    return draw
