"""The models of the page, each loaded once, and who is at work for which visitor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from zs2.app.clip_options import ClipOptions, Limits
from zs2.app.preview import Preview
from zs2.app.worker import STOPPED, Job, Worker
from zs2.cli.model_names import names_of_paths, shown_names
from zs2.errors import choose
from zs2.evaluation.clip_scorer import Scorer, own_clip
from zs2.evaluation.metrics import METRICS
from zs2.pipeline import ZS2
from zs2.system.registry import load
from zs2.video.clip import Clip
from zs2.video.formats import Frames

VISITORS, KEPT = 10_000, 2**30  # how many are known, and the bytes of clips that are kept for them, at most


class Loaded:
    """A model, and what the page needs with it.

    place: as the server's owner named it. networks: the ControlNets, likewise, by the names that are shown.
    """

    def __init__(self, place: str, model: ZS2, networks: Mapping[str, str] | None = None) -> None:
        self.place, self.model, self.networks = place, model, networks or {}
        self.preview = Preview(model)
        self._steered = {"": model}  # by ControlNet

    def steered(self, controlnet: str) -> ZS2:
        """The model with a ControlNet, loaded at its first use; an empty name is none. Raises: InputError."""
        if controlnet not in self._steered:
            self._steered[controlnet] = self.model.with_controlnet(self.networks[controlnet])
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
        model = own_clip(self.place)
        return None if model is None else Scorer.from_pretrained(model, self.model.device)

    def measure(self, frames: Frames) -> dict[str, float | None]:
        """Motion and identity of a clip, by METRICS. Identity needs the model's own CLIP."""
        images = None if self.scorer is None else self.scorer.embed_frames(frames)
        identity = None if images is None else load(METRICS["clip-first"].compute)(images)
        return {"motion": load(METRICS["motion"].compute)(frames), "identity": identity}


@dataclass
class Visitor:
    """What the page knows of a visitor.

    Attributes:
        chosen: what they chose last in the lists of the page, by the name of the list.
        job: their clip or stream, until it has ended.
        over: the number of their last press that was stopped, or that is followed by another one.
        made: a clip whose files are not shown yet, and what it was made by.
        writing: the same, while its files are written.
        turn: what fills in settings waits for it.
    """

    chosen: dict[str, str]
    job: Job | None = None
    over: int = 0
    made: tuple[Clip, ClipOptions] | None = None
    writing: tuple[Clip, ClipOptions] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Visitors:
    """The visitors of the page, by name.

    Some leave without a word, and what one of them began may end after it. So there is a bound to how many are known,
    and to the bytes of the clips that are kept for them. Who was silent longest is forgotten first.
    """

    def __init__(self, most: int = VISITORS, bytes_most: int = KEPT) -> None:
        self.most, self.bytes_most = most, bytes_most
        self.lock = threading.RLock()
        self._first: dict[str, str] = {}
        self._known: dict[str, Visitor] = {}  # who was silent longest comes first

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, **chosen: str) -> None:
        """What lists show at first, by the name of the list."""
        self._first |= chosen

    def get(self, name: str) -> Visitor | None:
        """A visitor, if they are known."""
        return self._known.get(name)

    def enter(self, name: str) -> Visitor:
        """A visitor who did something."""
        with self.lock:
            self._known[name] = found = self._known.pop(name, None) or Visitor(dict(self._first))
            if len(self._known) > self.most:  # the line bounds how many have a job
                del self._known[next(name for name, one in self._known.items() if one.job is None)]
        return found

    def changed(self, name: str, **chosen: str) -> bool:
        """Note what a visitor chose in lists. Returns: whether any shows something else than before.

        Gradio calls a choice twice, and calls a list that only lost the focus, too. What a choice fills in may be
        filled in once only: a visitor changes it afterwards.
        """
        with self.lock:
            last = self.enter(name).chosen
            changed = any(last.get(key) != value for key, value in chosen.items())
            last |= chosen
        return changed

    def note(self, name: str, **chosen: str) -> None:
        """Note what lists show now, if the visitor did not leave meanwhile."""
        if (found := self.get(name)) is not None:
            found.chosen |= chosen

    def keep(self, name: str, made: tuple[Clip, ClipOptions] | None) -> None:
        """Keep a clip until its files are shown, if the visitor did not leave meanwhile; None drops the last one."""
        with self.lock:
            if (found := self.get(name)) is None:
                return
            found.made = made
            others = (one for one in self._known.values() if one is not found)
            kept = [one for one in others if one.made is not None and one.made is not one.writing]
            total = sum(one.made[0].frames.nbytes for one in (*kept, found) if one.made is not None)
            for one in kept:
                if total > self.bytes_most and one.made is not None:
                    total -= one.made[0].frames.nbytes
                    one.made = None

    def forget(self, name: str) -> None:
        """Forget a visitor who left."""
        with self.lock:
            self._known.pop(name, None)


