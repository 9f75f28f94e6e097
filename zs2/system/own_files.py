"""Files that a command writes anew each time, such as a report: it replaces its own, but nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from zs2.errors import InputError

HEAD = 4096  # bytes at the beginning of a file, in which its mark is


def check_own(files: Iterable[tuple[Path, tuple[str, ...]]], *, overwrite: bool | None = None) -> None:
    """Check that what is there by these names was written by the same command.

    Args:
        files: each with texts of which one is always in its first 4096 bytes.
        overwrite: the option of the command: whether other files are replaced; None if it has no such option.
    Raises: InputError for another file, or for a folder.
    """
    for file, marks in files:
        if os.path.lexists(file) and not is_own(file, *marks) and (file.is_dir() or not overwrite):
            hint = "" if overwrite is None or file.is_dir() else ", or --overwrite"
            raise InputError(f"{file} is there, and this command did not write it: expected a new name{hint}")


def is_own(file: Path, *marks: str) -> bool:
    """Whether a file has one of these texts in its first bytes."""
    try:
        head = b""
        if file.is_file():  # not a FIFO, which could be waited for
            with open(file, "rb") as opened:
                head = opened.read(HEAD)
        return any(mark.encode() in head for mark in marks)
    except OSError:
        return False
