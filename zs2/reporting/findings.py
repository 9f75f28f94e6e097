"""What a study found, in sentences: what changes where a part of the method is taken away. No torch here."""

from __future__ import annotations

from typing import NamedTuple

from zs2.evaluation.metrics import METRICS
from zs2.reporting.content import counted, has_intervals, prompt_count
from zs2.reporting.numbers import NO_INTERVAL, estimate, numbers
from zs2.study.cells import Cell, corners
from zs2.study.results import EVERY, Results
from zs2.study.stats import common, difference, mean

QUESTION = "What does each part do: the dependency noise model (DNM), and temporal momentum attention (TMA)?"
LEAD = ("motion", "clip-first", "clip-score")  # the metrics of the sentences, and the first ones of a table


class Finding(NamedTuple):
    """A variant, and in words how it differs from the reference."""

    variant: str
    text: str


def findings(results: Results, prompts: str) -> list[Finding]:
    """A sentence for each of the other corners, over a set of prompts. Empty where nothing is measured."""
    others = [cell for cell in corners(results.study.cells, results.full) if cell.id != results.study.full]
    return [found for cell in others if (found := finding(results, cell, prompts))]


def basis(results: Results, prompts: str) -> str:
    """What the sentences rest on."""
    count, seeds = prompt_count(results, prompts), len(results.study.seeds)
    kind = "" if prompts == EVERY else f"{prompts} "
    return (
        f"Compared with “{results.full.label}”, clip by clip, over {counted(count, f'{kind}prompt')} and "
        f"{counted(seeds, 'seed')}.{' In brackets: 95 % intervals.' * has_intervals(results, prompts)}"
    )


def lead_metrics(results: Results) -> list[str]:
    """The metrics of the sentences; the first three of the tables in a study that has none of them."""
    return [name for name in LEAD if name in results.metrics] or results.metrics[:3]


def finding(results: Results, cell: Cell, prompts: str) -> Finding | None:
    """How a variant differs from the reference, over a set of prompts; None where nothing is measured."""
    changed, same, few = [], [], False
    for metric in lead_metrics(results):
        pairs = common([results.values(name, metric, prompts) for name in (results.study.full, cell.id)])
        before, after = (mean(values) for values in pairs)
        change = difference(pairs[1], pairs[0])
        if before is None or after is None or change is None:
            continue
        title, size, few = METRICS[metric].title, " ".join(estimate(change, signed=True)), few or change.low is None
        if change.none_seen or change.value == 0:
            same.append(f"{title} ({size})")
        else:
            way, ends = "rises" if change.value > 0 else "falls", numbers(before.value, after.value)
            changed.append(f"{title} {way} from {ends[0]} to {ends[1]}: {size}")
    parts = [*changed, *([f"no difference is seen in {_listed(same)}"] if same else [])]
    if not parts:
        return None
    text = f"{'; '.join(parts)}.{f' {NO_INTERVAL.capitalize()}.' * few}"
    return Finding(cell.label, text[0].upper() + text[1:])


def _listed(parts: list[str]) -> str:
    """A, B or C."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
