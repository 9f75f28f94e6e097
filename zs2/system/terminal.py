"""Everything that zs2 prints goes through `show`, so that text of a stranger's file is shown and never obeyed.

A terminal obeys control characters: they move the cursor, hide lines, or rename the window. Here they are shown as
escapes, such as \\x1b. A text of more than 400 characters is shortened in its middle.
"""

from __future__ import annotations

import io
import sys
from typing import TextIO

from zs2.system.stopping import SIGPIPE, Stopped, to_nowhere

MOST = 400  # characters of a line
TAIL = 120  # of them after the cut: the end of an error says what to do


def shown(text: str, most: int | None = MOST) -> str:
    """A text as one line for a terminal: without control characters, and of at most `most` characters."""
    line = _escaped(_shortened(text, most))
    return line if line.isprintable() and len(line) <= (most or len(line)) else _shortened(line, most)


def show(*lines: str, to: TextIO | None = None, most: int | None = MOST) -> None:
    """Print each text as one line, on standard output or another stream. most: None for text that is never cut.

    Raises: as `write` does.
    """
    write("".join(f"{shown(line, most)}\n" for line in lines), sys.stdout if to is None else to)


def write(text: str, out: TextIO | None) -> None:
    """Write a text as it is, at once. A stream that is closed (None, of Python's own) takes nothing.

    Raises: Stopped, where nobody reads the pipe any more (`zs2 models | head`): SIGPIPE ends other programs there.
    """
    if out is None:
        return
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        to_nowhere(out)  # what is still to be written would fail, too
        if isinstance(error, BrokenPipeError):
            raise Stopped(SIGPIPE) from None
        raise


class Escaping(io.TextIOBase):
    """A stream for libraries that print a stranger's text as it is: it passes lines on without control characters."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write lines to the other stream."""
        self._out.write("\n".join(map(_escaped, text.split("\n"))))
        return len(text)

    def flush(self) -> None:
        """Flush the other stream."""
        self._out.flush()

    def fileno(self) -> int:
        """The file of the other stream."""
        return self._out.fileno()

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self._out.isatty()


def _shortened(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    tail = min(TAIL, most // 3)
    cut = f" … ({len(text)} characters) … "
    return text[: max(most - tail - len(cut), 0)] + cut + text[len(text) - tail :]


def _escaped(text: str) -> str:
    """A text with its control characters, line ends and lone surrogates as escapes. Accents and emoji stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
