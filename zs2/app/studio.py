"""The models of the page, each loaded once, and who is at work for which visitor."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from zs2.app.clip_options import ClipOptions, Limits
from zs2.app.preview import Preview
from zs2.app.worker import Job, Worker
from zs2.errors import choose
from zs2.evaluation.clip_scorer import Scorer, own_clip
from zs2.evaluation.metrics import METRICS
from zs2.pipeline import ZS2
from zs2.system.registry import load
from zs2.video.clip import Clip
from zs2.video.formats import Frames


class Loaded:
    """A model, and what the page needs with it."""

    def __init__(self, name: str, model: ZS2) -> None:
        self.name, self.model = name, model
        self.preview = Preview(model)
        self._steered = {"": model}  # by ControlNet

    def steered(self, controlnet: str) -> ZS2:
        """The model with a ControlNet, loaded at its first use; an empty name is none. Raises: InputError."""
        if controlnet not in self._steered:
            self._steered[controlnet] = self.model.with_controlnet(controlnet)
        return self._steered[controlnet]

    @property
    def own(self) -> dict[str, Any]:
        """The checkpoint's own settings, as keywords."""
        return self.model.own_settings.request | self.model.own_settings.method

    def examples(self, most: int) -> list[str]:
        """Prompts of the checkpoint: those that name a background, and those that do not, in turns."""
        own = self.model.own_settings
        mixed = [text for pair in zip_longest(own.prompts, own.open_prompts) for text in pair if text]
        return mixed[:most]

    @cached_property
    def scorer(self) -> Scorer | None:
        """The CLIP in the folder of the model, or of its base; None if there is none. Nothing is fetched for it."""
        model = own_clip(self.name)
        return None if model is None else Scorer.from_pretrained(model, self.model.device)

    def measure(self, frames: Frames) -> dict[str, float | None]:
        """Motion and identity of a clip, by METRICS. Identity needs the model's own CLIP."""
        images = None if self.scorer is None else self.scorer.embed_frames(frames)
        identity = None if images is None else load(METRICS["clip-first"].compute)(images)
        return {"motion": load(METRICS["motion"].compute)(frames), "identity": identity}


class Choices:
    """What each visitor chose last in the lists of the page.

    Gradio calls a choice twice, and calls a list that only lost the focus, too. What a choice fills in may be filled in
    once only: a visitor changes it afterwards.
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._last: dict[str, dict[str, str]] = {}  # by visitor
        self._lock = threading.Lock()

    def begin(self, **values: str) -> None:
        """What lists show at first, by the name of the list."""
        self._first |= values

    def changed(self, visitor: str, **values: str) -> bool:
        """Note what lists of a visitor show now. Returns: whether any shows something else than before."""
        with self._lock:
            last = self._last.setdefault(visitor, dict(self._first))
            changed = any(last.get(name) != value for name, value in values.items())
            last |= values
        return changed

    def forget(self, visitor: str) -> None:
        """Forget a visitor who left."""
        with self._lock:
            self._last.pop(visitor, None)


class Studio:
    """All that visitors share.

    Args:
        names: of the models to choose from. limits: of a clip. loading: keywords of `ZS2.from_pretrained`.
        default: the model that commands use without --model. networks: the ControlNets to choose from.
    """

    def __init__(
        self,
        names: Sequence[str],
        limits: Limits,
        loading: Mapping[str, Any],
        default: str = "",
        networks: Sequence[str] = (),
    ) -> None:
        self.names, self.limits, self.loading, self.default = tuple(names), limits, loading, default
        self.networks = tuple(networks)
        self.worker = Worker(limits.queue)
        self.choices = Choices()
        self._loaded: dict[str, Loaded] = {}
        self._jobs: dict[str, Job] = {}
        self.results: dict[str, tuple[Clip, ClipOptions]] = {}  # by visitor: a clip whose files are not shown yet
        self._lock = threading.Lock()

    def loaded(self, name: str) -> Loaded:
        """A model, loaded at its first use: call this in the worker's thread, or before there are visitors.

        Raises: InputError if it is none of the page's, or can't be loaded.
        """
        self.check(name)
        if name not in self._loaded:
            self._loaded[name] = Loaded(name, ZS2.from_pretrained(name, **self.loading))
        return self._loaded[name]

    def check(self, name: str) -> str:
        """The name, if it is one of the page's models. Raises: InputError."""
        return choose("model", name, self.names)

    def check_controlnet(self, name: str) -> str:
        """The name, if it is one of the page's ControlNets. Raises: InputError."""
        return choose("ControlNet", name, self.networks)

    def is_default(self, name: str) -> bool:
        """Whether commands without --model use this model, also by its path."""
        return bool(self.default) and Path(name).absolute() == Path(self.default).absolute()

    def ready(self, name: str) -> Loaded | None:
        """A model, if it is loaded."""
        return self._loaded.get(name)

    def own(self, name: str) -> dict[str, Any]:
        """A model's own settings as far as they are known, without loading it."""
        return self._loaded[name].own if name in self._loaded else {}

    def submit(self, visitor: str, job: Job) -> Job:
        """Put a visitor's job into the line. Their job before it is stopped. Raises: InputError if the line is full."""
        self.stop(visitor)
        self.worker.submit(job)
        with self._lock:
            self._jobs[visitor] = job
        return job

    def leave(self, visitor: str, job: Job) -> None:
        """Stop a job if it has not ended, and forget it."""
        self.worker.stop(job)
        with self._lock:
            if self._jobs.get(visitor) is job:
                del self._jobs[visitor]

    def stop(self, visitor: str) -> None:
        """Stop a visitor's job, if there is one."""
        with self._lock:
            job = self._jobs.pop(visitor, None)
        if job is not None:
            self.worker.stop(job)

    def forget(self, visitor: str) -> None:
        """Stop the job of a visitor who left, and forget the visitor."""
        self.stop(visitor)
        self.results.pop(visitor, None)
        self.choices.forget(visitor)
