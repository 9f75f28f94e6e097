"""What a study found: its measures read back, and the tables, sweeps and gaps that a report shows. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from json import dumps
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from zs2.cli.command import program
from zs2.errors import InputError
from zs2.evaluation.measure import definitions, differences, measured_metrics
from zs2.evaluation.metrics import METRICS
from zs2.method import ATTENTION_KINDS
from zs2.sampling.request import FIRST, OPTIONS
from zs2.study.cells import AUTHORS, FULL, Cell
from zs2.study.stats import Estimate, Key, common, difference, mean, rank_correlation
from zs2.study.stored import read_measures
from zs2.study.study import Study, files_of, folders, measures_file

EVERY = "all"  # the set of all prompts
EQUAL_MOTION = "motion"  # the preset of cells at equal motion

SYMBOLS = {"lambda": "λ", "mu": "μ"}


@dataclass(frozen=True)
class Results:
    """A study and everything that was measured of it.

    Args:
        measures: {(cell id, prompt, seed): {metric: value}}. Metrics that need a prompt are None for the empty one.
        finished: names of the clips that are there.
        protocol: how they were measured; None if nothing was measured.
        incomplete: keys of `measures` that lack a metric of METRICS, because that is newer than the measurement.
    """

    study: Study
    measures: dict[tuple[str, int, int], dict[str, float | None]]
    finished: frozenset[str]
    protocol: dict[str, Any] | None
    incomplete: frozenset[tuple[str, int, int]] = frozenset()

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results in a study's folder.

        Raises: InputError if it has no study, no clip, or measures that are broken or of different protocols.
        """
        study = Study.read(folder)
        clips, measured = map(files_of, folders(folder))
        finished = [
            job
            for job in study.jobs()
            if f"{job.name}.webp" in clips and not clips.isdisjoint((f"{job.name}.webp.json", f"{job.name}.json"))
        ]
        if not finished:
            again = f"{program('ablate')} --out {quote(str(folder))}"
            raise InputError(f"{folder}: the study has no clip yet: run {again} to the end")
        measures, incomplete = {}, set()
        first: dict[str, Any] | None = None
        for job in finished:
            if f"{job.name}.json" not in measured:
                continue
            values, protocol = read_measures(measures_file(folder, job.name))
            first = protocol if first is None else first
            _check_alike(folder, first, protocol)
            if not study.prompts[job.prompt].text.strip():  # older measures may have a score of the empty prompt
                values |= {metric.name: None for metric in METRICS.values() if metric.of_prompt}
            measures[job.key] = values
            if not measured_metrics(protocol).issuperset(definitions()):
                incomplete.add(job.key)
        return cls(study, measures, frozenset(job.name for job in finished), first, frozenset(incomplete))

    @property
    def metrics(self) -> list[str]:
        """The metrics of the tables, in the order of METRICS: those with a value somewhere, without the noise's."""
        return [one.name for one in METRICS.values() if not one.of_noise and self._has(one.name)]

    @property
    def noise_metrics(self) -> list[str]:
        """The metrics of the initial noises, in the order of METRICS."""
        return [one.name for one in METRICS.values() if one.of_noise]

    def _has(self, metric: str) -> bool:
        return any(values[metric] is not None for values in self.measures.values())

    @property
    def sets(self) -> list[str]:
        """The sets of prompts. If there are several, also the set of all prompts."""
        found = list(dict.fromkeys(prompt.set for prompt in self.study.prompts))
        return [*found, EVERY] if len(found) > 1 else found

    @cached_property
    def tables(self) -> dict[str, list[Row]]:
        """The ablation table of each set of prompts: see `table`. Computed once, since resampling takes a while."""
        return {name: table(self, name) for name in self.sets}

    @property
    def full(self) -> Cell:
        """The cell that the others are compared with."""
        return next(cell for cell in self.study.cells if cell.id == self.study.full)

    @property
    def digest(self) -> str:
        """What votes belong to: the settings that decide every clip, and the prompts. More cells or seeds keep it, and
        settings that came later, if they are as in studies of before."""
        later = {name: option.unstated for name, option in OPTIONS.items() if name not in FIRST}
        later |= {"compile": False, "embeddings": None, "controlnet": None}
        fixed = {name: value for name, value in self.study.fixed.items() if (name, value) not in later.items()}
        fixed["prompts"] = [str(prompt) for prompt in self.study.prompts]
        return hashlib.sha256(dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def measured(self, cell: str, prompts: str = EVERY) -> int:
        """How many clips of a cell are measured, for a set of prompts."""
        return sum(name == cell and self._in_set(prompt, prompts) for name, prompt, _ in self.measures)

    def values(self, cell: str, metric: str, prompts: str = EVERY) -> dict[Key, float | None]:
        """{(prompt, seed): value} of a cell, for a set of prompts."""
        return {
            (prompt, seed): values[metric]
            for (name, prompt, seed), values in self.measures.items()
            if name == cell and self._in_set(prompt, prompts)
        }

    def _in_set(self, prompt: int, prompts: str) -> bool:
        return prompts in (EVERY, self.study.prompts[prompt].set)

    def gaps(self) -> list[tuple[Cell, int, int]]:
        """The cells that are not complete: (cell, clips that are missing, clips that are not fully measured)."""
        missing: dict[str, int] = dict.fromkeys((cell.id for cell in self.study.cells), 0)
        unmeasured = dict(missing)
        for job in self.study.jobs():
            if job.name not in self.finished:
                missing[job.cell.id] += 1
            elif job.key not in self.measures or job.key in self.incomplete:
                unmeasured[job.cell.id] += 1
        cells = self.study.cells
        return [(c, missing[c.id], unmeasured[c.id]) for c in cells if missing[c.id] or unmeasured[c.id]]


def _check_alike(folder: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise InputError if the measures of two protocols can't be compared."""
    keys = differences(one, other)
    if keys:
        pairs = [(key, one.get(key), other.get(key)) for key in keys if key != "clip_sha256"]
        ways = ", ".join(f"{key} {a!r} and {b!r}" for key, a, b in pairs) or "CLIP weights that differ"
        options = [f"--{name}" for name in ("clip", "lpips") if not {name, f"{name}_sha256"}.isdisjoint(keys)]
        same = f"with {' and '.join(options)}, and " if options else ""
        raise InputError(
            f"{folder}: its clips were measured in different ways ({ways}): give the command of zs2.ablate again, "
            f"{same}without options for cells, prompts and seeds: then all are measured alike"
        )


def is_ranked(cell: Cell) -> bool:
    """Whether a cell has a rank at equal motion. The still control of that preset has none."""
    return EQUAL_MOTION in cell.presets and not cell.frozen


class Entry(NamedTuple):
    """A cell's mean of a metric, its paired difference to the reference (None for the reference itself), and its rank
    among the cells at equal motion, if it is one of them."""

    value: Estimate | None
    change: Estimate | None
    rank: int | None = None


class Row(NamedTuple):
    """A cell's entries, one a metric, and how many clips of it are measured."""

    cell: Cell
    clips: int
    entries: list[Entry]


def table(results: Results, prompts: str) -> list[Row]:
    """The ablation table of a set of prompts: a row for each cell, the reference first."""
    rows = []
    full = results.study.full
    for cell in sorted(results.study.cells, key=lambda c: c.id != full):
        entries = []
        for metric in results.metrics:
            values, base = (results.values(name, metric, prompts) for name in (cell.id, full))
            entries.append(Entry(mean(values), None if cell.id == full else difference(values, base)))
        rows.append(Row(cell, results.measured(cell.id, prompts), entries))
    return _ranked(rows, [METRICS[metric].better for metric in results.metrics])


def _ranked(rows: list[Row], better: Sequence[str | None]) -> list[Row]:
    """The rows, those at equal motion with their ranks by each metric that has a better side."""
    for i, side in enumerate(better):
        at = {row.cell.id: row.entries[i].value for row in rows if is_ranked(row.cell)}
        values = {name: value.value for name, value in at.items() if value is not None}
        if side is None or len(values) < 2:
            continue
        sign = 1 if side == "higher" else -1
        for row in rows:
            if row.cell.id in values:
                before = sum(sign * other > sign * values[row.cell.id] for other in values.values())
                row.entries[i] = row.entries[i]._replace(rank=before + 1)
    return rows


class Sweep(NamedTuple):
    """Motion at each of the authors' values of λ or μ that the study has, compared with the authors' own motion.

    Only pairs of prompt and seed that have all the values count, so that each value has the same prompts and noises.

    parameter: λ or μ. fixed: the value of the other. motion: {set of prompts: [an estimate for each value]}, without a
    set that has no such pair. steps: {set: [paired difference from each value to the next]}. ranks: {set: rank
    correlation with the authors' motion}.
    """

    parameter: str
    fixed: str
    at: list[float]
    authors: list[float]
    motion: dict[str, list[Estimate | None]]
    steps: dict[str, list[Estimate | None]]
    ranks: dict[str, Estimate | None]


def sweeps(results: Results) -> list[Sweep]:
    """The sweeps in a study, those of λ first, where three or more of the authors' values are measured."""
    places: dict[str, dict[float, dict[float, str]]] = {"lambda": {}, "mu": {}}  # {parameter: {fixed: {at: cell}}}
    for cell in results.study.cells:
        point = sweep_point(cell)
        if point is None or not results.measured(cell.id):
            continue
        lam, mu = point
        places["lambda"].setdefault(mu, {})[lam] = cell.id
        places["mu"].setdefault(lam, {})[mu] = cell.id
    found = [
        _sweep(results, parameter, fixed, {value: cells[value] for value in AUTHORS[parameter] if value in cells})
        for parameter, lines in places.items()
        for fixed, cells in lines.items()
        if len(cells.keys() & AUTHORS[parameter].keys()) >= 3
    ]
    return [sweep for sweep in found if sweep.motion]


def sweep_point(one: Cell) -> tuple[float, float] | None:
    """λ and μ of a cell in the authors' sweeps, which vary the full method. None for any other cell."""
    mu = one.mu
    if one.attn != FULL.attn:  # it may be what the full method's attention is at μ = 0 or 1
        simpler = ATTENTION_KINDS[FULL.attn].same_as
        mu = next((float(value) for (name, value), kind in simpler.items() if (name, kind) == ("mu", one.attn)), None)
    if one.noise != FULL.noise or one.frozen or one.lam is None or one.mu_end is not None:
        return None
    return None if mu is None or isinstance(mu, tuple) else (one.lam, mu)


def _sweep(results: Results, parameter: str, fixed: float, cells: dict[float, str]) -> Sweep:
    authors = [AUTHORS[parameter][value] for value in cells]
    other = SYMBOLS["mu" if parameter == "lambda" else "lambda"]
    sweep = Sweep(SYMBOLS[parameter], f"{other} = {fixed:g}", list(cells), authors, {}, {}, {})
    for name in results.sets:
        levels = common([results.values(cell, "motion", name) for cell in cells.values()])
        if levels[0]:
            sweep.motion[name] = [mean(level) for level in levels]
            sweep.steps[name] = [difference(after, before) for before, after in pairwise(levels)]
            sweep.ranks[name] = rank_correlation(levels, authors)
    return sweep
