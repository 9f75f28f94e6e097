"""How an option is written on the command line and stored in settings. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STATED: Any = object()  # of an option that every file has


@dataclass(frozen=True)
class Option:
    """How a sampling option is written and stored.

    Args:
        kind: `text`, `whole`, `number`, `pair` (two numbers), `flag` or `clip` (an input, see video/reading.py).
        help: one line, without the default. metavar: the name of its value in the help.
        least, most: the smallest and the largest value, for a whole number.
        unstated: its value in clips whose files are too old to have the option; STATED if all files have it.
        unset: what the default None means.
        several: whether it has several values, one for each ControlNet.
        picture: whether of an input only frame 0 counts.
    """

    kind: str
    help: str
    metavar: str | None = None
    least: int = 0
    most: int | None = None
    unstated: Any = STATED
    unset: str = "as the checkpoint says"
    several: bool = False
    picture: bool = False


def option(default: Any, *how: Any, **more: Any) -> Any:
    """A field of a dataclass that is an option: its default, and the arguments of `Option`."""
    return field(default=default, metadata={"option": Option(*how, **more)})


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples are lists."""
    return [*map(plain, value)] if isinstance(value, tuple) else value
