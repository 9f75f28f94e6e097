"""The tables of a report as texts, shared by the page and the Markdown. No torch here."""

from __future__ import annotations

from zs2.evaluation.metrics import METRICS
from zs2.reporting.content import counted, has_intervals, prompt_count
from zs2.reporting.numbers import columns, difference, estimate, number, numbers
from zs2.study.cells import Cell
from zs2.study.results import EVERY, Entry, Results, Sweep, is_ranked
from zs2.study.stats import FEWEST, Estimate, mean

ARROWS = {"higher": "\u00a0↑", "lower": "\u00a0↓", None: ""}
RISE, FALL = "▲", "▼"  # a difference that is seen
ENOUGH = 0.9  # a rank correlation below this is explained
STILL = "a still clip"  # the control of a table: its row
DIFFERENCES = ["mean", "difference", "low", "high"]  # the columns of the table of one metric
RANKS = "Rank correlation (Spearman's) of motion with the authors' figures:"


def mark(cell: Cell, results: Results) -> str:
    """The remark below a variant's label, or an empty text."""
    if cell.id == results.study.full:
        return "reference"
    return "still" if cell.still else ""


def heads(results: Results) -> list[str]:
    """The titles of the metrics, with an arrow to the better side."""
    return [METRICS[name].title + ARROWS[METRICS[name].better] for name in results.metrics]


def meaning(results: Results, metric: str) -> str:
    """What a metric means, and what a still clip has."""
    still = still_value(results, metric)
    return f"{METRICS[metric].title}: {METRICS[metric].meaning}." + (f" A still clip has {still}." if still else "")


def still_value(results: Results, metric: str, prompts: str = EVERY) -> str:
    """The value of the still control: the same for every still clip, or the mean of the study's frozen frames."""
    value = METRICS[metric].still
    frozen = next((cell.id for cell in results.study.cells if cell.frozen), None)
    if value is None and frozen is not None:
        found = mean(results.values(frozen, metric, prompts))
        value = None if found is None else found.value
    return "" if value is None else number(value)


def caption(results: Results, prompts: str) -> str:
    """The title of the tables of a set of prompts: how many prompts and clips a row rests on."""
    clips = {row.clips for row in results.tables[prompts]}
    each = f", {counted(min(clips), 'clip')} a variant" if len(clips) == 1 else ""
    return f"{prompts.capitalize()} prompts ({prompt_count(results, prompts)}){each}"


def clip_counts(results: Results, prompts: str) -> bool:
    """Whether the variants have different numbers of clips, so that each row must say its own."""
    return len({row.clips for row in results.tables[prompts]}) > 1


def legend(results: Results) -> str:
    """What the marks of the tables mean."""
    text = (
        f"{RISE} is higher than the reference and {FALL} lower, where a difference is seen: its interval does not "
        "cover 0."
        if has_intervals(results)
        else f"No difference is marked: fewer than {FEWEST} prompts have no interval."
    )
    ranked = any(map(is_ranked, results.study.cells))
    return text + " A number in brackets is a variant's rank at equal motion, by its mean." * ranked


def seen(change: Estimate | None) -> str:
    """The mark of a difference whose interval does not cover 0, or an empty text."""
    if change is None or change.low is None or change.none_seen:
        return ""
    return RISE if change.value > 0 else FALL


def mean_and_mark(entry: Entry) -> tuple[str, str]:
    """The number of a variant and a metric in the table of means, with its rank if any; and its difference's mark."""
    rank = "" if entry.rank is None else f" ({entry.rank})"
    return _mean(entry) + rank, seen(entry.change)


def mean_and_difference(entry: Entry) -> list[str]:
    """The same in the table of one metric: mean, difference, and the ends of its interval. "" where there is none."""
    return [_mean(entry), *columns(entry.change, signed=True)]


def _mean(entry: Entry) -> str:
    return number(entry.value.value if entry.value else None)


def sweep_title(sweep: Sweep) -> str:
    """What a sweep shows."""
    return f"Motion against {sweep.parameter}, at {sweep.fixed}"


def sweep_heads(sweep: Sweep) -> list[str]:
    """The columns of a sweep's table."""
    return [sweep.parameter, "the authors'", "motion", "low", "high"]


def sweep_rows(sweep: Sweep, prompts: str) -> list[list[str]]:
    """A row for each value: the authors' figure, and for a set of prompts the study's with the ends of its interval."""
    figures = zip(sweep.at, sweep.authors, sweep.motion[prompts], strict=True)
    return [[f"{value:g}", f"{authors:.4f}", *columns(found)] for value, authors, found in figures]


def rank_line(sweep: Sweep, prompts: str) -> str:
    """The rank correlation of a sweep with the authors' figures, explained where it is low."""
    rank = sweep.ranks[prompts]
    why = "" if rank is None or rank.value >= ENOUGH else f". {_why(sweep, prompts)}"
    return f"{RANKS} {' '.join(estimate(rank))}{why}."


def _why(sweep: Sweep, name: str) -> str:
    """Why an order is not the authors': the steps from one value to the next that go the other way."""
    against = []
    for i, step in enumerate(sweep.steps[name]):
        theirs = sweep.authors[i + 1] - sweep.authors[i]
        if step is not None and step.value * theirs <= 0:
            against.append(f"{sweep.at[i]:g} → {sweep.at[i + 1]:g}: {' '.join(difference(step))}")
    means = [found.value for found in sweep.motion[name] if found is not None]
    low, high = numbers(min(means), max(means))
    return (
        f"Below {ENOUGH:g}, because motion does not go the authors' way in these steps of {sweep.parameter}: "
        f"{'; '.join(against) or 'none from one value to the next, but some over more'}. "
        f"Over the whole sweep it is from {low} to {high}"
    )


def noise_heads(results: Results) -> list[str]:
    """The columns of the table of noises."""
    return ["noise", *(METRICS[name].title for name in results.noise_metrics)]


def noise_rows(results: Results) -> list[list[str]]:
    """For each noise model, the metrics of its initial noises: their correlation, measured and in theory."""
    rows: dict[str, list[str]] = {}
    for cell in results.study.cells:
        means = [mean(results.values(cell.id, metric)) for metric in results.noise_metrics]
        if any(means) and not cell.frozen:
            values = (number(None if found is None else found.value) for found in means)
            rows[cell.noise_label] = [cell.noise_label, *values]
    return list(rows.values())
