"""The table of the paper's experiments: what each showed here, or why it was not done. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from zs2.evaluation.metrics import METRICS
from zs2.method import PARAMETERS
from zs2.reporting.content import counted
from zs2.reporting.findings import finding, lead_metrics
from zs2.reporting.numbers import NO_INTERVAL, estimate, number
from zs2.sampling.request import INPUTS
from zs2.study.cells import STUDY_LAM, STUDY_MU, Cell, cell
from zs2.study.cells import number as cell_number
from zs2.study.experiments import EXPERIMENTS, Experiment
from zs2.study.model_prompts import MODELS, of_model
from zs2.study.results import EVERY, Results
from zs2.study.stats import Key, common, difference, mean
from zs2.study.study import Study

HEADS = ["experiment", "settings", "done here", "what it showed"]
TITLE = "The paper's experiments, one by one"
PRESET = "reproduce"


def experiments(results: Results) -> list[tuple[Experiment, list[Cell]]]:
    """The experiments with their cells at the study's λ and μ. Empty for a study without the preset `reproduce`."""
    if not any(PRESET in cell.presets for cell in results.study.cells):
        return []
    full = results.full
    lam = STUDY_LAM if full.lam is None else full.lam
    mu: Any = STUDY_MU if full.mu is None else full.mu  # a number, or one for each level
    return [(one, one.cells(lam, mu)) for one in EXPERIMENTS]


def experiment_rows(results: Results) -> list[list[str]]:
    """A row for each experiment, over all prompts."""
    return [_row(results, one, cells) for one, cells in experiments(results)]


def can_be_done(study: Study, one: Experiment) -> bool:
    """Whether a study has what an experiment needs: its input, or a model of the authors' page with its prompts."""
    if one.needs:
        return has_input(study, one.needs)
    return bool(page_prompts(study)) if one.on_models else not one.missing


def page_prompts(study: Study) -> list[int]:
    """The prompts of the authors' page for the study's model that it has, by their numbers."""
    texts = of_model(study.model)
    return [number for number, prompt in enumerate(study.prompts) if prompt.text in texts]


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
    study = results.study
    if not can_be_done(study, one):
        return [one.name, "", "no", one.missing]
    labels = {cell.id: cell for cell in study.cells}
    if not any(cell.id in labels for cell in wanted):
        return [one.name, "", "no", "left out of this study, whose model or inputs rule it out"]
    head = [one.name, _settings(one, wanted)]
    cells = [labels.get(cell.id, cell) for cell in wanted]
    measured = [cell for cell in cells if results.measured(cell.id)]
    if not measured:
        return [*head, "no", "not measured yet"]
    done = "yes" if len(measured) == len(cells) else f"{len(measured)} of {len(cells)}"
    if one.swept:
        return [*head, done, _sweep(results, one.swept, measured, wanted)]
    if one.on_models:
        return [*head, f"1 of {len(MODELS)}", _means(results, measured[0])]
    found = [(cell, finding(results, cell, EVERY)) for cell in measured if cell.id != study.full]
    several = len(found) > 1
    texts = [f"{cell.label}: {shown.text}" if several else shown.text for cell, shown in found if shown]
    return [*head, done, " ".join(texts) or "It is the reference."]


def _settings(one: Experiment, wanted: list[Cell]) -> str:
    """The values of the cells: of a sweep, all of them and what stays; else noise and attention of each."""
    if not one.swept:
        return "; ".join(map(plain, wanted))
    ids, symbol = [cell.id for cell in wanted], PARAMETERS[one.swept].symbol
    values = ", ".join(_value(one.swept, cell, ids.index(cell.id), len(ids)) for cell in wanted)
    fixed, middle = "mu" if one.swept == "lam" else "lam", wanted[len(wanted) // 2]
    return f"{symbol} = {values}; {PARAMETERS[fixed].symbol} = {cell_number(getattr(middle, fixed), ',')}"


def plain(one: Cell) -> str:
    """A cell's noise and attention with their values, without a name of its own."""
    values = (STUDY_LAM if one.lam is None else one.lam, one.attn, STUDY_MU if one.mu is None else one.mu)
    return cell(one.noise, *values, one.alpha).label


def _means(results: Results, cell: Cell) -> str:
    """The means of a cell over the prompts of the authors' page, with their intervals."""
    numbers, parts = page_prompts(results.study), []
    for name in lead_metrics(results):
        values = {key: value for key, value in results.values(cell.id, name).items() if key[0] in numbers}
        if (found := mean(values)) is not None:
            parts.append(f"{METRICS[name].title} {' '.join(estimate(found))}")
    return f"{results.study.model}: {'; '.join(parts)}; over {counted(len(numbers), 'prompt')} of the page."


def _sweep(results: Results, name: str, measured: list[Cell], wanted: list[Cell]) -> str:
    """Motion and CLIP score at the ends of a sweep, and in how many of its steps motion is seen to rise or fall."""
    ids, symbol = [cell.id for cell in wanted], PARAMETERS[name].symbol
    values = {
        metric: common([results.values(cell.id, metric) for cell in measured])
        for metric in ("motion", "clip-score", "clip-first")
    }
    if len(measured) < 2 or mean(values["motion"][0]) is None:
        return "–"
    first, last = (_value(name, cell, ids.index(cell.id), len(ids)) for cell in (measured[0], measured[-1]))
    steps = [difference(after, before) for before, after in pairwise(values["motion"])]
    seen = [step.value for step in steps if step is not None and step.low is not None and not step.none_seen]
    ways = f"rise in {sum(x > 0 for x in seen)} of {len(steps)} steps and to fall in {sum(x < 0 for x in seen)}"
    has_ends = any(step is not None and step.low is not None for step in steps)
    return (
        f"From {symbol} = {first} to {last}: motion {_ends(values['motion'])}{f', seen to {ways}' * has_ends}; CLIP "
        f"score {_ends(values['clip-score'])}; CLIP to first {_ends(values['clip-first'])}."
        f"{f' {NO_INTERVAL.capitalize()}.' * (not has_ends)}"
    )


def _ends(values: Sequence[Mapping[Key, float | None]]) -> str:
    """The means of the first and the last cell."""
    found = [mean(one) for one in (values[0], values[-1])]
    return " → ".join(number(None if one is None else one.value) for one in found)


def _value(name: str, cell: Cell, place: int, count: int) -> str:
    """A cell's value of the parameter; that of a simpler kind of attention is an end of the sweep."""
    value = getattr(cell, name)
    return f"{(place == count - 1) * 1.0 if value is None else value:g}"
