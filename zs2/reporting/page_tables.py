"""The tables of the page as HTML, and the choice of what they show, which needs no script. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby

from zs2.evaluation.metrics import METRICS
from zs2.reporting.content import prompt_count
from zs2.reporting.findings import lead_metrics
from zs2.reporting.interval_plot import interval_plots
from zs2.reporting.sweep_plot import curve
from zs2.reporting.tables import (
    DIFFERENCES,
    FALL,
    RISE,
    STILL,
    caption,
    clip_counts,
    heads,
    mark,
    mean_and_difference,
    mean_and_mark,
    rank_line,
    seen,
    still_value,
    sweep_heads,
    sweep_rows,
    sweep_title,
)
from zs2.study.cells import PRESETS, Cell
from zs2.study.results import Results, Row, Sweep

GRID = "Grid"  # the title of the part of a table with the cells of no preset
SPOKEN = {RISE: "higher", FALL: "lower", "": ""}  # what a screen reader says for a mark
NOTHING, NO_VALUE = "<p>Nothing is measured.</p>", "<p>No metric has a value of these clips.</p>"


# --- a choice, by radio buttons and style -----------------------------------------------------------------------------


def choice(name: str, legend: str, titles: Sequence[str], chosen: int) -> str:
    """Radio buttons, of which the one that is chosen shows its panels: see `choice_style`."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{i}"{" checked" * (i == chosen)}> {escape(title)}</label>'
        for i, title in enumerate(titles)
    )
    return f'<fieldset class="choice"><legend>{legend}</legend>{buttons}</fieldset>'


def panel(name: str, i: int, content: str) -> str:
    """What the i-th button of a choice shows."""
    return f'<div class="{name} {name}-{i}">{content}</div>'


def choice_style(name: str, count: int) -> str:
    """The style that hides the panels of the buttons that are not chosen, on a screen."""
    rules = (f"body:has(#{name}-{i}:checked) .{name}:not(.{name}-{i}){{display:none}}" for i in range(count))
    return f"@media screen{{{''.join(rules)}}}"


def of_sets(results: Results, content: Callable[[str], str]) -> str:
    """A panel for each set of prompts."""
    return "".join(panel("set", i, content(name)) for i, name in enumerate(results.sets))


def choice_of_sets(results: Results) -> str:
    """The choice of a set of prompts, for all tables. Empty where there is one set."""
    titles = [f"{name} ({prompt_count(results, name)})" for name in results.sets]
    return choice("set", "Prompts", titles, len(titles) - 1) if len(titles) > 1 else ""


def choice_of_metrics(results: Results) -> str:
    """The choice of a metric."""
    titles = [METRICS[name].title for name in results.metrics]
    return choice("metric", "Metric", titles, results.metrics.index(lead_metrics(results)[0]))


# --- tables -----------------------------------------------------------------------------------------------------------


def html_table(head: Sequence[str], body: Iterable[str], title: str = "", kind: str = "") -> str:
    """A table. body: its rows, with rows of group titles between them. It scrolls in its box where it must."""
    titles = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    title = f"<caption>{escape(title)}</caption>" if title else ""
    return (
        f'<div class="wide"><table class="{kind}">{title}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def html_row(head: Sequence[str], cells: Iterable[str], kind: str = "") -> str:
    """A row. head: some lines of text. cells: HTML."""
    first = "".join([escape(head[0]), *(f"<small>{escape(more)}</small>" for more in head[1:])])
    return f'<tr class="{kind}"><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def means(results: Results, prompts: str) -> str:
    """The table of all variants and metrics for a set of prompts, a number a cell."""

    def cells(row: Row) -> list[str]:
        clips = [str(row.clips)] * clip_counts(results, prompts)
        return [*clips, *(_marked(*mean_and_mark(entry)) for entry in row.entries)]

    still = [still_value(results, metric, prompts) for metric in results.metrics]
    row = list(map(_marked, still)) if any(still) else []
    return _variants(results, prompts, heads(results), cells, caption(results, prompts), "means", row)


def differences(results: Results, prompts: str, metric: str) -> str:
    """The table of one metric: each variant's mean, its difference to the reference, and the interval of that."""
    i = results.metrics.index(metric)
    draw = interval_plots(row.entries[i].change for row in results.tables[prompts])

    def cells(row: Row) -> list[str]:
        entry = row.entries[i]
        clips = [str(row.clips)] * clip_counts(results, prompts)
        value, change, low, high = mean_and_difference(entry)
        return [*clips, value, _marked(change, seen(entry.change)), low, high, draw(entry.change)]

    still = still_value(results, metric, prompts)
    row = [still, *[""] * len(DIFFERENCES)] if still else []
    title = f"{METRICS[metric].title}: {caption(results, prompts)}"
    return _variants(results, prompts, [*DIFFERENCES, ""], cells, title, "differences", row)


def _variants(
    results: Results,
    prompts: str,
    head: Sequence[str],
    cells: Callable[[Row], list[str]],
    title: str,
    kind: str,
    still: Sequence[str],
) -> str:
    titles = [*(preset.title for preset in PRESETS.values()), GRID]
    rows = sorted(results.tables[prompts], key=lambda row: titles.index(_group(row.cell)))
    if not any(row.clips for row in rows):
        return f"<p>{escape(title)}: nothing is measured.</p>"
    head = ["variant", *["clips"] * clip_counts(results, prompts), *head]
    groups = [(group, list(members)) for group, members in groupby(rows, key=lambda row: _group(row.cell))]
    body = []
    if still:
        body.append(html_row([STILL], [*[""] * clip_counts(results, prompts), *still], "still"))
    for group, members in groups:
        if len(groups) > 1:
            body.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{escape(group)}</th></tr>')
        for row in members:
            remark = mark(row.cell, results)
            body.append(html_row([row.cell.label, *[remark] * bool(remark)], cells(row), remark))
    return html_table(head, body, title, kind)


def _marked(text: str, sign: str = "") -> str:
    spoken = f'<span aria-hidden="true">{sign}</span><span class="spoken">{SPOKEN[sign]}</span>' if sign else ""
    return f"{escape(text)}<i>{spoken}</i>"


def _group(cell: Cell) -> str:
    """The title of the part of a table that a cell belongs to: that of its first preset, in the order of PRESETS."""
    return next((preset.title for preset in PRESETS.values() if preset.name in cell.presets), GRID)


def html_sweep(results: Results, sweep: Sweep) -> str:
    """A sweep: its curves for all sets of prompts, and the figures for the one that is chosen."""

    def figures(prompts: str) -> str:
        if prompts not in sweep.motion:
            return f"<p>{escape(prompts.capitalize())} prompts: no clip has all values.</p>"
        rows = [html_row(row[:1], map(escape, row[1:])) for row in sweep_rows(sweep, prompts)]
        table = html_table(sweep_heads(sweep), rows, f"{prompts.capitalize()} prompts")
        return f"{table}<p>{escape(rank_line(sweep, prompts))}</p>"

    return (
        f'<h3>{escape(sweep_title(sweep))}</h3><div class="sweep">{curve(sweep)}'
        f"<div>{of_sets(results, figures)}</div></div>"
    )
