"""`python -m zs2.report DIR`: a study's findings as a web page, as Markdown, and as a table of clips. No torch here.

DIR/report.html   everything, with the clips playing side by side and a blind comparison; opens from disk, no network
DIR/report.md     the tables and the sweeps
DIR/results.csv   one row a clip: its settings and its metrics
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zs2.cli.command import command, parser
from zs2.errors import InputError
from zs2.reporting.content import (
    AUTHORS_CLIPS,
    RANKS,
    ablation_row,
    definitions,
    heads,
    noise_rows,
    notes,
    prompt_count,
    prompt_list,
    rank_lines,
    summary,
    sweep_rows,
    sweep_title,
)
from zs2.reporting.page import page
from zs2.study.results import Results, sweeps, table
from zs2.study.study import METRICS
from zs2.system.atomic import write_text
from zs2.version import __version__

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a text that begins so would be run by a spreadsheet
MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", **{sign: f"\\{sign}" for sign in "\\`*_[]#~$"}}


def markdown(results: Results) -> str:
    """The report as Markdown."""
    parts = ["# An ablation study of ZS²", "", *_list(summary(results)), "", *_list(notes(results))]
    if results.measures:
        parts += ["", "## What each part does", "", "Means; below them the paired difference to the reference."]
        for name in results.sets:
            head = ["variant", "clips", *heads(results)]
            rows = [ablation_row(results, row) for row in table(results, name)]
            parts += ["", f"### {name.capitalize()} prompts ({prompt_count(results, name)})", "", *_table(head, rows)]
        parts += ["", *_list(definitions(results))]
    found = sweeps(results)
    if found:
        parts += ["", "## The authors' sweeps", "", _escaped(AUTHORS_CLIPS)]
    for sweep in found:
        head = ["prompts", *(f"{sweep.parameter} = {value:g}" for value in sweep.at)]
        parts += ["", f"### {sweep_title(sweep)}", "", *_table(head, sweep_rows(sweep)), "", RANKS, ""]
        parts += _list(rank_lines(sweep))
    noise = [[[text] for text in row] for row in noise_rows(results)]
    if noise:
        parts += ["", "## Correlation of consecutive initial noises", ""]
        parts += _table(["noise", "measured", "in theory"], noise)
    parts += ["", "## Prompts", "", *_list(prompt_list(results))]
    return "\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def _table(head: Sequence[str], rows: Iterable[Sequence[Sequence[str]]]) -> list[str]:
    """A table; its cells are some lines of text each."""
    bodies = [["<br>".join(map(_escaped, cell)) for cell in row] for row in rows]
    lines = [list(map(_escaped, head)), ["---", *["--:"] * (len(head) - 1)], *bodies]
    return [f"| {' | '.join(line)} |" for line in lines]


def _escaped(text: str) -> str:
    """A user's text in Markdown: no HTML, no markup, no end of a cell."""
    return " ".join("".join(MARKDOWN.get(letter, letter) for letter in text).split())


def table_of_clips(results: Results) -> str:
    """All clips of the study as CSV; what was not measured is empty.

    A text that a spreadsheet would take for a formula is preceded by an apostrophe.
    """
    study, out = results.study, io.StringIO()
    fixed = ["model", "steps", "frames", "guidance", "width", "height", "fps", "dtype", "negative_prompt"]
    fixed += ["sampler", "guidance_interval", "deep_cache"]
    of_cell = ("noise", "lam", "alpha", "attn", "mu", "frozen")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["clip", "cell", "label", *of_cell, "prompt", "text", "set", "seed", *fixed, *METRICS])
    for job in study.jobs():
        if job.name in results.made:
            prompt, cell = study.prompts[job.prompt], asdict(job.cell)
            measured = results.measures.get((job.cell.id, job.prompt, job.seed), {})
            row = [job.name, job.cell.id, job.cell.label, *(cell[name] for name in of_cell)]
            row += [job.prompt, prompt.text, prompt.set, job.seed, *(getattr(study, name) for name in fixed)]
            writer.writerow([_safe(value) for value in [*row, *(measured.get(name) for name in METRICS)]])
    return out.getvalue()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def run(given: dict[str, Any]) -> None:
    """Write the report."""
    folder = Path(given["folder"])
    results = Results.read(folder)
    out = Path(given.get("out", folder / "report.html"))
    if out.suffix != ".html":
        raise InputError(f"--out {str(out)!r}: expected a name that ends in .html")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {str(out)!r} can't be written: expected a file in a folder that exists")
    files = {
        out.with_name("results.csv"): table_of_clips(results),
        out.with_suffix(".md"): markdown(results),
        out: page(results, folder),
    }
    for file, text in files.items():
        write_text(file, text)
        print(file)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0; 1 if writing failed; 2 for what the user gave; 130 for Ctrl-C."""
    p = parser(
        "zs2.report",
        "Make the report of an ablation study: one web page that opens from disk, with tables, curves, the clips side\n"
        "by side and a blind comparison; and beside it report.md and results.csv.",
        """examples:
  python -m zs2.report out/study
  python -m zs2.report out/study --out supplement.html""",
    )
    p.add_argument("folder", metavar="DIR", help="a study that python -m zs2.ablate made, whole or not")
    p.add_argument("--out", metavar="FILE", help="the page (default DIR/report.html); the others go beside it")
    p.add_argument("--version", action="version", version=f"zs2 {__version__}")
    return command(p, run, argv)


if __name__ == "__main__":
    sys.exit(main())
