"""How a report writes numbers, estimates and differences. No torch here."""

from __future__ import annotations

from zs2.study.stats import FEWEST, Estimate

NO_INTERVAL = f"fewer than {FEWEST} prompts: no interval"


def number(value: float | None) -> str:
    """Three significant digits or four, in plain notation."""
    return "–" if value is None else numbers(value)[0]


def numbers(*values: float) -> list[str]:
    """Numbers with as many decimals as suit the largest. A number that only rounds to 0 is ≈0."""
    size = max(map(abs, values))
    places = next((n for n, least in ((2, 10), (3, 1), (4, 0.01), (5, 0.0001)) if size >= least), 6)
    return [_plain(value, places) for value in values]


def _plain(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    if float(text):
        return text.replace("-", "−")
    return "≈0" if value else "0"


def columns(found: Estimate | None, signed: bool = False) -> list[str]:
    """An estimate, and the low and the high end of its interval. "" for what there is not."""
    if found is None:
        return ["", "", ""]
    texts = numbers(*(value for value in (found.value, found.low, found.high) if value is not None))
    sign = "+" if signed and found.value > 0 else ""
    return [sign + texts[0], *(texts[1:] or ["", ""])]


def estimate(found: Estimate | None, signed: bool = False) -> list[str]:
    """An estimate, and its interval in brackets if it has one."""
    value, low, high = columns(found, signed)
    return [value or "–", *[f"[{low}, {high}]"] * bool(low)]


def difference(change: Estimate) -> list[str]:
    """A paired difference with its interval, and a remark if the interval covers 0."""
    if change.low is None:
        return [*estimate(change, signed=True), NO_INTERVAL]
    return [*estimate(change, signed=True), *["no difference seen"] * change.none_seen]
