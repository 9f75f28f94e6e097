"""Several processes at work in one folder: which are there, and which one does what. No torch here.

The locks are POSIX record locks on bytes of DIR/.lock, an empty file. They hold between processes, also of several
machines if the file system supports it, and they end with their process, however it ends. Without locks (on Windows and
some network file systems) two processes may do the same work twice, with the same result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zs2.system.atomic import remove_unfinished

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PRESENT, WRITING, FIRST_NAME = 0, 1, 2  # bytes of the file; the bytes of names begin at the last


class Workplace:
    """A folder that several processes work in. Use it in `with`: the locks end with it, or with the process.

    Args:
        folder: where the lock file is.
        folders: where unfinished files may lie. They are removed when no other process is there.
    Attributes: removed: what killed processes had left.
    """

    def __init__(self, folder: Path, folders: Sequence[Path]) -> None:
        self.file, self.folders = folder / ".lock", folders

    def __enter__(self) -> Workplace:
        self._file = open(self.file, "a+b")
        self.removed = self._clean()
        self._lock(PRESENT, shared=True, wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()
        self._file.close()

    def _clean(self) -> list[Path]:
        """Remove what killed processes left, if no other process is here. Returns: what it was."""
        if self._lock(PRESENT) is not True:
            return []
        return [path for folder in self.folders for path in remove_unfinished(folder)]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until no other process is in this block."""
        self._lock(WRITING, wait=True)
        try:
            yield
        finally:
            self._unlock(WRITING)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may do the work of this name. It may not while another one does."""
        byte = FIRST_NAME + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        mine = self._lock(byte) is not False
        try:
            yield mine
        finally:
            if mine:
                self._unlock(byte)

    def _lock(self, byte: int, shared: bool = False, wait: bool = False) -> bool | None:
        """Try to lock a byte. Returns: whether this process has the lock; None where there are no locks."""
        if fcntl is None:
            return None
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._file, how, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # this file system has none
            return None
        return True

    def _unlock(self, byte: int) -> None:
        if fcntl is not None and not self._file.closed:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
            except OSError:
                return
