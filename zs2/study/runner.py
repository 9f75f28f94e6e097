"""Making and measuring the clips of an ablation study with one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zs2.checkpoints.hub import DEFAULT_MODEL, is_hub_id
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
from zs2.evaluation.measure import is_valid, measure, protocol
from zs2.evaluation.metrics import METRICS
from zs2.method import NOISE_MODELS
from zs2.pipeline import ZS2
from zs2.sampling.plan import resolve
from zs2.sampling.request import Request
from zs2.study.lock import Workplace
from zs2.study.planning import SAMPLING
from zs2.study.study import Job, Study, clip_file, is_made, measures_file
from zs2.system.atomic import write_json
from zs2.system.devices import own_device
from zs2.system.json_files import read_json
from zs2.video.clip import Clip
from zs2.video.formats import Frames


def load(given: Mapping[str, Any], study: Study) -> tuple[ZS2, Study]:
    """The model, and the study with what it says: weights and size.

    Raises: InputError if there is no such model, or if it can't sample what is asked for.
    """
    options = {name: given[name] for name in ("prediction", "lora") if name in given}
    model = ZS2.from_pretrained(study.model, device=own_device(given.get("device")), dtype=study.dtype, **options)
    first = Request(**request(study, Job(study.cells[0], 0, study.seeds[0])))
    settings = model.settings(resolve(model.image_model, model.method, first), study.fps)
    study = replace(
        study,
        model=public(study.model, settings["model"]),
        threads=torch.get_num_threads() if model.device.type == "cpu" else None,
        **{name: settings[name] for name in ("weights", "lora", "width", "height")},
    )
    return model, study


def share_threads(study: Study) -> None:
    """Compute with as many threads as the study's other processes, whose clips have the same bytes for it."""
    if study.threads is not None:
        torch.set_num_threads(study.threads)


def public(given: str, name: str) -> str:
    """What records say of a model: the default's path or an id on the hub as given, but no other path."""
    if Path(given) == Path(DEFAULT_MODEL):
        return DEFAULT_MODEL
    return given if is_hub_id(given) and not Path(given).exists() else name


def request(study: Study, job: Job) -> dict[str, Any]:
    """The arguments of a clip's `Request`. Of a frozen cell one frame is sampled."""
    return {
        "prompt": study.prompts[job.prompt].text,
        "frames": 1 if job.cell.frozen else study.frames,
        **{name: getattr(study, name) for name in SAMPLING},
        "seed": job.seed,
        "height": study.height or None,
        "width": study.width or None,
        "chunk": 1 if job.cell.frozen else study.chunk,
    }


class Runner:
    """Makes and measures clips, and knows which are there.

    scorer: None if there is no CLIP; then nothing is measured.
    failed: the clips whose latents became NaN or infinite, and what was said of them.
    """

    def __init__(self, folder: Path, study: Study, model: ZS2, scorer: Scorer | None) -> None:
        self.folder, self.study, self.scorer = folder, study, scorer
        self.protocol = None if scorer is None else protocol(scorer, public(scorer.name, Path(scorer.name).name))
        self.failed: dict[str, str] = {}
        self.variant = cache(lambda cell: model.variant(**cell.method))  # on the same weights

    def made(self, job: Job) -> bool:
        """Whether a clip is there."""
        return is_made(self.folder, job.name)

    def measured(self, job: Job) -> bool:
        """Whether a clip's measures are there, by this protocol; or none can be taken."""
        if self.protocol is None:
            return True
        try:
            return is_valid(read_json(measures_file(self.folder, job.name)).get("protocol"), self.protocol)
        except InputError:  # there are none, or a machine that went down cut them short
            return False

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are left to do."""
        return [job for job in jobs if not (self.made(job) and self.measured(job))]

    def run(self, jobs: Sequence[Job], place: Workplace) -> Iterator[Job]:
        """Do jobs, but those that another process is at; yields each when it is done or left."""
        for job in jobs:
            with place.claim(job.name) as mine:
                if mine:
                    self._do(job)
            yield job

    def _do(self, job: Job) -> None:
        file, clip = clip_file(self.folder, job.name), None
        if not self.made(job):
            try:
                clip = self.sample(job)
            except FloatingPointError as error:  # the other clips may be fine
                self.failed[job.name] = str(error)
                return
            clip.save(file)
        if self.scorer is not None and not self.measured(job):
            frames = (Clip.open(file) if clip is None else clip).frames
            write_json(measures_file(self.folder, job.name), self.measures(job, frames, self.scorer))

    def sample(self, job: Job) -> Clip:
        """A clip. Raises: FloatingPointError for NaN or infinite latents."""
        clip = self.variant(job.cell)(fps=self.study.fps, **request(self.study, job))
        if not job.cell.frozen:
            return clip
        frames = np.repeat(clip.frames, self.study.frames, axis=0)
        return Clip(frames, clip.fps, clip.settings | {"frames": self.study.frames, "frozen": True})

    def measures(self, job: Job, frames: Frames, scorer: Scorer) -> dict[str, Any]:
        """What is stored of a clip's metrics."""
        cell = job.cell
        own_noises = not cell.frozen and len(frames) > 1 and NOISE_MODELS[cell.noise].start is None
        variant = self.variant(cell)
        drawn = resolve(variant.image_model, variant.method, Request(**request(self.study, job)))
        noise = {
            "noises": drawn.initial_noise() if own_noises else None,
            "method": variant.method if own_noises else None,
        }
        values = measure(frames, self.study.prompts[job.prompt].text, scorer, noise)
        return {
            "cell": cell.id,
            "prompt": job.prompt,
            "seed": job.seed,
            "protocol": self.protocol,
            "metrics": {name: values[name] for name in METRICS},
        }
