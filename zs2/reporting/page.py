"""The report as one web page that opens from disk: no other file, no network, and no code but its own. No torch here.

What a user wrote is escaped in the tables. The scripts, in assets/, put it into the page as text and never as markup. A
content security policy allows this style and these scripts alone, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from html import escape
from json import dumps
from pathlib import Path
from typing import Any

from zs2.reporting.content import AUTHORS_CLIPS, has_intervals, notes, prompt_list, size, summary, warnings
from zs2.reporting.experiments import HEADS as EXPERIMENT_HEADS
from zs2.reporting.experiments import TITLE as EXPERIMENTS_TITLE
from zs2.reporting.experiments import experiment_rows, experiments_caption
from zs2.reporting.findings import QUESTION, basis, findings
from zs2.reporting.page_clips import LARGE, page_data
from zs2.reporting.page_tables import (
    NO_VALUE,
    NOTHING,
    choice_of_metrics,
    choice_of_sets,
    choice_style,
    differences,
    html_row,
    html_sweep,
    html_table,
    means,
    of_sets,
    panel,
)
from zs2.reporting.tables import legend, meaning, noise_heads, noise_rows
from zs2.study.results import Results, sweeps

SCRIPTS = ("clips.js", "votes.js")
NO_SWEEP = (
    "<p>There is none in this study: <code>zs2 ablate --preset lambda mu</code> with its <code>--out</code> "
    "adds them.</p>"
)


def page(results: Results, folder: Path) -> str:
    """The whole page as HTML."""
    data = Path(__file__).parent / "assets"
    style, *scripts = ((data / name).read_text(encoding="utf-8") for name in ("report.css", *SCRIPTS))
    style += choice_style("set", len(results.sets)) + choice_style("metric", len(results.metrics))
    script = "\n".join(scripts)
    reduced = max(results.study.width, results.study.height) > LARGE
    remarks = notes(results) + [f"Clips are reduced to {LARGE} pixels on this page."] * reduced
    noise = [html_row(row[:1], map(escape, row[1:])) for row in noise_rows(results)]
    experiments = _experiments(results)
    parts = {
        "POLICY": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "STYLE": style,
        "SCRIPT": script,
        "QUESTION": escape(QUESTION),
        "SIZE": escape(f"{size(results)}; {results.study.model}"),
        "FOUND": of_sets(results, lambda name: _found(results, name)),
        "WARNINGS": _aside(warnings(results)),
        "SETS": choice_of_sets(results) if results.metrics else "",
        "TABLES": _tables(results) if results.metrics else NO_VALUE if results.measures else NOTHING,
        "AUTHORS": escape(AUTHORS_CLIPS),
        "SWEEPS": "".join(html_sweep(results, one) for one in sweeps(results)) or NO_SWEEP,
        "EXPERIMENTS": experiments,
        "TO_EXPERIMENTS": '<a href="#experiments">Experiments</a> ' if experiments else "",
        "NOISE": html_table(noise_heads(results), noise) if noise else NOTHING,
        "NOTES": _list(remarks),
        "SUMMARY": _list(summary(results)),
        "PROMPTS": _list(prompt_list(results)),
        "DATA": _script_json(page_data(results, folder)),
    }
    html = (data / "report.html").read_text(encoding="utf-8")
    pieces = html.split("@@")  # text, NAME, text, NAME, …, text: what is filled in is not searched again
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _experiments(results: Results) -> str:
    """The section on the paper's experiments, of a study that has them."""
    rows = [html_row(row[:1], map(escape, row[1:])) for row in experiment_rows(results)]
    if not rows:
        return ""
    table = html_table(EXPERIMENT_HEADS, rows, experiments_caption(results), "words")
    return f'<section id="experiments"><h2>{EXPERIMENTS_TITLE}</h2>{table}</section>'


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script_json(value: Any) -> str:
    """JSON for a script element. Without < it can end neither the element nor begin a comment; it is ASCII."""
    return dumps(value).replace("<", "\\u003c")


def _list(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _aside(lines: Iterable[str]) -> str:
    items = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<aside aria-label="Before reading">{items}</aside>' if items else ""


def _found(results: Results, prompts: str) -> str:
    """The sentences on a set of prompts, and what they rest on."""
    found = findings(results, prompts)
    if not found:
        return NOTHING
    items = "".join(f"<li><strong>{escape(one.variant)}</strong> {escape(one.text)}</li>" for one in found)
    return f'<ul class="findings">{items}</ul><p class="hint">{escape(basis(results, prompts))}</p>'


def _tables(results: Results) -> str:
    """The means of all metrics, and one metric with its intervals."""
    panels = "".join(
        panel("metric", i, f"<p>{escape(meaning(results, metric))}</p>{of_sets(results, _one_metric(results, metric))}")
        for i, metric in enumerate(results.metrics)
    )
    overview = of_sets(results, lambda name: means(results, name))
    return (
        f'<p>{escape(legend(results))}</p><div class="overview"><h3>All metrics: means</h3>{overview}</div>'
        f"<h3>One metric{', with its intervals' * has_intervals(results)}</h3>{choice_of_metrics(results)}{panels}"
    )


def _one_metric(results: Results, metric: str) -> Callable[[str], str]:
    return lambda prompts: differences(results, prompts, metric)
