"""Errors. InputError is the one type for wrong input: the command lines print it as one line, and exit with 2."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence


class InputError(ValueError):
    """The user's input can't be used. The message says what was got, what was expected, and what to do."""


def choose(what: str, got: str, options: Sequence[str]) -> str:
    """Return `got` if it is one of `options`. Otherwise raise an `InputError` that suggests the nearest name."""
    if got in options:
        return got
    near = difflib.get_close_matches(str(got), options, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {got!r}: expected one of {', '.join(options)}{hint}")


def whole(what: str, got: object, least: int, most: int | None = None) -> int:
    """Return `got` as an int if it is a whole number from `least` to `most`; otherwise raise an `InputError`."""
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(got)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{what} is {got!r}: expected a whole number, {span}") from None
    if number < least or (most is not None and number > most):
        raise InputError(f"{what} is {number}: expected {span}")
    return number


class OutOfMemory(MemoryError):
    """There was too little memory. The message, of one line, says what needed it, and what to try."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error comes from an allocator. On a CPU, torch raises a RuntimeError."""
    words = "out of memory|can.t allocate memory|not enough memory"
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


class LostProcess(RuntimeError):
    """One of the other processes that make a clip together has ended."""
