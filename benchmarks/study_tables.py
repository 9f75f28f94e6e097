"""Write the CSVs of docs/ablations.md from a study: its differences, the sweeps of λ and μ, and the prompts.

    python benchmarks/study_tables.py out/study                    docs/data/ablation.csv, sweep-lambda.csv, …
    python benchmarks/study_tables.py out/study --out out/tables   into another folder

`ablation.csv` is the table of differences of `zs2 report`. In the sweeps, each row is a value of λ or μ, with the mean
motion of a set of prompts; the set `authors` has the authors' own.
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


def sweep_rows(sweep: Sweep) -> Iterable[Sequence[str]]:
    """The authors' motion at each value, then the motion of each set of prompts with its interval."""
    yield from (
        ("authors", f"{at:g}", f"{motion:.4f}", "", "") for at, motion in zip(sweep.at, sweep.authors, strict=True)
    )
    for prompts, motion in sweep.motion.items():
        yield from ((prompts, f"{at:g}", *figures(found)) for at, found in zip(sweep.at, motion, strict=True))


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
        made[f"sweep-{name}"] = table(("prompts", column, "motion", "low", "high"), sweep_rows(sweep))
        ranks += [(name, which, *figures(rank)) for which, rank in sweep.ranks.items()]
        if name == "mu":
            head = ("prompts", "mu_from", "mu_to", "motion_change", "low", "high")
            made["sweep-mu-against-the-authors"] = table(head, against_rows(sweep))
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
