"""Write the CSVs of docs/ablations.md from a study: its differences, the sweeps of λ and μ, and the prompts.

    python benchmarks/study_tables.py out/study                    docs/data/ablation.csv, sweep-lambda.csv, …
    python benchmarks/study_tables.py out/study --out out/tables   into another folder
    python benchmarks/study_tables.py out/levels --compare levels  docs/data/levels.csv alone: a row for each variant
    python benchmarks/study_tables.py out/levels --compare levels --pairs dnm-0.3_sa:iid_sa
                                                                   and levels-pairs.csv: the second beside the first
    python benchmarks/study_tables.py out/guided-sweeps --sweeps guided
                                                                   docs/data/guided-sweep-lambda.csv, … alone

`ablation.csv` has the differences of `zs2 report`, rounded as its tables are; `noise-correlation.csv` has the
correlation of consecutive noises. In the sweeps, each row is a value of λ or μ, with the mean motion of the authors'
clips and of each set of prompts. With `--compare`, a row has the means of a variant by a few metrics, and the paired
differences to the reference; the last one is what a still clip has. A study of the preset `reproduce` also has a table
of its experiments. With `--pairs`, the second variant of each pair is compared with the first, by their ids (names of
clips). `python benchmarks/excerpts.py` then fills the page's tables.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from zs2.errors import InputError
from zs2.reporting.experiments import can_be_done, experiments
from zs2.reporting.experiments import plain as setting
from zs2.reporting.numbers import columns, number
from zs2.reporting.tables import STILL, mark, noise_rows, still_value
from zs2.study.results import Entry, Results, Sweep, sweeps
from zs2.study.stats import Estimate, common, difference, mean
from zs2.system.atomic import write_text

DIFFERENCES = (
    "prompts",
    "variant",
    "control",
    "clips",
    "metric",
    "mean",
    "difference",
    "low",
    "high",
    "difference_seen",
)
COMPARED = ("motion", "clip-score", "clip-first", "ms-ssim", "flow-warp-error")  # by --compare
SWEEPS = ("sweep-lambda", "sweep-mu", "rank-correlation")  # of tables, by --sweeps
NAMES = {"λ": ("lambda", "lam"), "μ": ("mu", "mu")}


def figures(found: Estimate | None) -> list[str]:
    """An estimate and the ends of its interval, with signs that a spreadsheet reads."""
    return [plain(text) for text in columns(found)]


def plain(text: str) -> str:
    """A number of a report as a spreadsheet reads it; empty for none."""
    return text.replace("−", "-").replace("≈", "").replace("–", "")


def difference_rows(results: Results) -> Iterable[Sequence[str]]:
    """For each set of prompts, variant and metric, the mean and the difference to the reference."""
    for prompts, rows in results.tables.items():
        for row in rows:
            for metric, (value, change, _) in zip(results.metrics, row.entries, strict=True):
                of = (prompts, row.cell.label, mark(row.cell, results), str(row.clips), metric)
                seen = "" if change is None or change.low is None else "no" if change.none_seen else "yes"
                yield *of, plain(number(value and value.value)), *figures(change), seen


def correlation_rows(results: Results) -> Iterable[Sequence[str]]:
    """For each noise model, the correlation of consecutive noises, measured and in theory."""
    cells = {cell.noise_label: cell for cell in results.study.cells}
    for label, *values in noise_rows(results):
        given = (cells[label].lam, cells[label].alpha)
        parameters = ("" if value is None else f"{value:g}" for value in given)
        yield cells[label].noise, *parameters, *(plain(text) for text in values)


def sweep_table(sweep: Sweep, column: str) -> str:
    """A row for each value: the authors' motion, and that of each set of prompts with its interval."""
    heads = [(which, f"{which}_low", f"{which}_high") for which in sweep.motion]
    rows = [
        (f"{at:g}", f"{authors:.4f}", *(cell for found in sweep.motion.values() for cell in figures(found[i])))
        for i, (at, authors) in enumerate(zip(sweep.at, sweep.authors, strict=True))
    ]
    return table((column, "authors", *(name for head in heads for name in head)), rows)


def against_rows(sweep: Sweep) -> Iterable[Sequence[str]]:
    """The steps from one value to the next in which motion does not go the authors' way."""
    for prompts, steps in sweep.steps.items():
        for i, step in enumerate(steps):
            if step is not None and step.value * (sweep.authors[i + 1] - sweep.authors[i]) <= 0:
                yield prompts, f"{sweep.at[i]:g}", f"{sweep.at[i + 1]:g}", *figures(step)


