"""A study as two tables of CSV: each clip with its settings and metrics, and each difference. No torch here."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict
from typing import Any

from zs2.evaluation.metrics import METRICS
from zs2.reporting.tables import mark
from zs2.sampling.request import OPTIONS
from zs2.study.inputs import record_text
from zs2.study.options import value_text
from zs2.study.results import Results

# A spreadsheet runs a text that begins with one of these signs. It may cut a text at other signs than a comma, which
# quotes do not prevent, so what follows them is a beginning, too.
FORMULA = re.compile(r"(^|[;,|\t\r\n])([ \u00a0]*)(?=[=+\-@\t\r＝＋－＠])")
COLUMNS = (
    '"clip","cell","label","noise"',
    "clip,cell,label,noise",
)  # how each such table begins, the older ones unquoted
# The columns of the table of differences. Their names, in quotes, are how it begins.
DIFFERENCES = ("prompts", "variant", "control", "clips", "metric", "mean", "difference", "low", "high", "seen")
OF_CELL = ("noise", "lam", "alpha", "attn", "mu", "frozen", "mu_end", "lam_high", "cutoff")
# Columns of the settings, in the order that the file has always had. Newer sampling options follow.
FIRST = (
    *("model", "steps", "frames", "guidance", "width", "height", "fps", "dtype"),
    *("negative_prompt", "sampler", "guidance_interval", "deep_cache"),
)
SETTINGS = (*FIRST, *(name for name in OPTIONS if name not in FIRST))
MOTION = "motion_pixels"  # the column, after all others, of a cell's `motion`. The column `motion` is the metric


def table_of_clips(results: Results) -> str:
    """All clips of the study as CSV. A metric that was not measured is empty.

    All texts are in quotes. One that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    study, out = results.study, io.StringIO()
    settings = {name: study.sampling[name] if name in OPTIONS else getattr(study, name) for name in SETTINGS}
    settings = {
        name: record_text(value) if isinstance(value, dict | list) else value for name, value in settings.items()
    }
    writer = _writer(out)
    writer.writerow(["clip", "cell", "label", *OF_CELL, "prompt", "text", "set", "seed", *SETTINGS, *METRICS, MOTION])
    for job in study.jobs():
        if job.name in results.finished:
            prompt, cell = study.prompts[job.prompt], asdict(job.cell)
            values = results.measures.get(job.key, {})
            own = {name: value_text(x) if isinstance(x, tuple) else x for name, x in cell.items()}
            row = [job.name, job.cell.id, job.cell.label, *(own[name] for name in OF_CELL)]
            row += [job.prompt, prompt.text, prompt.set, job.seed, *(settings[name] for name in SETTINGS)]
            row += [*(values.get(name) for name in METRICS), own["motion"]]
            writer.writerow([_safe(value) for value in row])
    return out.getvalue()


def table_of_differences(results: Results) -> str:
    """The numbers of the report's tables as CSV: a row for each set of prompts, variant and metric, not rounded.

    control: reference, still or empty. seen: whether the interval of the difference does not cover 0; empty where there
    is none. Texts are as in the table of clips.
    """
    out = io.StringIO()
    writer = _writer(out)
    writer.writerow(DIFFERENCES)
    for prompts, rows in (results.tables if results.measures else {}).items():
        for row in rows:
            for metric, (value, change, _) in zip(results.metrics, row.entries, strict=True):
                known = change is not None and change.low is not None
                line = [prompts, row.cell.label, mark(row.cell, results), row.clips, metric]
                line += [None if value is None else value.value]
                line += [None] * 3 if change is None else [change.value, change.low, change.high]
                writer.writerow([_safe(one) for one in (*line, not change.none_seen if change and known else None)])
    return out.getvalue()


def _writer(out: io.StringIO) -> Any:
    """Writes rows in which all texts are in quotes."""
    return csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def _safe(value: Any) -> Any:
    text = str(value) if isinstance(value, bool) else value
    return FORMULA.sub(r"\1\2'", text) if isinstance(text, str) else text
