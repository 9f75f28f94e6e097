"""The clips of the page, as data for its scripts: each is a picture of all its frames. No torch here."""

from __future__ import annotations

import base64
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zs2.evaluation.metrics import METRICS
from zs2.reporting.numbers import number
from zs2.sampling.request import INPUTS
from zs2.study.cells import corners
from zs2.study.inputs import input_file
from zs2.study.results import Results
from zs2.study.study import Job, clip_file
from zs2.system.progress import progress
from zs2.video.clip import Clip
from zs2.video.encoding import frame_rate
from zs2.video.formats import Frames

CAPTION = ("clip-score", "motion")  # the metrics below a clip
SMALL = 64  # pixels: frames up to this are shown with square pixels; larger ones would have uneven ones
LARGE = 256  # larger frames are reduced to this, and stored as lossy WebP
WIDEST = 8192  # of a picture of all frames


def page_data(results: Results, folder: Path) -> dict[str, Any]:
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
    found = {place: input_file(folder, *place) for place in product(INPUTS, range(len(study.prompts)))}
    inputs = [name for name in INPUTS if any(file for (one, _), file in found.items() if one == name)]
    for (name, prompt), file in found.items():
        if file is not None:
            picture, columns, size = _picture(_as_long(Clip.open(file).frames, study.frames))
            shown = {"picture": pictures.setdefault(picture, len(pictures)), "columns": columns, "size": size}
            for seed in study.seeds:
                clips[f"{name} {prompt} {seed}"] = {
                    "cell": name,
                    "prompt": prompt,
                    "seed": seed,
                    "caption": "",
                    **shown,
                }
    return {
        "digest": results.digest,
        "full": study.full,
        "fps": float(frame_rate(study.fps)),
        "frames": study.frames,
        "square": max(study.width, study.height) <= SMALL,
        "inputs": [{"id": name, "label": f"input: {name.replace('_', ' ')}"} for name in inputs],
        "cells": [{"id": cell.id, "label": cell.label} for cell in study.cells],
        "prompts": [{"text": prompt.text, "set": prompt.set} for prompt in study.prompts],
        "corners": _corners(results),
        "seeds": list(study.seeds),
        "clips": clips,
        "pictures": list(pictures),
    }


def _as_long(frames: Frames, count: int) -> Frames:
    """As many frames: the last one is repeated."""
    return np.concatenate([frames, frames[-1:].repeat(count, axis=0)])[:count]


def _corners(results: Results) -> dict[str, Any]:
    """The variants of the first picture, and the prompt that it shows first.

    That is the first prompt with words of the last set, the open ones by default: what a prompt leaves open is where
    variants differ most. A prompt that has all the clips comes before others.
    """
    study = results.study
    cells = corners(study.cells, results.full)

    def rank(prompt: int) -> tuple[bool, bool, bool]:
        names = [Job(cell, prompt, study.seeds[0]).name for cell in cells]
        one = study.prompts[prompt]
        return not results.finished.issuperset(names), not one.text.strip(), one.set != study.prompts[-1].set

    return {"cells": [cell.id for cell in cells], "prompt": min(range(len(study.prompts)), key=rank)}


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
