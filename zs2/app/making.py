"""The work behind the page's buttons: one clip, several side by side, or a stream, with previews after each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from zs2.app.clip_options import ClipOptions, Limits
from zs2.app.film import film
from zs2.app.studio import Loaded, Studio
from zs2.app.worker import Job, Stop
from zs2.errors import collected, counted
from zs2.pipeline import ZS2
from zs2.sampling.decoding import at_once, decode_frames
from zs2.sampling.plan import SamplingPlan
from zs2.sampling.sampler import Sampler
from zs2.system.background import in_background
from zs2.video.clip import Clip
from zs2.video.formats import Frames

SHARE = 0.05  # of the time may go to previews
CHUNK = 8  # frames of a part of a stream
PATIENCE = 30  # seconds that a stream waits for a page that no longer takes its frames


@dataclass(frozen=True)
class Shown:
    """What there is to show of some clips.

    Args:
        films: the HTML of each. captions: a line below each.
        step, steps: how far the clip at work is. left: seconds that all of it is expected to take.
        clips: those that are done. options: what they were made by. notes: warnings.
    """

    films: tuple[str, ...]
    captions: tuple[str, ...]
    step: int = 0
    steps: int = 0
    left: float | None = None
    clips: tuple[Clip, ...] = ()
    options: tuple[ClipOptions, ...] = ()
    notes: tuple[str, ...] = ()
    frames: int = 0  # of a stream


class Watched(Sampler):
    """A sampler that calls `watch(step, latents)` after each step, also in streams."""

    def __init__(self, plan: SamplingPlan, watch: Callable[[int, Tensor], None]) -> None:
        super().__init__(plan)
        self.watch = watch

    def check(self, i: int, latents: Tensor) -> None:
        """Check the latents after step i, and call."""
        super().check(i, latents)
        self.watch(i, latents)


@dataclass
class Budget:
    """When a preview may be made, so that previews take at most SHARE of the time."""

    cost: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def allows(self) -> bool:
        """Whether there is time for one."""
        return self.cost == 0 or (time.monotonic() - self.last) * SHARE >= self.cost

    def spent(self, seconds: float) -> None:
        """A preview took so long."""
        self.cost, self.last = seconds, time.monotonic()


def make_clips(
    studio: Studio, job: Job, asked: Sequence[ClipOptions], titles: Sequence[str], *, measured: bool
) -> Generator[None]:
    """Make clips, one after the other. Publishes `Shown` after each step.

    titles: of the clips, and keys of their films. measured: whether motion and identity go below each.
    """
    shown, notes = Shown(("",) * len(asked), tuple(titles)), list[str]()
    for index, one in enumerate(asked):
        loaded = studio.loaded(one.model)
        one = replace(one, own=loaded.own)
        left_behind = sum(replace(other, own=loaded.own).cost for other in asked[index + 1 :])
        with collected(notes):
            shown = _make(studio, job, one, index, left_behind, shown, notes)
        if measured:
            values = loaded.measure(shown.clips[-1].frames)
            texts = (f"{name} {'—' if value is None else f'{value:.3f}'}" for name, value in values.items())
            captions = [*shown.captions]
            captions[index] = f"{captions[index]}\n{', '.join(texts)}"
            shown = replace(shown, captions=tuple(captions))
        job.publish(shown)
        if index + 1 < len(asked):
            yield


def _make(
    studio: Studio, job: Job, one: ClipOptions, index: int, more: float, shown: Shown, notes: Sequence[str]
) -> Shown:
    """Make one of the clips. index: which one. more: the cost of those after it. notes: the warnings so far.

    Returns: what there is to show.
    """
    loaded = studio.loaded(one.model)
    model, plan = planned(loaded, one, studio.limits)
    settings = in_background(lambda: model.settings(plan, one.fps))  # hashes the weights, once
    key, title = f"film{index}", shown.captions[index]
    start, budget = time.monotonic(), Budget()
    steps = plan.request.steps
    first: int | None = None  # a source leaves out the steps before it
    previewed = 0  # the version with the last preview: the next one is made when the page has taken it

    def watch(i: int, latents: Tensor) -> None:
        nonlocal shown, first, previewed
        job.check()
        now, first = time.monotonic(), i if first is None else first
        left = (now - start) / (i + 1 - first) * (steps - i - 1 + more * steps / one.cost)
        films = shown.films
        if budget.allows() and job.seen >= previewed:
            html = film(loaded.preview(latents), one.fps, f"preview after step {i + 1}: {one.prompt}", key, rough=True)
            films = (*films[:index], html, *films[index + 1 :])
            budget.spent(time.monotonic() - now)
            previewed = job.version + 1
        shown = replace(shown, films=films, step=i + 1, steps=steps, left=left, notes=tuple(notes))
        job.publish(shown)

    for step in Watched(plan, watch).steps():  # noqa: B007
        pass
    frames = decoded(job, plan, step.latents)
    clip = Clip(frames, one.fps, settings())
    html = film(frames, one.fps, f"{counted(len(frames), 'frame')}, {title}: {one.prompt}", key)
    films = (*shown.films[:index], html, *shown.films[index + 1 :])
    return replace(shown, films=films, clips=(*shown.clips, clip), options=(*shown.options, one), notes=tuple(notes))


def planned(loaded: Loaded, one: ClipOptions, limits: Limits, **request: object) -> tuple[ZS2, SamplingPlan]:
    """The model with the clip's method, and the plan. request: keywords that take the place of the clip's.

    Raises: InputError, also for a clip that the checkpoint's own settings or its size make larger than the page allows.
    """
    model = loaded.steered(one.controlnet).variant(**one.method)
    asked = one.request(**request)
    if asked.guidance != 0:
        model.own_settings.warn_of_unknown_things(asked.words)
    model.text.warn_of_unused(asked.texts)
    plan = model.plan(asked, stream=asked.frames is None)
    height, width = plan.size
    options = {name: getattr(asked, name) for name in ("frames", "steps", "negative_prompt")}
    limits.check(one.prompt, options | {"width": width, "height": height})
    return model, plan


def decoded(job: Job, plan: SamplingPlan, latents: Tensor) -> Frames:
    """The frames of latents. A stop is noticed between those that are decoded together."""
    parts = []
    for part in latents.split(at_once(plan.model.vae, *plan.size, plan.chunk)):
        parts.append(decode_frames(plan, part))
        job.check()
    return np.concatenate(parts)


def make_stream(studio: Studio, job: Job, one: ClipOptions) -> Generator[None]:
    """Make frames without end. Publishes `Shown` after each chunk, whose film is the next part.

    It is at most two chunks ahead of the page that plays them, and others may go first after each chunk.
    """
    loaded = studio.loaded(one.model)
    one = replace(one, own=loaded.own)
    with collected() as notes:
        _, plan = planned(loaded, one, studio.limits, frames=None, chunk=CHUNK)
    shown = Shown(("",), ("",), steps=plan.request.steps, notes=tuple(notes), options=(one,))

    def watch(i: int, latents: Tensor) -> None:
        job.check()

    begun, count = time.monotonic(), 0
    for part, latents in enumerate(Watched(plan, watch).chunks()):
        with collected(notes):
            frames = decoded(job, plan, latents)
        count += len(frames)
        films = (film(frames, one.fps, f"a stream without end: {one.prompt}", "endless", part=part),)
        shown = replace(shown, films=films, frames=count, notes=tuple(notes))
        if part == 0:
            begun = time.monotonic()
        job.publish(shown)
        yield
        published = time.monotonic()
        while job.seen < job.version or count > (time.monotonic() - begun) * one.fps + 2 * CHUNK:
            job.check()
            if job.seen < job.version and time.monotonic() - published > PATIENCE:
                raise Stop
            time.sleep(0.02)
            yield


def load_model(studio: Studio, job: Job, name: str) -> Generator[None]:
    """Load a model. Raises: InputError if that can't be."""
    studio.loaded(name)
    yield
