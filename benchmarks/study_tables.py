"""Write the CSVs of docs/ablations.md from a study: its differences, the sweeps of λ and μ, and the prompts.

    python benchmarks/study_tables.py out/study                    docs/data/ablation.csv, sweep-lambda.csv, …
    python benchmarks/study_tables.py out/study --out out/tables   into another folder

`ablation.csv` is the table of differences of `zs2 report`. In the sweeps, each row is a value of λ or μ, with the mean
motion of the authors' clips and of each set of prompts. `python benchmarks/excerpts.py` then fills the page's tables.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from zs2.reporting.numbers import columns
from zs2.reporting.spreadsheet import table_of_differences
from zs2.study.results import Results, Sweep, sweeps
from zs2.study.stats import Estimate
from zs2.system.atomic import write_text

NAMES = {"λ": ("lambda", "lam"), "μ": ("mu", "mu")}


def figures(found: Estimate | None) -> list[str]:
    """An estimate and the ends of its interval, with signs that a spreadsheet reads."""
    return [text.replace("−", "-").replace("≈", "") for text in columns(found)]


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
    made = {"ablation": table_of_differences(results), "study-prompts": table(("number", "kind", "prompt"), prompts)}
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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("study", type=Path)
    p.add_argument("--out", type=Path, default=Path("docs/data"), metavar="DIR")
    args = p.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in tables(Results.read(args.study)).items():
        file = args.out / f"{name}.csv"
        write_text(file, text)
        print(file)


if __name__ == "__main__":
    main()
