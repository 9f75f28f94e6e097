"""Sampling and measuring the clips of an ablation study with one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zs2.checkpoints.hub import DEFAULT_MODEL, is_hub_id
from zs2.cli.derived_options import loading
from zs2.errors import InputError, brief
from zs2.evaluation.clip_scorer import Scorer, scoring_model
from zs2.evaluation.lpips import LPIPS
from zs2.evaluation.measure import is_valid, measure, protocol
from zs2.evaluation.metrics import METRICS
from zs2.method import NOISE_MODELS
from zs2.pipeline import ZS2
from zs2.sampling.plan import resolve
from zs2.sampling.prompt_syntax import read_as
from zs2.sampling.request import Request
from zs2.study.cells import Cell
from zs2.study.inputs import Inputs, opened
from zs2.study.lock import Workplace
from zs2.study.planning import possible_cells
from zs2.study.stored import read_measures
from zs2.study.study import Job, Study, clip_file, files_of, folders, is_finished, measures_file
from zs2.system.atomic import write_json
from zs2.system.devices import own_device
from zs2.system.json_files import read_json
from zs2.video.clip import Clip
from zs2.video.encoding import frame_rate
from zs2.video.formats import Frames


def load(options: Mapping[str, Any], study: Study) -> tuple[ZS2, Study]:
    """The model, and the study with the model's weights, size and dtype.

    Raises: InputError if there is no such model, or if it can't sample what is asked for.
    """
    keywords = loading(options) | {"dtype": study.dtype, "compile": study.compile}
    model = ZS2.from_pretrained(study.model, device=own_device(options.get("device")), **keywords)
    inputs, jobs = opened(options), [Job(study.cells[0], i, study.seeds[0]) for i in range(len(study.prompts))]
    asked = [Request(**request(study, job, inputs)) for job in jobs]
    first = asked[0]
    model.text.warn_of_unused([text for one in asked for text in one.texts])
    settings = model.settings(resolve(model.image_model, model.method, first), frame_rate(study.fps))

    def check(cell: Cell, prompt: int) -> None:
        variant = model.variant(**cell.method)
        asked = Request(**request(study, Job(cell, prompt, study.seeds[0]), inputs))
        resolve(variant.image_model, variant.method, asked)

    fitting = possible_cells(study, inputs, check)
    study = replace(
        fitting,
        model=public_name(study.model, settings["model"]),
        threads=torch.get_num_threads() if model.device.type == "cpu" else None,
        **{
            name: settings[name] for name in ("weights", "lora", "embeddings", "controlnet", "width", "height", "dtype")
        },
    )
    return model, study


def choose_scorer(
    options: Mapping[str, Any], study: Study, device: torch.device
) -> tuple[Scorer, str] | tuple[None, str]:
    """The CLIP that scores: that of the options, or the default one of the model; or None, and why there is none.

    Raises: InputError if that of the options can't be loaded.
    """
    try:
        default = scoring_model(options.get("model", study.model))
        return Scorer.from_pretrained(options.get("clip", default), device), ""
    except InputError as error:
        if "clip" in options:
            raise
        return None, str(error)


def read_lpips(options: Mapping[str, Any]) -> LPIPS | None:
    """The network of --lpips, if it is there. Raises: InputError if it can't be read."""
    return LPIPS.read(options["lpips"]) if "lpips" in options else None


def check_measured_alike(
    folder: Path, known: Study, study: Study, options: Mapping[str, Any], scorer: Scorer | None, lpips: LPIPS | None
) -> None:
    """Refuse to measure a study in another way than before, unless an option asks for that, for all of its clips.

    known: the study that is there. study: what is asked for.

    Raises: InputError if it has measures by another CLIP or LPIPS, and --clip or --lpips is absent, or some of its
        clips would keep them.
    """
    if scorer is None:  # then nothing is measured
        return
    measured = files_of(folders(folder)[1])
    some = not {job.name for job in known.jobs()} <= {job.name for job in study.jobs()}
    anew, digest = "without options for cells, prompts and seeds", lpips and lpips.digest
    for job in known.jobs():
        if f"{job.name}.json" not in measured:
            continue
        try:
            _, before = read_measures(measures_file(folder, job.name))
        except InputError:  # a machine that went down cut it short: the clip is measured again
            continue
        was = before.get("lpips")
        if was != digest and (some or lpips is None):
            with_it = f"with LPIPS (SHA-256 {str(was)[:12]}): give the same --lpips"
            way = with_it if was else "without LPIPS: leave it out"
            other = "give this one" if lpips else f"remove {folders(folder)[1]} and give the command"
            raise InputError(
                f"{folder}: the study was measured {way}, or, to measure all its clips anew, {other} {anew}"
            )
        if before.get("clip_sha256", scorer.digests) != scorer.digests and (some or "clip" not in options):
            raise InputError(
                f"{folder}: the study was measured with the CLIP {brief(before.get('clip'))}, now it would be "
                f"{scorer_name(scorer)!r}: give the same --clip, or, to measure all its clips anew, this one {anew}"
            )


