"""Reading files that a stranger may have made: regular files only, of at most a known size.

A FIFO would be waited for, /dev/zero has no end, and a folder or a socket has no content. All are refused before they
are opened. So is a pointer of Git LFS, a short text in the place of a large file that was not fetched.
"""

from __future__ import annotations

import os
import stat

from zs2.errors import InputError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


POINTER = b"version https://git-lfs"  # how such a text begins
POINTER_MAX = 1024  # bytes of it, by its specification
HEAD = 512  # bytes that tell a file's kind


def file_identity(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """What tells a file from another of its name: its place on the disk, size and time. None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_regular(path: str | os.PathLike[str], most: int | None = None) -> os.stat_result:
    """Check that a path is a regular file of at most `most` bytes, and return its status.

    Raises: InputError for anything else, and for a pointer of Git LFS; OSError if there is nothing, or it can't be
        looked at.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{os.fspath(path)!r} names no file ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for test, kind in KINDS if test(status.st_mode)), "no regular file")
        raise InputError(f"{path}: {kind}: expected a file")
    if most is not None and status.st_size > most:
        raise InputError(f"{path}: {status.st_size} bytes: expected at most {most}")
    if status.st_size < POINTER_MAX and first_bytes(path).startswith(POINTER):
        raise InputError(f"{path}: a Git LFS pointer, not the file itself: run `git lfs pull`")
    return status


def first_bytes(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file, which tell its kind; none of what can't be read, or is no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises: as `check_regular` does."""
    size = check_regular(path, most).st_size
    with open(path, "rb") as file:
        content = file.read(size + 1)
    if len(content) > size:  # a file that is written to, or one of the kernel's, which has no size
        raise InputError(f"{path}: more than the {size} bytes that it says: expected a file that stays as it is")
    return content


def read_text(path: str | os.PathLike[str], most: int, encoding: str = "utf-8") -> str:
    """The text of a regular file, with the line ends as they stand. Raises: UnicodeDecodeError, and as `read_bytes`."""
    return read_bytes(path, most).decode(encoding)
