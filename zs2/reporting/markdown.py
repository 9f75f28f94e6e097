"""The report as Markdown. What a user wrote is escaped: it can be neither markup nor HTML. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zs2.evaluation.metrics import METRICS
from zs2.reporting.content import AUTHORS_CLIPS, has_intervals, notes, prompt_list, summary, warnings
from zs2.reporting.experiments import HEADS as EXPERIMENT_HEADS
from zs2.reporting.experiments import TITLE as EXPERIMENTS_TITLE
from zs2.reporting.experiments import experiment_rows, experiments_caption
from zs2.reporting.findings import QUESTION, basis, findings
from zs2.reporting.tables import (
    DIFFERENCES,
    STILL,
    caption,
    clip_counts,
    heads,
    legend,
    mark,
    mean_and_difference,
    mean_and_mark,
    meaning,
    noise_heads,
    noise_rows,
    rank_line,
    seen,
    still_value,
    sweep_heads,
    sweep_rows,
    sweep_title,
)
from zs2.study.results import Results, Row, sweeps
from zs2.system.terminal import shown

TITLE = "An ablation study of ZS²"  # also the page's: a report is known by it
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", **{sign: f"\\{sign}" for sign in "\\`*_[]#~$"}}


def markdown(results: Results) -> str:
    """The report as Markdown: what was found, the tables, and at the end how it was run."""
    parts = [f"# {TITLE}", "", QUESTION, ""]
    for name in reversed(results.sets):  # all prompts first
        if found := findings(results, name):
            parts += [_escaped(basis(results, name)), ""]
            parts += [*(f"- **{_escaped(one.variant)}.** {_escaped(one.text)}" for one in found), ""]
    if lines := warnings(results):
        parts += [*_list(lines), ""]
    if results.metrics:
        parts += ["## What each part does", "", _escaped(f"Means. {legend(results)}")]
        for name in results.sets:
            parts += ["", f"### {_escaped(caption(results, name))}", "", *_means(results, name)]
        parts += ["", *_list(meaning(results, metric) for metric in results.metrics)]
    parts += _sweeps(results)
    if rows := experiment_rows(results):
        parts += ["", f"## {EXPERIMENTS_TITLE}", "", _escaped(f"{experiments_caption(results)}.")]
        parts += ["", *_table(EXPERIMENT_HEADS, rows, "---")]
    if rows := noise_rows(results):
        parts += ["", "## Correlation of consecutive initial noises", "", *_table(noise_heads(results), rows)]
    if results.metrics:
        parts += ["", f"## Differences to the reference{', with 95 % intervals' * has_intervals(results)}"]
        for i, metric in enumerate(results.metrics):
            for name in results.sets:
                title = f"{METRICS[metric].title}, {name} prompts"
                parts += ["", f"### {_escaped(title)}", "", *_differences(results, name, i)]
    parts += ["", "## How it was run, and how to read it", "", *_list(summary(results)), "", *_list(notes(results))]
    parts += ["", "## Prompts", "", *_list(prompt_list(results))]
    return "\n".join(parts) + "\n"


def _means(results: Results, prompts: str) -> list[str]:
    """The table of all variants and metrics, a number a cell."""
    clips = clip_counts(results, prompts)
    rows = [
        [
            _variant(results, row),
            *[str(row.clips)] * clips,
            *(" ".join(filter(None, mean_and_mark(entry))) for entry in row.entries),
        ]
        for row in results.tables[prompts]
    ]
    still = [still_value(results, metric, prompts) for metric in results.metrics]
    if any(still):
        rows.insert(0, [STILL, *[""] * clips, *still])
    return _table(["variant", *["clips"] * clips, *heads(results)], rows)


def _differences(results: Results, prompts: str, metric: int) -> list[str]:
    """The table of one metric."""
    still = still_value(results, results.metrics[metric], prompts)
    rows = [[STILL, still, *[""] * len(DIFFERENCES[1:])]] if still else []
    for row in results.tables[prompts]:
        entry = row.entries[metric]
        value, change, low, high = mean_and_difference(entry)
        rows.append([_variant(results, row), value, f"{change} {seen(entry.change)}".strip(), low, high])
    return _table(["variant", *DIFFERENCES], rows)


def _variant(results: Results, row: Row) -> str:
    remark = mark(row.cell, results)
    return f"{row.cell.label} ({remark})" if remark else row.cell.label


def _sweeps(results: Results) -> list[str]:
    parts, found = [], sweeps(results)
    if found:
        parts += ["", "## The authors' sweeps", "", _escaped(AUTHORS_CLIPS)]
    for sweep in found:
        for name in sweep.motion:
            parts += ["", f"### {_escaped(f'{sweep_title(sweep)}, {name} prompts')}", ""]
            parts += [*_table(sweep_heads(sweep), sweep_rows(sweep, name)), "", _escaped(rank_line(sweep, name))]
    return parts


def _list(lines: Iterable[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], others: str = "--:") -> list[str]:
    """A table. The first column is to the left. others: the sign of the other columns, by default to the right."""
    lines = [
        list(map(_escaped, head)),
        ["---", *[others] * (len(head) - 1)],
        *(list(map(_escaped, row)) for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def _escaped(text: str) -> str:
    """A user's text in Markdown: no HTML, no markup, no end of a cell, no control character."""
    return shown(" ".join("".join(ESCAPES.get(letter, letter) for letter in text).split()), most=None)
