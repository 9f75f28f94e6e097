"""The page: its layout, and what its buttons do. It needs Gradio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from zs2.app import files
from zs2.app.bench import LAST_PRESS, MAKING, POLL, Bench, Update
from zs2.app.clip_options import BASELINE, FPS_MAX, ClipOptions, title, with_and_without
from zs2.app.controls import NETWORK, controls, keywords
from zs2.app.lines import command_line, python_lines
from zs2.app.making import load_model, make_clips, make_stream
from zs2.app.panel import LAST, QUIET, Panel
from zs2.app.studio import Studio
from zs2.app.texts import EMPTY, HEADER, OTHER, message, progress
from zs2.app.worker import DONE, Job, failure
from zs2.errors import InputError, collected
from zs2.method import Method
from zs2.sampling.request import INPUTS

CHIPS = 8  # examples of the checkpoint
SLOTS = 4  # clips side by side, at most
SHARED = ("frames", *INPUTS, NETWORK)  # the settings that clips side by side share, with prompt, seed and size
NEW_SEED = "() => Math.floor(Math.random() * 2 ** 32)"


class Page:
    """The page of a studio. `blocks` is Gradio's object.

    Args: root: the folder of visitors' files.
    """

    def __init__(self, studio: Studio, root: Path) -> None:
        self.studio, self.root, self.names = studio, root, {str(root): "", **studio.names_of_paths}
        loaded = studio.loaded(studio.names[0])
        studio.visitors.begin(model=studio.names[0])
        self._controls = partial(controls, studio.limits, networks=studio.networks)
        self.found = self._controls(loaded.own)
        prompts = loaded.examples(CHIPS)
        self.model = gr.Dropdown(
            list(studio.names), value=studio.names[0], label="model", filterable=False, render=False
        )
        with gr.Blocks(title="zs2", analytics_enabled=False, delete_cache=(3600, 3 * 3600)) as self.blocks:
            gr.HTML(HEADER)
            self.press = gr.Number(0, precision=0, visible=False)  # its value comes from the browser's own count
            with gr.Row(elem_id="ask"):
                self.prompt = gr.Textbox(prompts[0] if prompts else "", label="prompt", max_lines=3, scale=5)
                self.seed = gr.Number(0, label="seed", precision=0, minimum=0, scale=1, min_width=110)
                self.die = gr.Button("New seed", elem_id="die", scale=0, min_width=110)
            with gr.Row(elem_id="chips"):
                self.chips = [
                    gr.Button(text, visible=bool(text), size="sm", elem_classes=["chip"], min_width=0, scale=0)
                    for text in (*prompts, *[""] * (CHIPS - len(prompts)))
                ]
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=3, min_width=320), gr.Tabs():
                    with gr.Tab("One clip"):
                        self._lay_out_one()
                    with gr.Tab("Side by side"):
                        self._lay_out_compare()
                    with gr.Tab("Endless"):
                        self.stream = self._bench("Start", "endless")
                with gr.Column(scale=2, min_width=300, elem_id="settings"):
                    gr.HTML("<h2>Settings</h2>")
                    if len(studio.names) > 1:
                        self.model.render()
                    self.panel = Panel(self.found, Method(), "More settings", studio, self.model)
                    with gr.Row():
                        self.size = gr.Textbox("", label="size", info="as WIDTHxHEIGHT; empty: as trained", max_lines=1)
                        self.fps = gr.Slider(1, FPS_MAX, value=8, step=1, label="frames per second", info="of the film")
                    self.file = gr.File(label="Replay: drop a file that zs2 made", elem_id="replay", height=150)
                    self.message = gr.HTML("", elem_id="message")
            if len(studio.names) == 1:
                self.model.visible = False
                self.model.render()
            self._listen()

    # --- layout -------------------------------------------------------------------------------------------------------

    def _bench(self, text: str, name: str) -> Bench:
        with gr.Row(elem_classes=["buttons"]):
            go = gr.Button(text, variant="primary", scale=3, min_width=140)
            stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=80)
        status = gr.HTML("", elem_id=f"{name}-status")  # above the film: in sight of the buttons
        film = gr.HTML(EMPTY, elem_id=name, elem_classes=["stage"])
        return Bench([go], stop, status, [film], self.names, self.press)

    def _lay_out_one(self) -> None:
        self.one = self._bench("Make a clip", "one")
        with gr.Row(elem_id="downloads", visible=False) as self.files_row:
            self.files = [gr.DownloadButton(text, size="sm", min_width=90) for text in files.KINDS]
        with gr.Accordion("The same by command line and in Python", open=False, visible=False) as self.lines_row:
            # A long line would widen a phone's page, and the colours of a language have too little contrast.
            lines: dict[str, Any] = {"interactive": False, "wrap_lines": True, "show_line_numbers": False}
            self.shell = gr.Code("", label="command line", elem_id="shell", **lines)
            self.python = gr.Code("", label="Python", elem_id="python", **lines)

    def _lay_out_compare(self) -> None:
        with gr.Row(elem_classes=["buttons"]):
            both = gr.Button("Make both", variant="primary", scale=2, min_width=110)
            four = gr.Button("With and without", scale=2, min_width=150)
            stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=80)
        status = gr.HTML("", elem_id="two-status")
        with gr.Row(elem_id="slots"):
            slots = [gr.HTML("", elem_id=f"slot{i}", elem_classes=["slot"]) for i in range(SLOTS)]
        self.two = Bench([both, four], stop, status, slots, self.names, self.press)
        found = [one for one in self.found if one.name not in SHARED]
        with gr.Column(elem_id="other"):
            gr.HTML(OTHER)
            self.other = Panel(found, BASELINE, "More settings of the right clip", self.studio, self.model)

    # --- events -------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self.die.click(None, None, self.seed, js=NEW_SEED, api_visibility="private")
        for chip in self.chips:
            chip.click(None, chip, self.prompt, js="(text) => text", api_visibility="private")
        clip = [self.model, self.prompt, self.seed, self.size, self.fps, *self.panel.components]
        both = [*clip, *self.other.components]
        begun = [self.one.go[0].click, self.prompt.submit]
        rows = [self.files_row, self.lines_row]
        made = self.one.listen(begun, self._work(self.one, self._one, "done"), clip, rows)
        made.then(self._keep, None, [*rows, *self.files, self.shell, self.python], **MAKING, **LAST)
        for button, begin, values in zip(self.two.go, (self._two, self._four), (both, clip), strict=True):
            self.two.listen([button.click], self._work(self.two, begin, "done: read identity beside motion"), values)
        self.stream.listen([self.stream.go[0].click], self._work(self.stream, self._stream, "the end"), clip)
        for bench in (self.one, self.two, self.stream):
            bench.stop.click(self._stop, self.press, None, js=f"() => [{LAST_PRESS}]", **QUIET)
        settings = [self.prompt, self.seed, self.size, self.fps, *self.panel.components]
        dropped = [self.panel[name] for name in self.panel.inputs]
        self.file.upload(self._replay, [self.file, self.model, *dropped], [self.message, *settings], **MAKING, **LAST)
        chosen = [self.message, self.prompt, *self.chips, *self.panel.components, *self.other.components]
        last = f"(_, model) => [{LAST_PRESS}, model]"
        self.model.input(self._choose_model, [self.press, self.model], chosen, js=last, **MAKING, **LAST)
        self.blocks.unload(self._leave)

    def _work(self, bench: Bench, begin: Callable[..., Job], text: str) -> Callable[..., AsyncIterator[Update]]:
        """What puts a job into the line, and follows it to its end. If the page no longer listens, the job is stopped.

        begin: values of the components → the job; it opens files. text: the status when it is done.
        """

        async def work(request: gr.Request, press: int | None, *values: Any) -> AsyncIterator[Update]:
            visitor = str(request.session_hash)
            if bench is self.one:
                self.studio.visitors.keep(visitor, None)
            try:
                job = self.studio.submit(visitor, await asyncio.to_thread(begin, *values), press or 0)
            except Exception as error:
                yield bench.refuse(error)
                return
            try:
                async for update in bench.follow(job, self.studio.worker, text):
                    yield update
            finally:
                self.studio.leave(visitor, job)
            if bench is self.one and job.state == DONE:
                self.studio.visitors.keep(visitor, (job.shown.clips[0], job.shown.options[0]))

        return work

    def _clips(self, clips: Sequence[ClipOptions], *, measured: bool) -> Job:
        titles = [title(clip) for clip in clips]
        work = partial(make_clips, self.studio, asked=clips, titles=titles, measured=measured)
        return Job(work, sum(clip.cost for clip in clips))

    def _one(self, *values: Any) -> Job:
        return self._clips([self.panel.asked(values)], measured=False)

    def _two(self, *values: Any) -> Job:
        count = len(self.other.components)
        left = self.panel.asked(values[:-count])
        method, options = keywords(self.other.controls, values[-count:])
        shared = {name: value for name, value in left.options.items() if name in SHARED}
        return self._clips([left, replace(left, method=method, options=options | shared)], measured=True)

    def _four(self, *values: Any) -> Job:
        clip = self.panel.asked(values)
        methods = with_and_without(clip.method)
        return self._clips([replace(clip, method=method) for method in methods], measured=True)

    def _stream(self, *values: Any) -> Job:
        return Job(partial(make_stream, self.studio, one=self.panel.asked(values)))

    async def _keep(self, request: gr.Request) -> AsyncIterator[Update]:
        """Show the lines that make the clip, and its files."""
        visitor = str(request.session_hash)
        known = self.studio.visitors.get(visitor)
        if known is None or (made := known.made) is None:
            # It was stopped: the files of the one before may have come after its beginning.
            yield {self.lines_row: gr.update(visible=False), self.files_row: gr.update(visible=False)}
            return
        clip, options = made
        yield {
            self.lines_row: gr.update(visible=True),
            self.shell: command_line(options),
            self.python: python_lines(options),
        }
        known.writing = made
        try:
            paths = await asyncio.to_thread(files.write, clip, self.root, visitor)
        finally:
            known.writing = None
        if self.studio.visitors.get(visitor) is not known:  # who left meanwhile
            files.remove(self.root, visitor)
        if known.made is not made:  # the next one was begun meanwhile
            return
        known.made = None
        buttons = zip(self.files, paths, strict=True)
        yield {
            self.files_row: gr.update(visible=True),
            **{button: gr.update(value=path, visible=path is not None) for button, path in buttons},
        }

    def _stop(self, request: gr.Request, press: int | None) -> None:
        self.studio.stop(str(request.session_hash), press or 0)

    def _leave(self, request: gr.Request) -> None:
        self.studio.forget(str(request.session_hash))
        files.remove(self.root, str(request.session_hash))

    async def _replay(self, request: gr.Request, *values: Any) -> Update:
        """Fill in the settings of a file that a visitor dropped, after those of a model that is being loaded."""
        visitor = str(request.session_hash)
        async with self.studio.visitors.enter(visitor).turn:
            return await asyncio.to_thread(self._replayed, visitor, *values)

    def _replayed(self, visitor: str, file: str, model: str, *dropped: str | None) -> Update:
        """What a file fills in. dropped: the files of the inputs."""
        inputs = {name: path for name, path in zip(self.panel.inputs, dropped, strict=True) if path}
        try:
            with collected() as notes:
                recorded = files.Recorded.of(file, self.studio, self.studio.check(model), inputs)
            found = self._controls(self.studio.own(model))
            updates = self.panel.filled(visitor, found, recorded.method, recorded.options)
            both = [*notes, *recorded.notes]
        except Exception as error:
            return {self.message: message(failure(error), (), self.names, wrong=True)}
        return {
            self.message: message(f"the settings of {Path(file).name} are filled in", both, self.names),
            self.prompt: recorded.prompt,
            self.seed: recorded.seed,
            self.size: recorded.size,
            self.fps: recorded.fps,
            **updates,
        }

    async def _choose_model(self, request: gr.Request, press: int | None, model: str) -> AsyncIterator[Update]:
        """Load a model, and show its examples and its own settings. A clip that is begun meanwhile waits for it."""
        visitor = str(request.session_hash)
        if not self.studio.visitors.changed(visitor, model=model):
            yield {self.message: gr.skip()}  # without it, Gradio would empty all outputs
            return
        async with self.studio.visitors.enter(visitor).turn:
            async for update in self._load(visitor, press, model):
                yield update

    async def _load(self, visitor: str, press: int | None, model: str) -> AsyncIterator[Update]:
        job = Job(partial(load_model, self.studio, name=model))
        try:
            self.studio.check(model)
            self.studio.stop(visitor, press or 0)
            self.studio.worker.submit(job)
            yield {self.message: progress(f"loading {model}: its examples and its own settings come with it")}
            while not job.ended:
                await asyncio.sleep(POLL)
            if job.state != DONE:
                raise InputError(job.message or "stopped")
        except InputError as error:
            self.studio.visitors.note(visitor, model="")  # so that it may be chosen again
            yield {self.message: message(str(error), (), self.names, wrong=True)}
            return
        finally:
            self.studio.worker.stop(job)  # nobody listens any more
        loaded = self.studio.loaded(model)
        found, prompts = self._controls(loaded.own), loaded.examples(CHIPS)
        texts = zip(self.chips, (*prompts, *[""] * (CHIPS - len(prompts))), strict=True)
        update: Update = {chip: gr.update(value=text, visible=bool(text)) for chip, text in texts}
        update[self.message] = message(f"{model} is loaded", (), self.names)
        update |= {self.prompt: prompts[0]} if prompts else {}
        yield update | self.panel.begun(visitor, found, model) | self.other.begun(visitor, found, model)
