"""Studies for the tests of the report: a real one of the default checkpoint, and made-up ones of known numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers import CHECKPOINT

from zs2.ablate import main as ablate
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.evaluation.metrics import METRICS
from zs2.sampling.request import DEFAULTS, OPTIONS
from zs2.study.cells import Cell
from zs2.study.prompts import Prompt
from zs2.study.study import Job, Study, clip_file, measures_file
from zs2.system.atomic import write_json
from zs2.video.clip import Clip

SCRIPT, MARKS = "<script>alert(1)</script>", "=1+1 | [x](y) *z*"
PROTOCOL: dict[str, Any] = {"clip": "a CLIP", "clip_sha256": {}, "comparable": True, "opencv": None, "zs2": "0.1.0"}
PROTOCOL["metrics"] = list(METRICS)
PROMPTS = (Prompt("red apple"), Prompt(SCRIPT), Prompt("cat", "open"), Prompt("", "open"))

Measure = Callable[[Job], Mapping[str, object] | None]  # a clip's metrics; those it leaves out are null


def real_study(folder: Path) -> Path:
    """A study of two variants, three prompts and two seeds, by the command."""
    prompts = folder / "prompts.txt"
    prompts.write_text(f'{SCRIPT}\n{MARKS}\n[open]\n""\n', encoding="utf-8")
    brief = ["--steps", "1", "--frames", "3", "--size", "16x16", "--seeds", "0..1"]
    cells = ["--noise", "dnm", "shared", "--attn", "tma"]
    out = folder / "study"
    assert ablate(["--model", str(CHECKPOINT), "--prompts", str(prompts), *brief, *cells, "--out", str(out)]) == 0
    return out


def made_up_study(
    folder: Path,
    cells: Sequence[Cell],
    measure: Measure,
    prompts: Sequence[Prompt] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    made: Callable[[Job], bool] = lambda job: True,
) -> Study:
    """A study whose first cell is the reference, of 4 frames of 16×16 in one colour each: see `colour`."""
    study = Study(
        zs2="0.1.0",
        model=DEFAULT_MODEL,
        weights={"unet": "0123456789abcdef"},
        sampling=DEFAULTS | {"steps": 1, "frames": 4, "guidance": 5.0},
        width=16,
        height=16,
        fps=8,
        dtype="float32",
        chunk=4,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        full=cells[0].id,
        cells=tuple(cells),
    )
    (folder / "clips").mkdir(parents=True)
    (folder / "measures").mkdir()
    study.write(folder)
    for job in filter(made, study.jobs()):
        frames = [np.full((16, 16, 3), colour(study, job, frame), np.uint8) for frame in range(study.frames)]
        Clip(np.stack(frames), study.fps, {"fps": study.fps, "frames": study.frames}).save(clip_file(folder, job.name))
        metrics = measure(job)
        if metrics is not None:
            write_json(measures_file(folder, job.name), {"protocol": PROTOCOL, "metrics": metrics})
    return study


def changed(study: Study, **changes: Any) -> Study:
    """A study with other settings, sampling options among them."""
    sampling = study.sampling | {name: value for name, value in changes.items() if name in OPTIONS}
    return replace(study, sampling=sampling, **{name: changes[name] for name in changes.keys() - OPTIONS.keys()})


def colour(study: Study, job: Job, frame: int) -> tuple[int, int, int]:
    """Red says the frame, green the cell, blue the prompt and the seed; stills are all frame 0 of the first cell."""
    frame, cell = (0, 0) if job.cell.still else (frame, study.cells.index(job.cell))
    return 40 * frame + 20, 20 * cell + 10, 40 * job.prompt + 10 * study.seeds.index(job.seed)
