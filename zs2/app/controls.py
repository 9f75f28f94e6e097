"""The controls of the page, derived from the tables of the method and of sampling. No torch and no Gradio here.

A new row of zs2/method.py, or a new field of `Request`, is a control without a word here. A parameter that is a file
has none: its path would be one of the server.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from zs2.app.clip_options import Limits
from zs2.cli.derived_options import KINDS, READERS, parameter_reader, value_text
from zs2.cli.values import size
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, FILES, METHOD, NOISE_MODELS, PARAMETERS, Method, effects
from zs2.sampling.request import CHOICES, DEFAULTS, HINTS, OF_CONTROLNETS, OPTIONS
from zs2.sampling.solver import SOLVERS

FIRST = ("frames", "steps", "sampler", "guidance")  # the sampling options that show at once; the others are folded
KNOWN = ("text", "whole", "number", "pair", "flag", "clip")  # the kinds of sampling options that a control can hold
WIDEST = 360  # the largest value on a slider; other numbers are typed
OPEN = ""  # in a choice: as the checkpoint says
NETWORK = "controlnet"  # the control that chooses a ControlNet; it is no keyword of `Request`
HELP = {  # of options that are written in another way on a page than on a command line
    "guidance": "how much the prompt counts; 1: as the model has learnt it, in half the time",
    "source": "begin from this clip, or edit it",
    "first_frame": "this picture is frame 0",
    "control": "follow the hints of this clip",
    "control_scale": "a factor of what the ControlNet adds (empty: 1)",
    "control_interval": "the share of the steps in which it is on (empty: 0,1)",
    "control_from": "frames: the clip holds the hints; canny: they are the edges of its frames",
}


@dataclass(frozen=True)
class Control:
    """A control.

    Args:
        name: the keyword of `Method` or `Request`.
        kind: `choice`, `whole`, `number`, `list` (a text: A,B or A,B,…, or a number that may be absent), `text`,
            `flag` (a choice of yes and no), or `clip` (a file that is dropped).
        label, help: the words beside it. default: its value at first; None if it is empty.
        choices: the values of a choice, each with its words. low, high: the range of a number; then it is a slider.
        folded: whether it is among the rarer ones. several: whether the keyword takes several values.
        reader: of a list, what reads it, as on the command line.
    """

    name: str
    kind: str
    label: str
    help: str
    default: Any = None
    choices: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    folded: bool = False
    several: bool = False
    reader: Callable[[str], Any] = str

    @property
    def of_method(self) -> bool:
        """Whether it is a setting of `Method`."""
        return self.name in METHOD

    @property
    def of_controlnet(self) -> bool:
        """Whether it belongs to a ControlNet."""
        return self.name == NETWORK or self.name in OF_CONTROLNETS

    def read(self, value: Any) -> Any:
        """The keyword's value; None if the control is empty. Raises: InputError for a text that can't be read."""
        if value is None or value == OPEN:
            return None
        if self.kind == "list":
            return reading(self.reader, str(value), self.name)
        if self.kind == "flag":
            return value == "yes"
        return value

    def shown(self, value: Any) -> Any:
        """What the control shows for a keyword's value. Raises: InputError for several numbers where one fits."""
        if self.several and isinstance(value, list | tuple):
            value = self._only(value)
        if value is None:
            return OPEN if self.kind in ("choice", "flag", "text", "list") else None
        if self.kind == "list":
            return value_text(tuple(value) if isinstance(value, list | tuple) else value)
        if self.kind == "flag":
            return "yes" if value else "no"
        if isinstance(value, list | tuple):
            return self._only(value)
        return dict(self.choices).get(value, value)  # what an open choice stands for is the open one

    def _only(self, values: Sequence[Any]) -> Any:
        if len(values) != 1:
            raise InputError(f"{self.name} has {len(values)} values: this page takes one")
        return values[0]


def reading(read: Callable[[str], Any], text: str, name: str) -> Any:
    """A text as the command line reads it. Raises: InputError."""
    try:
        return read(text.strip())
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None


