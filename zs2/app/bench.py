"""Where a tab of the page shows its work: its buttons, its status and its films. It needs Gradio."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zs2.app.making import Shown
from zs2.app.texts import EMPTY, duration, figure, message, progress
from zs2.app.worker import DONE, FAILED, WAITING, Job, Worker, failure
from zs2.errors import counted

LAST_PRESS = "(window.zs2Press ?? 0)"  # in the browser: what `Bench.listen` counts
POLL = 0.03  # seconds between looks at the work
EACH = 0.5  # seconds between updates while a clip is made: each takes the browser 40 ms, mostly to lay out and paint
MAKING: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
Update = dict[Any, Any]  # components → their values, or gr.update


@dataclass(frozen=True)
class Bench:
    """The components of a tab.

    Args:
        go: the buttons that start. stop: the one that stops. status: HTML. slots: HTML, one for each film.
        names: what stands for paths of the server in messages.
        press: a number that nobody sees: that of the visitor's last press of a button that starts.
    """

    go: Sequence[Any]
    stop: Any
    status: Any
    slots: Sequence[Any]
    names: Mapping[str, str]
    press: Any

    def listen(
        self,
        begun: Sequence[Any],
        work: Callable[..., AsyncIterator[Update]],
        inputs: Sequence[Any],
        hidden: Sequence[Any] = (),
    ) -> Any:
        """Do some work at these events. It updates the status and the slots; the buttons change before and after it,
        because Gradio takes long for each component of an update. The browser itself changes them: at once, in the
        order of the events, and without a call of the server, for which the work would wait.

        Args:
            work: its first value is the number of the press.
            hidden: what is hidden then.
        Returns: the event of its end.
        """
        buttons = [*self.go, self.stop]

        def switched(busy: bool) -> list[Update]:
            return [*({"interactive": not busy} for _ in self.go), {"interactive": busy}]

        hide: list[Update] = [{"visible": False} for _ in hidden]
        gr.on(begun, None, None, [*buttons, *hidden], js=_updates([*switched(True), *hide]), api_visibility="private")
        count = f"(...values) => [window.zs2Press = {LAST_PRESS} + 1, ...values.slice(1, {len(inputs) + 1})]"
        done = gr.on(begun, work, [self.press, *inputs], [self.status, *self.slots], js=count, **MAKING)
        for ended in (done.then, done.failure):  # Gradio calls only the second one for values that it refuses itself
            ended(None, None, buttons, js=_updates(switched(False)), api_visibility="private")
        return done

    async def follow(self, job: Job, worker: Worker, text: str) -> AsyncIterator[Update]:
        """What changes on the page while a job waits and runs, until its end. text: its status when it is done."""
        # Gradio makes a component anew for each that is left out, which takes 20 ms, so every one gets its value.
        values: Update = {self.status: progress("starting"), **dict.fromkeys(self.slots, "")}
        if len(self.slots) == 1:
            values[self.slots[0]] = EMPTY
        yield dict(values)
        status, seen, updated = "", 0, -EACH
        while not (ended := job.ended) or job.version != seen:
            if job.state == WAITING and (line := waiting(worker.ahead(job), worker.seconds(job))) != status:
                status = line
                values[self.status] = progress(line)
                yield dict(values)
            soon = job.ended or (job.shown is not None and job.shown.frames)  # the parts of a stream wait for the page
            if job.version != seen and (soon or time.monotonic() - updated >= EACH):
                seen, shown, updated = job.version, job.shown, time.monotonic()
                values[self.status] = progress(working(shown), shown.step, shown.steps)
                for slot, film, caption in zip(self.slots, shown.films, shown.captions, strict=False):
                    if film:
                        values[slot] = figure(film, caption)
                yield dict(values)
                job.seen = seen
            if not ended:
                await asyncio.sleep(POLL)
        yield {**values, self.status: ending(job, text, self.names)}

    def refuse(self, error: Exception) -> Update:
        """What changes if the work can't begin."""
        return {self.status: message(failure(error), (), self.names, wrong=True)}


def _updates(updates: Sequence[Update]) -> str:
    """A function of JavaScript that returns these updates, as Gradio's page takes them from a server."""
    return f"() => {json.dumps([{'__type__': 'update', **one} for one in updates])}"


def working(shown: Shown) -> str:
    """How far the work is, in words."""
    if shown.frames:
        return f"{counted(shown.frames, 'frame')} so far"
    if not shown.steps:
        return "starting"
    which = f"clip {len(shown.clips) + 1} of {len(shown.films)}, " if len(shown.films) > 1 else ""
    left = "" if shown.left is None else f" · {duration(shown.left)} left"
    return f"{which}step {shown.step} of {shown.steps}{left}"


def waiting(ahead: int, seconds: float | None) -> str:
    """A place in the line, in words."""
    if not ahead:
        return "starting"
    return f"in line: {ahead} before you" + (f", {duration(seconds)}" if seconds else "")


def ending(job: Job, text: str, names: Mapping[str, str]) -> str:
    """What came of a job, as HTML. names: what stands for paths of the server."""
    shown: Shown | None = job.shown if isinstance(job.shown, Shown) else None
    notes = shown.notes if shown is not None else ()
    if job.state == FAILED:
        return message(job.message, notes, names, wrong=True)
    if job.state == DONE:
        return message(text, notes, names)
    if shown is not None and shown.frames:
        return message(f"stopped after {counted(shown.frames, 'frame')}", notes, names)
    step = "" if shown is None else f" after step {shown.step} of {shown.steps}"
    return message(f"stopped{step}", notes, names)
