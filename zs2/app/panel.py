"""The settings on the page: Gradio's components for a list of controls. It needs Gradio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from zs2.app.clip_options import ClipOptions
from zs2.app.controls import NETWORK, Control, defaults, keywords, read_size, summary
from zs2.app.studio import Studio
from zs2.cli.derived_options import KINDS
from zs2.errors import collected
from zs2.method import PARAMETERS, Method
from zs2.sampling.request import DEFAULTS, usual

FILES, NETWORKS = "Begin from a picture or a clip", "Follow a clip by a ControlNet"
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# What comes while an event is at work follows it; else it would be lost.
LAST: dict[str, Any] = {"trigger_mode": "always_last"}


class Panel:
    """The components of controls, at the place in the layout where this is called.

    Args:
        found: the controls. start: the kinds of attention and noise that are chosen at first.
        folded: the title of the rarer ones. model: the component with the name of the model.
    Attributes: controls, components: in the same order.
    """

    def __init__(self, found: Sequence[Control], start: Method, folded: str, studio: Studio, model: Any) -> None:
        groups: list[list[Control]] = [[], [], [], []]  # at once, folded, files, those of a ControlNet
        for control in found:
            groups[3 if control.of_controlnet else 2 if control.kind == "clip" else control.folded].append(control)
        self.controls = [control for group in groups for control in group]
        self.components: list[Any] = []
        shown = defaults(start.attn, start.noise, {})
        self._add(groups[0], start, shown)
        for text, group in zip((folded, FILES, NETWORKS), groups[1:], strict=True):
            if group:
                with gr.Accordion(text, open=False):
                    self._add(group, start, shown)
        self._studio, self._start, self._title = studio, start, folded
        studio.visitors.begin(**self._lists({name: getattr(start, name) for name in KINDS}))
        outputs = [self[name] for name in (*KINDS, *self.parameters)]
        for name in KINDS:
            inputs = [model, *(self[kind] for kind in KINDS)]
            self[name].input(self._listener(name), inputs, outputs, **QUIET, **LAST)
        for name in filter(lambda name: usual({name: name}), self.inputs):
            self[name].change(partial(self._dropped, name), [model, self[name]], self["guidance"], **QUIET)

    @property
    def parameters(self) -> list[str]:
        """The names of the controls that are parameters of a kind."""
        return [one.name for one in self.controls if one.of_method and one.name not in KINDS]

    @property
    def inputs(self) -> list[str]:
        """The names of the controls that take a file."""
        return [one.name for one in self.controls if one.kind == "clip"]

    def _lists(self, kinds: Mapping[str, str]) -> dict[str, str]:
        """The kinds by their names in `Visitors`."""
        return {f"{self._title}: {name}": kind for name, kind in kinds.items()}

    def __getitem__(self, name: str) -> Any:
        return self.components[[one.name for one in self.controls].index(name)]

    def _add(self, group: Sequence[Control], start: Method, shown: Mapping[str, Any]) -> None:
        for control in group:
            value, info = control.default, control.help
            if control.name in KINDS:
                value = getattr(start, control.name)
                info = summary(control.name, value)
            elif control.name in shown and value in (None, ""):
                value = control.shown(shown[control.name])
            visible = control.name in shown or control.name not in PARAMETERS
            self.components.append(component(control, value, info, visible=visible))

    def _listener(self, name: str) -> Callable[..., list[Any]]:
        def chosen(request: gr.Request, *values: str) -> list[Any]:  # Gradio gives no request to a partial function
            return self._chosen(name, str(request.session_hash), *values)

        return chosen

    def _chosen(self, name: str, visitor: str, model: str, attn: str, noise: str) -> list[Any]:
        """Show the parameters that have an effect. Those of the kind that was changed get its defaults."""
        kind = {"attn": attn, "noise": noise}[name]
        if not self._studio.visitors.changed(visitor, **self._lists({name: kind})):
            return [gr.skip() for _ in (*KINDS, *self.parameters)]  # each its own: Gradio changes them
        values = defaults(attn, noise, self._studio.own(model))
        table = "attention" if name == "attn" else "noise"
        updates = [gr.update(info=summary("attn", attn)), gr.update(info=summary("noise", noise))]
        for control in (one for one in self.controls if one.name in self.parameters):
            has_effect = control.name in values
            fresh = has_effect and PARAMETERS[control.name].of == table
            value = {"value": control.shown(values[control.name])} if fresh else {}
            updates.append(gr.update(visible=has_effect, **value))
        return updates

    def _dropped(self, name: str, model: str, file: str | None) -> float:
        """The guidance that goes with an input, or without it."""
        return {"guidance": DEFAULTS["guidance"], **self._studio.own(model), **usual({name: file})}["guidance"]

    def filled(
        self, visitor: str, found: Sequence[Control], method: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[Any, Any]:
        """Updates that fill in the settings of a clip, by component. Other controls get their default in `found`."""
        start = {control.name: control.default for control in found}
        kinds = {name: method.get(name, getattr(Method(), name)) for name in KINDS}
        shown = defaults(kinds["attn"], kinds["noise"], {})
        updates = []
        for control in self.controls:
            if control.kind == "clip":  # stays
                updates.append(gr.update())
                continue
            values = {**shown, **method} if control.of_method else options
            value = control.shown(values[control.name]) if control.name in values else start[control.name]
            more: dict[str, Any] = {}
            if control.name in KINDS:
                value, more = kinds[control.name], {"info": summary(control.name, kinds[control.name])}
            elif control.name in PARAMETERS:
                more = {"visible": control.name in shown}
            updates.append(gr.update(value=value, **more))
        self._studio.visitors.note(visitor, **self._lists(kinds))
        return dict(zip(self.components, updates, strict=True))

    def begun(self, visitor: str, found: Sequence[Control], model: str) -> dict[Any, Any]:
        """Updates that fill in what the panel shows at first with this model, by component."""
        kinds = {name: getattr(self._start, name) for name in KINDS}
        return self.filled(visitor, found, kinds | defaults(**kinds, own=self._studio.own(model)), {})

    def asked(self, values: Sequence[Any]) -> ClipOptions:
        """What is asked for, checked as far as it can be without the model. Raises: InputError.

        values: of the model, the prompt, the seed, the size, the rate and the components.
        """
        model, prompt, seed, size, fps, *others = values
        method, options = keywords(self.controls, others)
        options |= read_size(size)
        network = options.pop(NETWORK, "")
        network = self._studio.check_controlnet(network) if "control" in options else ""
        self._studio.limits.check(prompt, options)
        asked = ClipOptions(
            *(self._studio.check(model), prompt, seed or 0, int(fps)),
            method,
            options,
            self._studio.own(model),
            self._studio.is_default(model),
            network,
        )
        with collected():  # they are shown when the clip is made
            asked.request()
        return asked


def component(control: Control, value: Any, info: str, *, visible: bool) -> Any:
    """The Gradio component of a control."""
    shared: dict[str, Any] = {"label": control.label, "info": info, "visible": visible}
    shared["elem_classes"] = [f"control-{control.name}"]
    if control.kind == "clip":
        label = f"{control.label}: {info}"
        return gr.File(label=label, height=150, visible=visible, elem_classes=shared["elem_classes"])
    if control.choices:
        return gr.Dropdown(list(control.choices), value=value, filterable=False, **shared)
    if control.low is not None and control.high is not None:
        step = 1 if control.kind == "whole" else 0.01 if control.high - control.low < 10 else 1
        most = math.floor(control.high * 1e4) / 1e4  # √e in a few digits, and not above it
        return gr.Slider(control.low, most, value=value, step=step, **shared)
    if control.kind in ("whole", "number"):
        return gr.Number(value, precision=0 if control.kind == "whole" else None, minimum=control.low, **shared)
    return gr.Textbox(value or "", max_lines=1, **shared)