def share_threads(study: Study) -> None:
    """Use as many threads as the study's other processes, so that clips have the same bytes."""
    if study.threads is not None:
        torch.set_num_threads(study.threads)


def scorer_name(scorer: Scorer) -> str:
    """How records name the CLIP that scores."""
    return public_name(scorer.name, Path(scorer.name).name)


def public_name(model: str, name: str) -> str:
    """How records name a model: the default model's path, an id on the hub, or else its name. No other path."""
    if Path(model) == Path(DEFAULT_MODEL):
        return DEFAULT_MODEL
    return model if is_hub_id(model) and not Path(model).exists() else name


def request(study: Study, job: Job, inputs: Inputs) -> dict[str, Any]:
    """The arguments of a clip's `Request`. Of a frozen cell one frame is sampled. inputs: the study's."""
    text, sampling = study.prompts[job.prompt].text, study.sampling
    syntax = read_as((text, sampling["negative_prompt"]), sampling["prompt_syntax"])  # the plan has warned of it
    frames = {"frames": 1, "chunk": 1} if job.cell.frozen else {"chunk": study.chunk}
    return {
        "prompt": text,
        **sampling,
        "prompt_syntax": syntax,
        **inputs.of(job.prompt),
        "seed": job.seed,
        "height": study.height or None,
        "width": study.width or None,
        **frames,
    }


class Runner:
    """Samples and measures clips, and knows which are finished.

    Args:
        scorer: the CLIP; None if there is none: then nothing is measured.
        inputs: the study's, by name.
        lpips: the network of that metric; None leaves it out.
    Attributes:
        failed: {name of a clip whose latents became NaN or infinite: the error's message}.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        model: ZS2,
        scorer: Scorer | None,
        inputs: Inputs | None = None,
        lpips: LPIPS | None = None,
    ) -> None:
        self.folder, self.study, self.scorer, self.inputs, self.lpips = folder, study, scorer, inputs or Inputs(), lpips
        self.protocol: dict[str, Any] | None = None
        if scorer is not None:
            self.protocol = protocol(scorer, scorer_name(scorer), lpips)
        self.failed: dict[str, str] = {}
        self.variant = cache(lambda cell: model.variant(**cell.method))  # on the same weights

    def finished(self, job: Job) -> bool:
        """Whether a clip is there."""
        return is_finished(self.folder, job.name)

    def measured(self, job: Job) -> bool:
        """Whether a clip has measures that are valid now. True without a scorer, because nothing can be measured."""
        if self.protocol is None:
            return True
        try:
            return is_valid(read_json(measures_file(self.folder, job.name)).get("protocol"), self.protocol)
        except InputError:  # there are none, or a machine that went down cut them short
            return False

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are left to do."""
        return [job for job in jobs if not (self.finished(job) and self.measured(job))]

    def run(self, jobs: Sequence[Job], place: Workplace) -> Iterator[Job]:
        """Do jobs, except those that another process is doing. Yields each job after it was done or skipped."""
        for job in jobs:
            with place.claim(job.name) as mine:
                if mine:
                    self._do(job)
            yield job

    def _do(self, job: Job) -> None:
        file, clip = clip_file(self.folder, job.name), None
        if not self.finished(job):
            try:
                clip = self.sample(job)
            except FloatingPointError as error:  # the other clips may be fine
                self.failed[job.name] = str(error)
                return
            clip.save(file, overwrite=True)  # what is there is cut short
        if self.scorer is not None and not self.measured(job):
            frames = (Clip.open(file) if clip is None else clip).frames
            write_json(measures_file(self.folder, job.name), self.measures(job, frames, self.scorer))

    def sample(self, job: Job) -> Clip:
        """A clip. Raises: FloatingPointError for NaN or infinite latents."""
        clip = self.variant(job.cell)(fps=self.study.fps, **request(self.study, job, self.inputs))
        if not job.cell.frozen:
            return clip
        frames = np.repeat(clip.frames, self.study.frames, axis=0)
        return Clip(frames, clip.fps, clip.settings | {"frames": self.study.frames, "frozen": True})

    def measures(self, job: Job, frames: Frames, scorer: Scorer) -> dict[str, Any]:
        """What is stored of a clip's metrics."""
        cell = job.cell
        more: dict[str, Any] = {"noises": None, "method": None, "lpips": self.lpips}
        drawn = NOISE_MODELS[cell.noise].start is None and "first_frame" not in self.inputs.of(job.prompt)
        if drawn and not cell.frozen and len(frames) > 1:
            variant, asked = self.variant(cell), Request(**request(self.study, job, self.inputs))
            plan = resolve(variant.image_model, variant.method, asked)
            more |= {"noises": plan.initial_noise(), "method": variant.method}
        values = measure(frames, self.study.prompts[job.prompt].text, scorer, more)
        return {
            "cell": cell.id,
            "prompt": job.prompt,
            "seed": job.seed,
            "protocol": self.protocol,
            "metrics": {name: values[name] for name in METRICS},
        }
