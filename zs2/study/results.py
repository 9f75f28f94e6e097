"""What a study found: its measures read back, and the tables, sweeps and gaps that a report shows. No torch here."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from zs2.errors import InputError
from zs2.study.cells import Cell
from zs2.study.stats import Estimate, Key, common, difference, mean, rank_correlation
from zs2.study.study import FIXED, METRICS, Study, clip_file, measures_file, record_file
from zs2.system.json_files import read_json

NOISE_METRICS = ("noise-correlation", "noise-correlation-expected")
EVERY = "all"  # the set of all prompts

# Mean absolute change between consecutive frames of the authors' own clips (of pose-guided motion, 16 frames, 512²).
AUTHORS = {
    "lambda": {0.0: 0.0204, 0.05: 0.0393, 0.1: 0.0457, 0.15: 0.0586, 0.2: 0.0633, 0.25: 0.0752},
    "mu": {0.0: 0.1245, 0.25: 0.0722, 0.5: 0.0676, 0.75: 0.0606, 0.9: 0.0499, 1.0: 0.0511},
}
SYMBOLS = {"lambda": "λ", "mu": "μ"}


@dataclass(frozen=True)
class Results:
    """A study and all that was measured of it.

    measures: {(cell id, prompt, seed): {metric: value}}, without the CLIP scores of the empty prompt, which there is
    nothing in to show. made: names of the clips that are there. protocol: by what they were measured; None if nothing
    was.
    """

    study: Study
    measures: dict[tuple[str, int, int], dict[str, float | None]]
    made: frozenset[str]
    protocol: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results in a study's folder.

        Raises: InputError if it holds no study, no clip, or measures that are broken or by different protocols.
        """
        study = Study.read(folder)
        made = [
            job
            for job in study.jobs()
            if clip_file(folder, job.name).exists() and record_file(folder, job.name).exists()
        ]
        if not made:
            raise InputError(f"{folder}: the study has no clip yet: run python -m zs2.ablate --out {folder} to the end")
        measures, protocols = {}, []
        for job in made:
            file = measures_file(folder, job.name)
            if file.exists():
                values, protocol = _measures(file)
                if not study.prompts[job.prompt].text.strip():  # measures of before may hold one
                    values["clip-score"] = None
                measures[job.cell.id, job.prompt, job.seed] = values
                protocols += [protocol] * (protocol not in protocols)
        if len(protocols) > 1:
            one, other = protocols[:2]
            differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            pairs = [(name, one.get(name), other.get(name)) for name in differ if name != "clip_sha256"]
            ways = ", ".join(f"{name} {a!r} and {b!r}" for name, a, b in pairs) or "CLIP weights that differ"
            raise InputError(
                f"{folder}: its clips were measured in different ways ({ways}): give the command of zs2.ablate again, "
                "with one --clip, and all are measured alike"
            )
        return cls(study, measures, frozenset(job.name for job in made), protocols[0] if protocols else None)

    @property
    def metrics(self) -> list[str]:
        """Those that have a value somewhere, but for the noise's, in the order of METRICS."""
        return [name for name in METRICS if name not in NOISE_METRICS and self._has(name)]

    def _has(self, metric: str) -> bool:
        return any(values[metric] is not None for values in self.measures.values())

    @property
    def sets(self) -> list[str]:
        """The sets of prompts, and, if they are several, all together."""
        found = list(dict.fromkeys(prompt.set for prompt in self.study.prompts))
        return [*found, EVERY] if len(found) > 1 else found

    @property
    def full(self) -> Cell:
        """The cell that the others are compared with."""
        return next(cell for cell in self.study.cells if cell.id == self.study.full)

    @property
    def digest(self) -> str:
        """What votes are for: the settings that decide every clip, and the prompts. More cells or seeds keep it."""
        fixed = {name: getattr(self.study, name) for name in FIXED} | {"prompts": [str(p) for p in self.study.prompts]}
        return hashlib.sha256(dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]

    def values(self, cell: str, metric: str, prompts: str = EVERY) -> dict[Key, float | None]:
        """{(prompt, seed): value} of a cell, for a set of prompts."""
        return {
            (prompt, seed): measured[metric]
            for (name, prompt, seed), measured in self.measures.items()
            if name == cell and prompts in (EVERY, self.study.prompts[prompt].set)
        }

    def gaps(self) -> list[tuple[Cell, int, int]]:
        """The cells that are not whole: (cell, clips that are missing, clips that are not measured)."""
        clips: dict[str, int] = dict.fromkeys((cell.id for cell in self.study.cells), 0)
        unmeasured = dict(clips)
        for job in self.study.jobs():
            clips[job.cell.id] += job.name not in self.made
            unmeasured[job.cell.id] += job.name in self.made and (job.cell.id, *job[1:]) not in self.measures
        cells = self.study.cells
        return [(c, clips[c.id], unmeasured[c.id]) for c in cells if clips[c.id] or unmeasured[c.id]]


