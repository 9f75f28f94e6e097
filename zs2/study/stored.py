"""What the files of a study may say: the types and bounds of each value. No torch here.

A study may come from a stranger. So a name in it can't lead out of its folder, its numbers are no larger than a study
can be, and a wrong value is an error that names it, before anything is done with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zs2.cli.prompt_files import SETS
from zs2.errors import InputError, brief, choose
from zs2.evaluation.measure import of_today
from zs2.method import PARAMETERS, SEED_MAX, Method
from zs2.sampling.request import DEFAULTS, INPUTS, OPTIONS, STATED, Request
from zs2.study.cells import NUMBERS, Cell, cell
from zs2.study.prompts import Prompt, checked
from zs2.system.devices import DTYPES
from zs2.system.json_files import LARGE_BYTES, MOST_NAME, MOST_PIXELS, Reader, is_number, read_json
from zs2.system.options import Option
from zs2.video.encoding import rate_text

MOST_CELLS, MOST_PROMPTS, MOST_SEEDS = 10_000, 100_000, 100_000
MOST_CLIPS = 1_000_000
MOST_FRAMES = 100_000
MOST_THREADS = 10_000
MOST_REVISIONS = 10**6
MOST_MERGED = 100  # LoRAs


def read_study(file: Path) -> dict[str, Any]:
    """The values of study.json, as the arguments of `Study`. Raises: InputError for a value that can't be right."""
    read = Reader(file.name, read_json(file, LARGE_BYTES), {})
    cells = tuple(map(_cell, read.within("cells", MOST_CELLS)))
    prompts = tuple(map(_prompt, read.within("prompts", MOST_PROMPTS)))
    seeds = _seeds(read)
    if not cells:
        raise InputError(f"{read.what}: 0 cells: expected at least one")
    ids = [one.id for one in cells]
    if len({*ids}) < len(ids):
        raise InputError(f"{read.what}: two cells have the same id: expected each once")
    if len(cells) * len(prompts) * len(seeds) > MOST_CLIPS:
        raise InputError(f"{read.what}: more than {MOST_CLIPS} clips: expected fewer cells, prompts or seeds")
    sampling = {name: _option(read, name) for name in OPTIONS}
    values = {
        "zs2": read.text("zs2"),
        "model": read.text("model"),
        "weights": read.texts("weights"),
        "sampling": sampling,
        "width": read.whole("width", None, 0, MOST_PIXELS),
        "height": read.whole("height", None, 0, MOST_PIXELS),
        "fps": rate_text(read.json.get("fps")),
        "dtype": read.name("dtype", None, DTYPES),
        "chunk": read.whole("chunk", None, 1, MOST_FRAMES),
        "prompts": checked(prompts, read.what),
        "seeds": seeds,
        "full": choose(f"full in {read.what}", read.text("full"), ids),
        "cells": cells,
        "lora": _merged(read, "lora"),
        "embeddings": _merged(read, "embeddings"),
        "controlnet": _merged(read, "controlnet"),
        "compile": read.flag("compile", False),
        "threads": None if read.json.get("threads") is None else read.whole("threads", None, 1, MOST_THREADS),
        "revision": None if read.json.get("revision") is None else read.whole("revision", None, 0, MOST_REVISIONS),
    }
    _no_others(read, {*values, *OPTIONS} - {"sampling"})
    with warnings.catch_warnings():  # of options without effect: whoever made the study has seen them
        warnings.simplefilter("ignore")
        Request("", **{name: value for name, value in sampling.items() if name not in INPUTS})  # checks them together
    return values


def check_ids(cells: Iterable[Cell]) -> None:
    """Raise InputError for a cell whose id is longer than `read_study` takes."""
    for one in cells:
        if len(one.id) > MOST_NAME:
            raise InputError(
                f"{one.label}: names of files begin with {one.id}, which has {len(one.id)} characters: expected at "
                f"most {MOST_NAME}: give numbers of fewer digits, or fewer of them"
            )


