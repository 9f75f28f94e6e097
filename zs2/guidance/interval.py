"""The guidance interval: the share of the steps that is guided (Kynkäänniemi et al. 2024, arXiv 2404.07724)."""

from __future__ import annotations

from typing import Any

from zs2.errors import InputError, brief

GUIDED = (0.0, 1.0)  # covers all steps


def checked_interval(interval: Any, guidance: float, steps: int) -> tuple[float, float]:
    """The interval as two shares of the steps, from and to. Raises: InputError for one that is none, or has no use."""
    try:
        start, end = (float(share) for share in interval)
        right = 0 <= start < end <= 1
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right:
        raise InputError(
            f"guidance_interval is {brief(interval)}: expected two shares of the steps that rise, from 0 to 1, such as "
            "0.2,0.8"
        )
    if (start, end) != GUIDED and guidance in (0, 1):
        raise InputError(
            f"guidance_interval {start:g},{end:g} with guidance {guidance:g}: expected another guidance, for the "
            "interval to switch on and off"
        )
    if not any(start <= step / steps < end for step in range(steps)):
        raise InputError(f"guidance_interval {start:g},{end:g} holds none of the {steps} steps: expected a wider one")
    return start, end
