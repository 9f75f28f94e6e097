"""The table of the paper's experiments: what each showed here, or why it was not done. No torch here."""

from __future__ import annotations

from typing import Any

from zs2.method import PARAMETERS
from zs2.reporting.findings import finding
from zs2.reporting.numbers import number
from zs2.sampling.request import INPUTS
from zs2.study.cells import STUDY_LAM, STUDY_MU, Cell
from zs2.study.experiments import EXPERIMENTS, Experiment
from zs2.study.results import EVERY, Results
from zs2.study.stats import mean
from zs2.study.study import Study

HEADS = ["experiment", "done here", "what it showed"]
TITLE = "The paper's experiments, one by one"
PRESET = "reproduce"


def experiment_rows(results: Results) -> list[list[str]]:
    """A row for each experiment, over all prompts. Empty for a study without the preset `reproduce`."""
    if not any(PRESET in cell.presets for cell in results.study.cells):
        return []
    full = results.full
    lam = STUDY_LAM if full.lam is None else full.lam
    mu: Any = STUDY_MU if full.mu is None else full.mu  # a number, or one for each level
    return [_row(results, one, one.cells(lam, mu)) for one in EXPERIMENTS]


def has_input(study: Study, name: str) -> bool:
    """Whether all clips of a study have an input, shared or their prompt's own."""
    own = (any(key == name for key, _ in prompt.inputs) for prompt in study.prompts)
    return study.sampling.get(name) is not None or all(own)


def experiments_caption(results: Results) -> str:
    """The title of the table: how many prompts it is over, and what guides all clips."""
    inputs = [name.replace("_", " ") for name in INPUTS if has_input(results.study, name)]
    guided = f"; every clip has an input: {', '.join(inputs)}" if inputs else ""
    return f"All prompts ({len(results.study.prompts)}){guided}"


def _row(results: Results, one: Experiment, wanted: list[Cell]) -> list[str]:
    if one.missing and not (one.needs and has_input(results.study, one.needs)):
        return [one.name, "no", one.missing]
    labels = {cell.id: cell for cell in results.study.cells}
    if not any(cell.id in labels for cell in wanted):
        return [one.name, "no", "left out of this study, whose model or inputs rule it out"]
    cells = [labels.get(cell.id, cell) for cell in wanted]
    measured = [cell for cell in cells if results.measured(cell.id)]
    if not measured:
        return [one.name, "no", "not measured yet"]
    done = "yes" if len(measured) == len(cells) else f"{len(measured)} of {len(cells)}"
    if one.swept:
        return [one.name, done, _sweep(results, one.swept, measured, wanted)]
    found = [(cell, finding(results, cell, EVERY)) for cell in measured if cell.id != results.study.full]
    several = len(found) > 1
    texts = [f"{cell.label}: {shown.text}" if several else shown.text for cell, shown in found if shown]
    return [one.name, done, " ".join(texts) or "It is the reference."]


def _sweep(results: Results, name: str, measured: list[Cell], wanted: list[Cell]) -> str:
    """Motion and CLIP score at the ends of a sweep, and where motion rises or falls."""
    ids, symbol = [cell.id for cell in wanted], PARAMETERS[name].symbol
    ends = {}
    for metric in ("motion", "clip-score", "clip-first"):
        values = [mean(results.values(cell.id, metric)) for cell in measured]
        ends[metric] = [value.value for value in values if value is not None]
    if len(ends["motion"]) < 2:
        return "–"
    first, last = (_value(name, cell, ids.index(cell.id), len(ids)) for cell in (measured[0], measured[-1]))
    steps = [after - before for before, after in zip(ends["motion"], ends["motion"][1:], strict=False)]
    ways = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
    return (
        f"From {symbol} = {first} to {last}: motion {_ends(ends['motion'])}, it rises in {ways[0]} of {len(steps)} "
        f"steps and falls in {ways[1]}; CLIP score {_ends(ends['clip-score'])}; CLIP to first "
        f"{_ends(ends['clip-first'])}."
    )


def _ends(values: list[float]) -> str:
    return f"{number(values[0])} → {number(values[-1])}" if values else "–"


def _value(name: str, cell: Cell, place: int, count: int) -> str:
    """A cell's value of the parameter; that of a simpler kind of attention is an end of the sweep."""
    value = getattr(cell, name)
    return f"{(place == count - 1) * 1.0 if value is None else value:g}"