def controls(limits: Limits, own: Mapping[str, Any], networks: Sequence[str] = ()) -> list[Control]:
    """All controls, in their order on the page.

    own: the checkpoint's own settings. networks: the ControlNets to choose from; without any there is no control of
        theirs.
    """
    found = [_kind(name) if name in KINDS else _parameter(name, own) for name in METHOD if name not in FILES]
    first = [name for name in METHOD if name in KINDS or PARAMETERS[name].of == "attention"]
    found.sort(key=lambda one: (one.name == "noise" or one.name not in first, METHOD.index(one.name)))
    options = [
        _option(name, limits, own)
        for name, row in OPTIONS.items()
        if row.kind in KNOWN and (networks or name not in OF_CONTROLNETS)
    ]
    options.sort(key=lambda one: FIRST.index(one.name) if one.name in FIRST else len(FIRST))
    choices = tuple((one, one) for one in networks)
    network = Control(NETWORK, "choice", "ControlNet", "which one reads the hints", next(iter(networks), None), choices)
    return [*found, *[network] * bool(networks), *options]


def _kind(name: str) -> Control:
    what, table = KINDS[name]
    return Control(name, "choice", what, "", getattr(Method(), name), tuple((kind, kind) for kind in table))


def summary(name: str, kind: str) -> str:
    """The line of help of a kind of attention or noise."""
    return (ATTENTION_KINDS if name == "attn" else NOISE_MODELS)[kind].summary


def _parameter(name: str, own: Mapping[str, Any]) -> Control:
    row = PARAMETERS[name]
    as_text = row.length == 2 or row.unset or (row.several and row.ends is None)  # an empty number would be 0
    kind = "list" if as_text else "whole" if row.number is int else "number"
    start = defaults(Method().attn, Method().noise, own)
    low, high = row.ends if row.ends and row.ends[1] <= WIDEST and not as_text else (None, None)
    found = Control(
        name,
        kind,
        f"{row.symbol} ({name})",
        without_options(row.help),
        low=low,
        high=high,
        folded=bool(row.unset),
        reader=parameter_reader(name),
    )
    return replace(found, default=found.shown(start.get(name)))


def _option(name: str, limits: Limits, own: Mapping[str, Any]) -> Control:
    row, default = OPTIONS[name], own.get(name, DEFAULTS[name])
    label = name.replace("_", " ")
    choices = tuple((one, one) for one in _choices(name))
    if row.kind == "flag":
        choices = (("yes", "yes"), ("no", "no"))
    if choices and default is None:
        choices = ((row.unset, OPEN), *(one for one in choices if one != (row.unset, row.unset)))
    kind = row.kind if row.kind == "flag" or not choices else "choice"
    low, high = (row.least, limits.most(name, row.most)) if row.kind == "whole" else (None, None)
    text = HELP.get(name, row.help.partition(";")[0] if choices else row.help)
    text = without_options(text)
    kind = "list" if kind == "pair" or (kind in ("whole", "number") and default is None) else kind
    reader = READERS.get(row.kind, str)
    found = Control(name, kind, label, text, None, choices, low, high, name not in FIRST, row.several, reader)
    if high is None:
        found = replace(found, low=None)
    return replace(found, default=found.shown(default if high is None or default is None else min(default, high)))


def without_options(text: str) -> str:
    """A help text of the command line for a page, where a setting is no option."""
    return re.sub("--([a-z-]+)(=?)", lambda one: "" if one[2] else f"the {one[1].replace('-', ' ')}", text)


def _choices(name: str) -> Iterable[str]:
    """The values of a sampling option that has a list of them. Edges need OpenCV."""
    if name == "control_from":
        return HINTS if find_spec("cv2") else HINTS[:1]
    tables: dict[str, Iterable[str]] = {"sampler": SOLVERS, "control_attn": ATTENTION_KINDS, **CHOICES}
    return tables.get(name, ())


def defaults(attn: str, noise: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that have an effect with these kinds, with their defaults, or the checkpoint's own."""
    found = {**ATTENTION_KINDS[attn].defaults, **NOISE_MODELS[noise].defaults}
    return {name: own.get(name, value) for name, value in found.items()}


def keywords(controls: Sequence[Control], values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of `Method` and of `Request` that controls with these values stand for. Empty ones are absent, and
    so are parameters without effect.

    Raises: InputError for a text that can't be read, and for an unknown kind.
    """
    method: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for control, value in zip(controls, values, strict=True):
        if (read := control.read(value)) is not None:
            (method if control.of_method else options)[control.name] = read
    effect = effects(method["attn"], method["noise"])
    return {name: value for name, value in method.items() if name in effect}, options


def read_size(text: str) -> dict[str, int]:
    """A size, such as 64x64, as keywords of `Request`; empty for the size that the model was trained at."""
    if not text.strip():
        return {}
    width, height = reading(size, text, "size")
    return {"width": width, "height": height}