def tables(results: Results) -> dict[str, str]:
    """The CSVs by the names of their files."""
    prompts = [(f"{i:02}", prompt.set, prompt.text) for i, prompt in enumerate(results.study.prompts)]
    made = {
        "ablation": table(DIFFERENCES, difference_rows(results)),
        "noise-correlation": table(("noise", "lam", "alpha", "measured", "theory"), correlation_rows(results)),
        "study-prompts": table(("number", "kind", "prompt"), prompts),
    }
    ranks = []
    for sweep in sweeps(results):
        name, column = NAMES[sweep.parameter]
        made[f"sweep-{name}"] = sweep_table(sweep, column)
        ranks += [(name, which, *figures(rank)) for which, rank in sweep.ranks.items()]
        if name == "mu":
            head = ("prompts", "mu_from", "mu_to", "motion_change", "low", "high")
            if rows := [*against_rows(sweep)]:
                made["sweep-mu-against-the-authors"] = table(head, rows)
    return made | {"rank-correlation": table(("sweep", "prompts", "spearman", "low", "high"), ranks)}


def compared(results: Results, name: str) -> dict[str, str]:
    """The CSVs of `--compare NAME`: the variants, and the experiments of a study that has those."""
    metrics = [metric for metric in COMPARED if metric in results.metrics]
    ends = ("", "_rank", "_difference", "_low", "_high")
    head = ("prompts", "variant", *(f"{metric}{end}" for metric in metrics for end in ends))
    rows = []
    for prompts, found in results.tables.items():
        for row in (one for one in found if not one.cell.frozen):  # which the last row stands for
            entries = dict(zip(results.metrics, row.entries, strict=True))
            rows.append((prompts, row.cell.label, *(cell for metric in metrics for cell in _cells(entries[metric]))))
        still = ((plain(still_value(results, metric, prompts)), *[""] * 4) for metric in metrics)
        rows.append((prompts, STILL, *(cell for each in still for cell in each)))
    made = {name: table(head, rows)}
    if rows := [*experiment_cells(results, metrics)]:
        made[f"{name}-experiments"] = table(("experiment", *head[1:]), rows)
    return made


def experiment_cells(results: Results, metrics: Sequence[str]) -> Iterable[Sequence[str]]:
    """For each of the paper's experiments that was done, and each of its cells: the settings, and as in `compared`."""
    entries = {
        row.cell.id: dict(zip(results.metrics, row.entries, strict=True)) for row in results.tables[results.sets[-1]]
    }
    for one, cells in experiments(results):
        for cell in cells if can_be_done(results.study, one) else []:
            if results.measured(cell.id):
                found = entries[cell.id]
                yield one.name, setting(cell), *(text for metric in metrics for text in _cells(found[metric]))


def pairs(results: Results, named: Sequence[str]) -> str:
    """The CSV of `--pairs`: for each set, pair and metric, both means and the paired difference.

    Raises: InputError for what is no pair of variants of the study.
    """
    labels = {cell.id: cell.label for cell in results.study.cells}
    rows = []
    for pair in named:
        first, _, second = pair.partition(":")
        if first not in labels or second not in labels:
            raise InputError(f"--pairs {pair}: expected FIRST:SECOND, of {', '.join(labels)}")
        for prompts, metric in product(results.sets, (one for one in COMPARED if one in results.metrics)):
            values = common([results.values(one, metric, prompts) for one in (first, second)])
            means = (plain(number(found and found.value)) for found in map(mean, values))
            change = figures(difference(values[1], values[0]))
            rows.append((prompts, labels[first], labels[second], metric, *means, *change))
    return table(
        ("prompts", "first", "second", "metric", "mean_first", "mean_second", "difference", "low", "high"), rows
    )


def _cells(entry: Entry) -> Iterable[str]:
    """The mean, the rank at equal motion, and the difference with its interval, each as far as it is there."""
    yield from (plain(number(entry.value and entry.value.value)), "" if entry.rank is None else str(entry.rank))
    yield from figures(entry.change)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("study", type=Path)
    p.add_argument("--out", type=Path, default=Path("docs/data"), metavar="DIR")
    p.add_argument("--compare", metavar="NAME", help="write NAME.csv instead: a row for each variant")
    p.add_argument("--sweeps", metavar="NAME", help="write NAME-sweep-… and NAME-rank-correlation.csv instead")
    p.add_argument("--pairs", nargs="+", metavar="A:B", help="also NAME-pairs.csv: B beside A")
    args = p.parse_args(argv)
    if args.pairs and not args.compare:
        p.error("--pairs: expected --compare, too")
    if args.sweeps and args.compare:
        p.error("--sweeps: expected no --compare")
    try:
        results = Results.read(args.study)
        made = compared(results, args.compare) if args.compare else tables(results)
        if args.sweeps:
            made = {f"{args.sweeps}-{name}": made[name] for name in SWEEPS if name in made}
            if len(made) < 2:
                raise InputError(f"--sweeps: {args.study} has no sweep of λ or μ: expected two values of one, or more")
        made |= {f"{args.compare}-pairs": pairs(results, args.pairs)} if args.pairs else {}
    except InputError as error:
        p.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        file = args.out / f"{name}.csv"
        write_text(file, text)
        print(file)


if __name__ == "__main__":
    main()
