"""The report's web page: one file that needs no network. What a user wrote is escaped wherever it stands. No torch.

The page is assets/report.html with its style, scripts and data filled in. Its Content-Security-Policy names style and
script by their hashes: nothing else runs, and nothing is fetched. Each clip is stored once, as one picture of all its
frames.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zs2.evaluation.metrics import METRICS
from zs2.reporting.content import (
    AUTHORS_CLIPS,
    RANKS,
    ablation_row,
    definitions,
    heads,
    mark,
    noise_heads,
    noise_rows,
    notes,
    number,
    prompt_count,
    prompt_list,
    rank_lines,
    summary,
    sweep_rows,
    sweep_title,
)
from zs2.reporting.sweep_plot import curve
from zs2.study.cells import PRESETS, Cell
from zs2.study.results import Results, Sweep, sweeps, table
from zs2.study.study import clip_file
from zs2.system.progress import progress
from zs2.video.clip import Clip
from zs2.video.formats import Frames

SCRIPTS = ("clips.js", "votes.js")
CAPTION = ("clip-score", "motion")  # the metrics below a clip
SMALL = 128  # pixels: frames up to this are shown with square pixels
LARGE = 256  # larger frames are reduced to this, and stored as lossy WebP
WIDEST = 8192  # of a picture of all frames
GRID = "Grid"  # the title of the part of a table with the cells of no preset
NONE = "<p>Nothing is measured.</p>"
NO_SWEEP = (
    "<p>There is none in this study: <code>zs2 ablate --preset lambda mu</code> with its <code>--out</code> "
    "adds them.</p>"
)


def page(results: Results, folder: Path) -> str:
    """The whole page as HTML."""
    data = Path(__file__).parent / "assets"
    style, *scripts = ((data / name).read_text(encoding="utf-8") for name in ("report.css", *SCRIPTS))
    script = "\n".join(scripts)
    reduced = max(results.study.width, results.study.height) > LARGE
    remarks = notes(results) + [f"Clips are reduced to {LARGE} pixels on this page."] * reduced
    noise = [_row([[text] for text in row]) for row in noise_rows(results)]
    parts = {
        "POLICY": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "STYLE": style,
        "SCRIPT": script,
        "SUMMARY": _list(summary(results)),
        "PROMPTS": _list(prompt_list(results)),
        "NOTES": _list(remarks),
        "TABLES": "".join(_ablation(results, name) for name in results.sets) if results.measures else NONE,
        "DEFINITIONS": _list(definitions(results)),
        "AUTHORS": escape(AUTHORS_CLIPS),
        "SWEEPS": "".join(map(_sweep, sweeps(results))) or NO_SWEEP,
        "NOISE": _table(noise_heads(results), noise) if noise else NONE,
        "DATA": _script_json(_data(results, folder)),
    }
    html = (data / "report.html").read_text(encoding="utf-8")
    pieces = html.split("@@")  # text, NAME, text, NAME, …, text: what is filled in is not searched again
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script_json(value: Any) -> str:
    """JSON for a script element. Without < it can end neither the element nor begin a comment; it is ASCII."""
    return dumps(value).replace("<", "\\u003c")


# --- tables and curves ------------------------------------------------------------------------------------------------


def _list(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _table(head: Sequence[str], body: Iterable[str], caption: str = "") -> str:
    """A table that scrolls in a box of its own. body: its rows, with rows of group titles between them."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table>{caption}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _row(cells: Sequence[Sequence[str]], kind: str = "") -> str:
    """A row. Each cell is some lines of text."""
    first, *others = (
        "".join([escape(line), *(f"<small>{escape(more)}</small>" for more in rest)]) for line, *rest in cells
    )
    return f'<tr class="{kind}"><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _ablation(results: Results, prompts: str) -> str:
    head = ["variant", "clips", *heads(results)]
    caption = f"{prompts.capitalize()} prompts ({prompt_count(results, prompts)})"
    titles = [*(preset.title for preset in PRESETS.values()), GRID]
    rows = sorted(table(results, prompts), key=lambda row: titles.index(_group(row.cell)))
    if not any(row.clips for row in rows):
        return f"<p>{escape(caption)}: nothing is measured.</p>"
    groups = [(group, list(members)) for group, members in groupby(rows, key=lambda row: _group(row.cell))]
    body = []
    for group, members in groups:
        if len(groups) > 1:
            body.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{escape(group)}</th></tr>')
        body += [_row(ablation_row(results, row), mark(row.cell, results)) for row in members]
    return _table(head, body, caption)


def _group(cell: Cell) -> str:
    """The title of the part of a table that a cell belongs to: that of its first preset, in the order of PRESETS."""
    return next((preset.title for preset in PRESETS.values() if preset.name in cell.presets), GRID)


def _sweep(found: Sweep) -> str:
    head = ["prompts", *(f"{found.parameter} = {value:g}" for value in found.at)]
    return (
        f"<h3>{escape(sweep_title(found))}</h3>{curve(found)}{_table(head, map(_row, sweep_rows(found)))}"
        f"<p>{escape(RANKS)}</p><ul>{_list(rank_lines(found))}</ul>"
    )


# --- the clips --------------------------------------------------------------------------------------------------------


def _data(results: Results, folder: Path) -> dict[str, Any]:
    """What the scripts show: the variants, the prompts, and each clip as a picture of all its frames."""
    study = results.study
    jobs = [job for job in study.jobs() if job.name in results.finished]
    pictures: dict[str, int] = {}
    clips = {}
    for job in progress(jobs, len(jobs), "clips"):
        picture, columns, size = _picture(Clip.open(clip_file(folder, job.name)).frames)
        values = results.measures.get(job.key, {})
        clips[job.name] = {
            "cell": job.cell.id,
            "prompt": job.prompt,
            "seed": job.seed,
            "caption": " · ".join(
                f"{METRICS[name].title} {number(values[name])}" for name in CAPTION if values.get(name) is not None
            ),
            "picture": pictures.setdefault(picture, len(pictures)),
            "columns": columns,
            "size": size,
        }
    return {
        "digest": results.digest,
        "full": study.full,
        "fps": study.fps,
        "frames": study.frames,
        "square": max(study.width, study.height) <= SMALL,
        "cells": [{"id": cell.id, "label": cell.label} for cell in study.cells],
        "prompts": [{"text": prompt.text, "set": prompt.set} for prompt in study.prompts],
        "seeds": list(study.seeds),
        "clips": clips,
        "pictures": list(pictures),
    }


def _picture(frames: Frames) -> tuple[str, int, list[int]]:
    """All frames in one grid: its data: address, its number of columns, and the [width, height] of a frame in it."""
    count, height, width = frames.shape[:3]
    large = max(height, width) > LARGE
    if large:
        scale = LARGE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frames = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])
        width, height = size
    columns = max(1, min(count, WIDEST // width))
    grid = Image.new("RGB", (columns * width, -(-count // columns) * height))
    for i, frame in enumerate(frames):
        grid.paste(Image.fromarray(frame), (i % columns * width, i // columns * height))
    out = io.BytesIO()
    grid.save(out, "WEBP", **({"quality": 85} if large else {"lossless": True}))
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}", columns, [width, height]