class Studio:
    """All that visitors share.

    Args:
        models: those to choose from, as --model takes them. limits: of a clip.
        loading: keywords of `ZS2.from_pretrained`. default: the model that commands use without --model.
        networks: the ControlNets to choose from.
    Attributes:
        names, networks: how visitors see and choose them: without the folders of the server.
        names_of_paths: what stands for their paths in messages.
    """

    def __init__(
        self,
        models: Sequence[str],
        limits: Limits,
        loading: Mapping[str, Any],
        default: str = "",
        networks: Sequence[str] = (),
    ) -> None:
        self.limits, self.loading, self.default = limits, loading, default
        self._models, self._networks = shown_names(models), shown_names(networks)
        self.names, self.networks = tuple(self._models), tuple(self._networks)
        self.names_of_paths = names_of_paths([*self._models.items(), *self._networks.items()])
        self.worker = Worker(limits.queue)
        self.visitors = Visitors()
        self._loaded: dict[str, Loaded] = {}

    def loaded(self, name: str) -> Loaded:
        """A model, loaded at its first use: call this in the worker's thread, or before there are visitors.

        Raises: InputError if it is none of the page's, or can't be loaded.
        """
        self.check(name)
        if name not in self._loaded:
            place = self._models[name]
            self._loaded[name] = Loaded(place, ZS2.from_pretrained(place, **self.loading), self._networks)
        return self._loaded[name]

    def check(self, name: str) -> str:
        """The name, if it is one of the page's models. Raises: InputError."""
        return choose("model", name, self.names)

    def check_controlnet(self, name: str) -> str:
        """The name, if it is one of the page's ControlNets. Raises: InputError."""
        return choose("ControlNet", name, self.networks)

    def is_default(self, name: str) -> bool:
        """Whether commands without --model use this model, also by its path."""
        place = self._models.get(name)
        return bool(self.default) and place is not None and Path(place).absolute() == Path(self.default).absolute()

    def ready(self, name: str) -> Loaded | None:
        """A model, if it is loaded."""
        return self._loaded.get(name)

    def own(self, name: str) -> dict[str, Any]:
        """A model's own settings as far as they are known, without loading it."""
        return self._loaded[name].own if name in self._loaded else {}

    def submit(self, name: str, job: Job, press: int = 0) -> Job:
        """Put a visitor's job into the line. Their job before it is stopped.

        press: the number of the visitor's press that began it, if it has one. If that press is over, so is the job.
        Raises: InputError if the line is full.
        """
        with self.visitors.lock:
            visitor, job.press = self.visitors.enter(name), press
            if 0 < press <= visitor.over:
                job.end(STOPPED)
                return job
            self.stop(name)
            visitor.over = max(visitor.over, press - 1)
            visitor.job = self.worker.submit(job)
        return job

    def leave(self, name: str, job: Job) -> None:
        """Stop a job if it has not ended, and forget it."""
        self.worker.stop(job)
        with self.visitors.lock:
            if (visitor := self.visitors.get(name)) is not None and visitor.job is job:
                visitor.job = None

    def stop(self, name: str, press: int | None = None) -> None:
        """Stop a visitor's job, if there is one.

        press: the number of the press that is stopped; 0 before the first one. What it began may come later; what a
            later press began goes on. None stops any job.
        """
        with self.visitors.lock:
            visitor = self.visitors.enter(name)
            visitor.over = max(visitor.over, press or 0)
            job = visitor.job
            if job is not None and (press is None or job.press <= press):
                visitor.job = None
                self.worker.stop(job)

    def forget(self, name: str) -> None:
        """Stop the job of a visitor who left, and forget the visitor."""
        with self.visitors.lock:
            self.stop(name)
            self.visitors.forget(name)
