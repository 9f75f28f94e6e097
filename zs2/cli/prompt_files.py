"""Files of prompts: one dialect for `sample` and `ablate`. No torch here.

    # a comment                   from the start of a line; blank lines don't count, either
    red apple on a table          one prompt a line
    ""                            the empty prompt
    sunflower --seed 5            options of the command line, for this clip alone (`sample`)
    [open]                        names the set of the prompts that follow, `open` or `closed` (`ablate`)

A schedule for one clip (`sample --travel`) has the index of a frame before each prompt:

    0: panda face
    15: fox face

The text is UTF-8, or UTF-16 with a byte order mark. Lines end at \\n, \\r\\n or \\r, and nowhere else.
"""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from zs2.cli.command import Parser
from zs2.cli.derived_options import add_sampling
from zs2.cli.values import one_seed, size
from zs2.errors import InputError, choose, counted, did_you_mean, warn
from zs2.system.regular_files import read_bytes

SETS = ("closed", "open")
MOST_BYTES = 64 * 2**20

_OPTIONS = re.compile(r"(?:^|(?<=\s))--[A-Za-z]")  # where the options of a line begin
_DASHES = re.compile(r"(?:^|(?<=\s))[-\u2010-\u2015\u2212]+([A-Za-z][\w-]*)")  # and where they seem to: —seed, -seed
_QUOTED = re.compile(r"""(["'\u2018-\u201f\xab\xbb]).*["'\u2018-\u201f\xab\xbb]""")

_KEY = re.compile(r"(\d{1,9})\s*:(?!\d)\s*", re.ASCII)  # a frame, as `0: panda`; but 16:9 is a text


@dataclass(frozen=True)
class PromptLine:
    """A prompt of a file.

    Args: options: those at the end of its line, as they stand there. set: in SETS. where: its file and line.
    """

    text: str
    options: str
    set: str
    where: str

    def without_options(self, why: str) -> str:
        """The prompt. Raises: InputError if its line has options, which can't stand there: `why` says so."""
        if self.options:
            raise InputError(f"{self.where}: {self.options!r:.80} can't stand here: {why}")
        return self.text


def read_prompt_file(file: str) -> list[PromptLine]:
    """The prompts of a file. Raises: InputError for a file that can't be read, that has none, or an unknown set."""
    found, chosen, quoted = [], SETS[0], []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", _text(file)), 1):
        line, where = line.strip(), f"{file}, line {number}"
        if not line or line.startswith("#"):
            continue
        if re.fullmatch(r"\[\s*\w*\s*\]", line):
            chosen = choose(f"set of prompts in {where}", line[1:-1].strip(), SETS)
            continue
        begin = match.start() if (match := _OPTIONS.search(line)) else len(line)
        text = line[:begin].strip()
        if not text:
            raise InputError(f'{where}: {line!r:.80} has no prompt: write "" for the empty one')
        _check_dashes(text, where)
        if text != '""' and _QUOTED.fullmatch(text):
            quoted.append(where)
        found.append(PromptLine("" if text == '""' else text, line[begin:], chosen, where))
    if not found:
        raise InputError(f"{file}: no prompt in it: expected one a line")
    if quoted:
        others = f" (and {counted(len(quoted) - 1, 'other line')})" if len(quoted) > 1 else ""
        warn(
            f'{quoted[0]}{others}: the quotes are part of the prompt; only "" is not: leave out those that you do not '
            "mean"
        )
    return found


def line_options(line: PromptLine) -> dict[str, Any]:
    """The options at the end of a line: those of sampling, `--seed` (one) and `--size`. Raises: InputError."""
    if not line.options:
        return {}
    parser = _parser()
    parser.prog = line.where
    try:
        words = shlex.split(line.options)
    except ValueError as error:
        raise InputError(f"{line.where}: {line.options!r:.80} can't be read ({error})") from error
    found, others = parser.parse_known_args(words)
    if others:
        hint = did_you_mean(others[0].partition("=")[0], names := _names(), 0.7)
        raise InputError(
            f"{line.where}: {others[0]!r:.40} is no option of a clip{hint}: expected one of {', '.join(names)}"
        )
    values = vars(found)
    if "controlnet" in values:
        raise InputError(f"{line.where}: --control loads a ControlNet: give it on the command line, for all clips")
    if "size" in values:
        values["width"], values["height"] = values.pop("size")
    return values


class LineParser(Parser):
    """A parser of the options of a line, whose errors are InputError."""

    def error(self, message: str) -> NoReturn:
        """Raises: InputError."""
        raise InputError(f"{self.prog}: {message}")


@cache
def _parser() -> LineParser:
    parser = LineParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_sampling(parser.add_argument_group())
    parser.add_argument("--seed", type=one_seed)
    parser.add_argument("--size", type=size)
    return parser


@cache
def _names() -> list[str]:
    return [name for action in _parser()._actions for name in action.option_strings[:1]]


def _check_dashes(text: str, where: str) -> None:
    """Raise InputError for an option with other dashes, as word processors make them of two hyphens."""
    for word in _DASHES.finditer(text):
        if f"--{word[1]}" in _names():
            raise InputError(
                f"{where}: {word[0]!r} does not begin with two hyphens: write --{word[1]} for the option, or a space "
                "after the dash if it belongs to the prompt"
            )


def read_travel_file(file: str) -> list[str] | dict[int, str]:
    """The prompts of one clip: one a frame, or a schedule by frames.

    Raises: InputError as `read_prompt_file` does, for options at the end of a line, for a file that mixes both, and for
        a frame that is there twice.
    """
    lines = read_prompt_file(file)
    texts = [line.without_options("all frames have the options of the command line") for line in lines]
    keys = [_KEY.match(text) for text in texts]
    if not any(keys):
        return texts
    schedule: dict[int, str] = {}
    for line, text, key in zip(lines, texts, keys, strict=True):
        if key is None:
            raise InputError(
                f"{line.where}: {text!r:.80} has no frame, other lines have: expected `FRAME: prompt` on every line, "
                "or on none"
            )
        frame, prompt = int(key[1]), text[key.end() :]
        if frame in schedule:
            raise InputError(f"{line.where}: frame {frame} has a prompt already: expected each frame once")
        if not prompt:
            raise InputError(f'{line.where}: frame {frame} has no prompt: write "" for the empty one')
        schedule[frame] = "" if prompt == '""' else prompt
    return schedule


def _text(file: str) -> str:
    """The text of a file. Raises: InputError."""
    try:
        content = read_bytes(file, MOST_BYTES)
    except (OSError, InputError) as error:
        raise InputError(f"{file}: can't be read as a text of prompts ({error})") from error
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not wide and b"\0" in content:
        raise InputError(
            f"{file}: it holds NUL bytes, as UTF-16 without a byte order mark does: save the file as UTF-8"
        )
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        part = content[error.start : error.start + 8].hex(" ")
        line = len(re.split(rb"\r\n|\n|\r", content[: error.start]))
        raise InputError(
            f"{file}, line {line}: the bytes {part} are no {'UTF-16' if wide else 'UTF-8'} ({error.reason}): save the "
            "file as UTF-8"
        ) from error
