"""The command line and the Python lines that make the clip of the page. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from zs2.app.clip_options import ClipOptions
from zs2.cli.derived_options import flag, value_text


def command_line(clip: ClipOptions) -> str:
    """The command. Options that have their default are absent."""
    prompt = shlex.quote(clip.prompt)
    begins_as_option = clip.prompt.startswith("-")
    words = ["zs2", "sample", *([] if begins_as_option else [prompt])]
    if not clip.is_default_model:
        words += ["--model", shlex.quote(clip.model)]
    options = clip.method_that_differs | clip.options_that_differ
    size = [options.pop(name, None) for name in ("width", "height")]
    if None not in size:
        options["size"] = "{}x{}".format(*size)
    if clip.controlnet:
        file = options.pop("control")
        file = f"./{file}" if file.startswith("-") else file  # or it would be an option
        words.append(f"--control {shlex.quote(clip.controlnet)} {shlex.quote(file)}")
    for name, value in (options | {"seed": clip.seed}).items():
        words.append(_option(name, value))
    if clip.fps != 8:
        words.append(f"--fps {clip.fps}")
    return " ".join([*words, "--out clip.webp", *(["--", prompt] if begins_as_option else [])])


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else f"--no-{flag(name)[2:]}"
    text = value_text(value if not isinstance(value, float) else _short(value))
    joint = "=" if text.startswith("-") else " "
    return f"{flag(name)}{joint}{shlex.quote(text)}"


def _short(value: float) -> float | str:
    """A number as short as it can be written without loss."""
    return repr(value).removesuffix(".0")


def python_lines(clip: ClipOptions) -> str:
    """The same in Python."""
    network = {"controlnet": clip.controlnet} if clip.controlnet else {}
    method, options = network | clip.method_that_differs, {**clip.options_that_differ, "seed": clip.seed}
    if clip.fps != 8:
        options["fps"] = clip.fps
    return "\n".join(
        [
            "from zs2 import ZS2",
            "",
            f"model = ZS2.from_pretrained({_arguments(clip.model, method)})",
            f"clip = model({_arguments(clip.prompt, options)})",
            'clip.save("clip.webp")',
        ]
    )


def _arguments(first: str, others: Mapping[str, Any]) -> str:
    return ", ".join([repr(first), *(f"{name}={value!r}" for name, value in others.items())])