def _measures(file: Path) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The metrics and the protocol in a file of measures."""
    said, again = read_json(file), "remove it and give the command of zs2.ablate again"
    metrics, protocol = said.get("metrics"), said.get("protocol")
    if not isinstance(metrics, dict) or not isinstance(protocol, dict):
        raise InputError(f"{file}: expected metrics and protocol in it: {again}")
    values = {name: metrics.get(name) for name in METRICS}
    for name, value in values.items():
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise InputError(f"{file}: {name} is {value!r}: expected a finite number or null: {again}")
    return values, protocol


def still(cell: Cell) -> bool:
    """Whether all frames of a cell's clips are one picture: it is the frozen frame, or they have one noise."""
    return cell.frozen or cell.noise == "shared" or (cell.noise == "dnm" and cell.lam == 0)


class Entry(NamedTuple):
    """A cell's mean of a metric, and its paired difference to the full method (None for that itself)."""

    value: Estimate | None
    change: Estimate | None


class Row(NamedTuple):
    """A cell's entries, one a metric, and how many clips of it are measured."""

    cell: Cell
    clips: int
    entries: list[Entry]


def table(results: Results, prompts: str) -> list[Row]:
    """The ablation table of a set of prompts: a row for each cell, the full method first."""
    rows = []
    full = results.study.full
    for cell in sorted(results.study.cells, key=lambda c: c.id != full):
        entries = []
        for metric in results.metrics:
            values, base = (results.values(name, metric, prompts) for name in (cell.id, full))
            entries.append(Entry(mean(values), None if cell.id == full else difference(values, base)))
        rows.append(Row(cell, len(results.values(cell.id, "motion", prompts)), entries))
    return rows


class Sweep(NamedTuple):
    """Motion at each of the authors' values of λ or μ that the study has, beside their own.

    Only (prompt, seed) that have all the values count, so that each value is of the same prompts and noises.
    parameter: λ or μ. fixed: the value of the other. motion: {set of prompts: [estimate a value]}, without a set of
    which nothing counts. steps: {set: [paired difference from each value to the next]}. ranks: {set: rank correlation
    with the authors}.
    """

    parameter: str
    fixed: str
    at: list[float]
    authors: list[float]
    motion: dict[str, list[Estimate | None]]
    steps: dict[str, list[Estimate | None]]
    ranks: dict[str, Estimate | None]


def sweeps(results: Results) -> list[Sweep]:
    """The sweeps in a study, those of λ first: of DNM, where three or more of the authors' values are measured."""
    places: dict[str, dict[float, dict[float, str]]] = {"lambda": {}, "mu": {}}  # {parameter: {fixed: {at: cell}}}
    for cell in results.study.cells:
        mu = {"sa": 0.0, "cfa": 1.0, "tma": cell.mu}.get(cell.attn)
        if (
            cell.noise != "dnm"
            or cell.lam is None
            or mu is None
            or cell.frozen
            or not results.values(cell.id, "motion")
        ):
            continue
        places["lambda"].setdefault(mu, {})[cell.lam] = cell.id
        places["mu"].setdefault(cell.lam, {})[mu] = cell.id
    found = [
        _sweep(results, parameter, fixed, {value: cells[value] for value in AUTHORS[parameter] if value in cells})
        for parameter, lines in places.items()
        for fixed, cells in lines.items()
        if len(cells.keys() & AUTHORS[parameter].keys()) >= 3
    ]
    return [sweep for sweep in found if sweep.motion]


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
