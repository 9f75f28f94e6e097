"""The report as Markdown. What a user wrote is escaped: it can be neither markup nor HTML. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zs2.reporting.content import (
    AUTHORS_CLIPS,
    RANKS,
    ablation_row,
    definitions,
    heads,
    noise_heads,
    noise_rows,
    notes,
    prompt_count,
    prompt_list,
    rank_lines,
    summary,
    sweep_rows,
    sweep_title,
)
from zs2.study.results import Results, sweeps, table
from zs2.system.terminal import shown

TITLE = "An ablation study of ZS²"  # also the page's: a report is known by it
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", **{sign: f"\\{sign}" for sign in "\\`*_[]#~$"}}


def markdown(results: Results) -> str:
    """The report as Markdown."""
    parts = [f"# {TITLE}", "", *_list(summary(results)), "", *_list(notes(results))]
    if results.measures:
        parts += ["", "## What each part does", "", "Means; below them the paired difference to the reference."]
        for name in results.sets:
            head = ["variant", "clips", *heads(results)]
            rows = [ablation_row(results, row) for row in table(results, name)]
            heading = f"{_escaped(name.capitalize())} prompts ({prompt_count(results, name)})"
            parts += ["", f"### {heading}", "", *_table(head, rows)]
        parts += ["", *_list(definitions(results))]
    found = sweeps(results)
    if found:
        parts += ["", "## The authors' sweeps", "", _escaped(AUTHORS_CLIPS)]
    for sweep in found:
        head = ["prompts", *(f"{sweep.parameter} = {value:g}" for value in sweep.at)]
        parts += ["", f"### {_escaped(sweep_title(sweep))}", "", *_table(head, sweep_rows(sweep)), "", RANKS, ""]
        parts += _list(rank_lines(sweep))
    noise = [[[text] for text in row] for row in noise_rows(results)]
    if noise:
        parts += ["", "## Correlation of consecutive initial noises", "", *_table(noise_heads(results), noise)]
    parts += ["", "## Prompts", "", *_list(prompt_list(results))]
    return "\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def _table(head: Sequence[str], rows: Iterable[Sequence[Sequence[str]]]) -> list[str]:
    """A table. Each cell of the rows is some lines of text."""
    bodies = [["<br>".join(map(_escaped, cell)) for cell in row] for row in rows]
    lines = [list(map(_escaped, head)), ["---", *["--:"] * (len(head) - 1)], *bodies]
    return [f"| {' | '.join(line)} |" for line in lines]


def _escaped(text: str) -> str:
    """A user's text in Markdown: no HTML, no markup, no end of a cell, no control character."""
    return shown(" ".join("".join(ESCAPES.get(letter, letter) for letter in text).split()), most=None)
