"""Errors and warnings. InputError is the one type for wrong input: commands print it as one line, and exit with 2."""

from __future__ import annotations

import contextlib
import difflib
import errno
import operator
import re
import reprlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar


class InputError(ValueError):
    """The user's input can't be used. The message says what was got, what was expected, and what to do."""


_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def collected(found: list[str] | None = None) -> Iterator[list[str]]:
    """Within it, the warnings of `warn` go into this list, each once, and are not shown.

    That holds for the calling thread or task alone; `warnings.catch_warnings` changes where those of all threads go.
    """
    found = [] if found is None else found
    token = _COLLECTED.set(found)
    try:
        yield found
    finally:
        _COLLECTED.reset(token)


def warn(message: str) -> None:
    """Warn of something. The warning points to the line of the caller's own code that led to it."""
    if (found := _COLLECTED.get()) is not None:
        found.extend([message] * (message not in found))
        return
    frame, level = sys._getframe(1), 2
    wrappers = ("zs2", "contextlib", "torch")  # torch's contexts, such as no_grad
    while str(frame.f_globals.get("__name__")).partition(".")[0] in wrappers and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


# What `together` holds back: by the place in the code that warns, of which noun, and the subjects with the rest.
_HELD: ContextVar[dict[str, tuple[str, dict[str, str]]] | None] = ContextVar("held", default=None)


def warn_of_each(noun: str, subject: str, rest: str) -> None:
    """Warn of one of several things that may all have the same fault: `the prompt 'x'`, `is read as plain text`.

    Within `together` there is one warning for all of them, with what is said of the first one.
    """
    held = _HELD.get()
    if held is None:
        warn(f"{subject} {rest}")
    else:
        held.setdefault(sys._getframe(1).f_code.co_qualname, (noun, {}))[1].setdefault(subject, rest)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, the warnings of `warn_of_each` from one place in the code become one, which says how many they are."""
    if _HELD.get() is not None:
        yield
        return
    held: dict[str, tuple[str, dict[str, str]]] = {}
    token = _HELD.set(held)
    try:
        yield
    finally:
        _HELD.reset(token)
        for noun, found in held.values():
            (subject, rest), *others = found.items()
            more = f" (and {counted(len(others), f'other {noun}')})" if others else ""
            warn(f"{subject}{more} {rest}")


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxtuple, _BRIEF.maxset = 4, 6, 8, 8, 8
_BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 80, 40, 80


def brief(value: object) -> str:
    """The `repr` of a value for a message, in one line. Only its ends, if it is long."""
    try:
        return " ".join(_BRIEF.repr(value).split("\n"))  # that of an array has several lines
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a number of {type(value).__name__} that is too long to show"


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number} {noun}" + "s" * (number != 1)


def choose(what: str, got: str, options: Sequence[str]) -> str:
    """Return `got` if it is one of `options`. Otherwise raise an `InputError` that suggests the nearest name."""
    if got in options:
        return got
    raise InputError(f"unknown {what} {brief(got)}: expected one of {', '.join(options)}{did_you_mean(got, options)}")


# What the paper, or other programs, call an option of zs2.
ELSEWHERE = {
    "attention": "attn",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "generator": "seed",
    "lambda": "lam",
    "momentum": "mu",
    "output": "out",
    "fp16": "float16",
    "bf16": "bfloat16",
}


def did_you_mean(got: str, options: Sequence[str], cutoff: float = 0.6) -> str:
    """The question "did you mean …?" with the option most like `got`, as the end of a message; empty if none is.

    That is the option of which `got` is another name, or the one of the most like spelling, or the one that is a word
    of it, as `steps` is of `num_inference_steps`.
    """
    if not isinstance(got, str) or len(got) >= 100:  # a long one is like none, and takes long to compare
        return ""
    bare = {_bare(option): option for option in options}
    name = _bare(got)
    words = [ELSEWHERE.get(name), *difflib.get_close_matches(name, bare, n=1, cutoff=cutoff), *name.split("_")]
    near = next((bare[word] for word in words if word in bare), None)
    return "" if near is None else f"; did you mean {near!r}?"


def _bare(name: str) -> str:
    """A name without dashes before it, as in Python, and in small letters."""
    return name.lower().lstrip("-").replace("-", "_")


def check_keywords(call: str, keywords: Mapping[str, object], calls: Mapping[str, Sequence[str]]) -> None:
    """Raise a TypeError for a keyword that a call does not have. It names the call that has it, or the nearest keyword.

    Args:
        call: one of `calls`, such as `model()`. calls: the keywords of each call of an object.
    """
    for name, value in keywords.items():
        if name not in calls[call]:
            other = next((other for other, known in calls.items() if name in known), None)
            shown = repr(value) if isinstance(value, int | float | str) else "…"
            everywhere = [known for one in (call, *calls) for known in calls[one]]
            hint = f"; give it to {other[:-1]}{name}={shown})" if other else did_you_mean(name, everywhere)
            raise TypeError(f"{call} has no keyword {name!r}{hint}")


def check_texts(texts: object, kinds: type | tuple[type, ...] = str) -> None:
    """Raise an `InputError` for what is no list of texts. One text is none: it would be read letter by letter."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, kinds) for text in texts):
        raise InputError(f"texts are {brief(texts)}: expected a list of them, such as ['red apple']")


def whole(what: str, got: object, least: int, most: int | None = None) -> int:
    """Return `got` as an int if it is a whole number from `least` to `most`; otherwise raise an `InputError`.

    True and false are no numbers here.
    """
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(got)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(got, bool):
        raise InputError(f"{what} is {brief(got)}: expected a whole number, {span}")
    if number < least or (most is not None and number > most):
        raise InputError(f"{what} is {brief(number)}: expected {span}")
    return number


class NotWritten(OSError):
    """A file could not be written. The message, of one line, names it, and says what to do."""


class OutOfMemory(MemoryError):
    """There was too little memory. The message, of one line, says what needed it, and what to try."""


# The words of errors for want of memory, by CUDA and MPS; the system, in `mmap` too; torch's allocator on a CPU; C++;
# oneDNN, whose primitives and memory objects fail for no other reason once they are described; threads, whose stacks
# are memory; and the linker.
ALLOCATORS = re.compile(
    "out of memory|can(no|.)t allocate memory|not enough memory|bad_alloc|"
    "could not create a (primitive(?! descriptor)|memory object)|can.t start new thread|failed to map segment",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from an allocator. Each has an error of its own, most of them a RuntimeError."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or ALLOCATORS.search(str(error)) is not None


class LostProcess(RuntimeError):
    """One of the other processes that make a clip together has ended, or does not answer.

    late: whether it did not answer in time. kept: where the frames are that were finished, as the end of a sentence.
    """

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.late, self.kept = late, ""