def read_measures(file: Path) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The metrics of METRICS, and the protocol, in a file of measures. A metric of another definition is None.

    Raises: InputError for a file that holds anything else.
    """
    try:
        read = Reader("", read_json(file), {})
        metrics, protocol = read.object("metrics"), read.object("protocol")
        if metrics is None or protocol is None:
            raise InputError("expected metrics and protocol in it")
        _check_protocol(protocol)
        values = of_today(metrics, protocol)
        for name, value in values.items():
            if value is not None and not is_number(value):
                raise InputError(f"{name} is {brief(value)}: expected a finite number or null")
        return values, dict(protocol)
    except InputError as error:
        text = str(error).removeprefix(f"{file}").removeprefix(": ")
        raise InputError(f"{file}: {text}: remove it and give the command of zs2.ablate again") from error


def _check_protocol(protocol: Mapping[str, Any]) -> None:
    """Check how clips were measured: texts, flags, and the names of metrics. Other keys may be newer."""
    read = Reader("protocol", protocol, {})
    for key, value in protocol.items():
        if key == "metrics":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise InputError(f"{read.what}: metrics is {brief(value)}: expected a list of names")
        elif key == "clip_sha256":
            read.texts(key)
        elif not isinstance(value, str | bool | None):
            raise InputError(f"{read.what}: {brief(key)} is {brief(value)}: expected a text")


def _cell(read: Reader) -> Cell:
    read.json = {**dict.fromkeys(NUMBERS), "frozen": False, "presets": [], **read.json}
    numbers = {name: _number(read, name) for name in NUMBERS}
    presets = read.json["presets"]
    if not isinstance(presets, list) or not all(isinstance(name, str) for name in presets):
        raise InputError(f"{read.what}: presets is {brief(presets)}: expected a list of names")
    one = Cell(
        id=read.path_name("id"),
        label=read.text("label"),
        noise=read.text("noise"),
        attn=read.text("attn"),
        frozen=read.flag("frozen", False),
        presets=tuple(presets),
        **numbers,
    )
    _no_others(read, {*Cell.__dataclass_fields__})
    method = Method(**one.method)  # checks it
    if not one.frozen:
        wanted = cell(one.noise, attn=one.attn, **{name: getattr(one, name) for name in NUMBERS})
        if any(getattr(one, name) != getattr(wanted, name) for name in ("id", "noise", "attn", *NUMBERS)):
            raise InputError(f"{read.what}: {one.id} is not the id of {method.noise} and {method.attn} at its values")
    return one


def _number(read: Reader, name: str) -> Any:
    """A parameter of a cell: a number, or several if it may be, or None."""
    if (PARAMETERS[name].several or PARAMETERS[name].length > 1) and isinstance(read.json[name], list):
        return read.numbers(name)
    return None if read.json[name] is None else read.number(name, None)


def _prompt(read: Reader) -> Prompt:
    _no_others(read, {"text", "set", "inputs"})
    inputs = read.texts("inputs") or {}
    for name in inputs:
        choose(f"input in {read.what}", name, INPUTS)
    return Prompt(read.text("text"), read.name("set", SETS[0], SETS), tuple(sorted(inputs.items())))


def _seeds(read: Reader) -> tuple[int, ...]:
    values = read.json.get("seeds")
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_SEEDS:
        raise InputError(f"{read.what}: seeds is {brief(values)}: expected a list of 1 to {MOST_SEEDS} whole numbers")
    for value in values:
        if type(value) is not int or not 0 <= value <= SEED_MAX:
            raise InputError(f"{read.what}: a seed is {brief(value)}: expected a whole number from 0 to {SEED_MAX}")
    if len({*values}) < len(values):
        raise InputError(f"{read.what}: a seed is there twice: expected each once")
    return tuple(values)


def _option(read: Reader, name: str) -> Any:
    """A sampling option. Older studies lack options that came later."""
    row = OPTIONS[name]
    if name not in read.json and row.unstated is not STATED:
        read.json = {**read.json, name: row.unstated}
    if DEFAULTS[name] is None and name in read.json and read.json[name] is None:
        return None
    if row.several:
        return _each(read, name)
    return _value(read, name, row)


def _each(read: Reader, name: str) -> Any:
    """A sampling option that has a value for each ControlNet."""
    values = read.json.get(name)
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_MERGED:
        raise InputError(f"{read.what}: {name} is {brief(values)}: expected a list of 1 to {MOST_MERGED} values")
    found = [_value(Reader(read.what, {name: value}, {}), name, OPTIONS[name]) for value in values]
    return found if name in INPUTS else tuple(found)


def _value(read: Reader, name: str, row: Option) -> Any:
    if row.kind == "text":
        return read.text(name)
    if row.kind == "flag":
        return read.flag(name, False)
    if row.kind == "whole":
        return read.whole(name, None, row.least, min(MOST_FRAMES, row.most or MOST_FRAMES))
    if row.kind == "number":
        return read.number(name, None)
    if row.kind == "clip":
        return _input(read, name)
    values = read.numbers(name)
    if values is None or len(values) != 2:
        raise InputError(f"{read.what}: {name} is {brief(read.json.get(name))}: expected two numbers")
    return values


def _input(read: Reader, name: str) -> dict[str, Any]:
    """The record of an input: its SHA-256, and the range of its frames."""
    record = read.object(name) or {}
    span = record.get("range", ())
    whole_range = span is None or (isinstance(span, list) and len(span) == 2 and all(_is_frame(one) for one in span))
    if record.keys() != {"sha256", "range"} or not isinstance(record["sha256"], str) or not whole_range:
        raise InputError(f"{read.what}: {name} is {brief(read.json.get(name))}: expected its sha256 and range")
    return dict(record)


def _is_frame(value: object) -> bool:
    return value is None or type(value) is int


def _merged(read: Reader, key: str) -> list[dict[str, Any]] | None:
    """What was merged into the model, a list of records of texts and numbers, or None."""
    if read.json.get(key) is None:
        return None
    found = [dict(one.json) for one in read.within(key, MOST_MERGED)]
    if not all(isinstance(value, str | None) or is_number(value) for one in found for value in one.values()):
        raise InputError(f"{read.what}: {key} is {brief(found)}: expected texts and numbers")
    return found


def _no_others(read: Reader, known: set[str]) -> None:
    """Refuse keys that zs2 does not write."""
    unknown = sorted(read.json.keys() - known)
    if unknown:
        raise InputError(f"{read.what}: it has {', '.join(map(brief, unknown[:3]))}, which zs2 does not know")
