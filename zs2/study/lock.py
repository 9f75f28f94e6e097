"""Several processes at work in one folder: who is there, and who makes what. No torch here.

Locks are POSIX record locks on bytes of DIR/.lock, an empty file. They hold between processes, also of several machines
where the file system has them, and end with their process, however it ends. Without them (Windows, some network file
systems) nothing is locked: then two processes may do the same work twice, with the same result.
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

PRESENT, WRITING, FIRST_NAME = 0, 1, 2  # bytes of the file; the last is where those of names begin


class Workplace:
    """A folder that several processes work in. Use it in `with`; the locks end with it, or with the process.

    folders: those in which unfinished files may lie, which are removed when nobody else is there.
    """

    def __init__(self, folder: Path, folders: Sequence[Path]) -> None:
        self.file, self.folders = folder / ".lock", folders

    def __enter__(self) -> Workplace:
        self._file = open(self.file, "a+b")
        self._clean()
        self._lock(PRESENT, shared=True, wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()
        self._file.close()

    def _clean(self) -> None:
        """Remove what killed processes left, if nobody else is here."""
        if self._lock(PRESENT) is not True:
            return
        for folder in self.folders:
            remove_unfinished(folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until no other process is in here."""
        self._lock(WRITING, wait=True)
        try:
            yield
        finally:
            self._unlock(WRITING)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may make what has this name: not while another one does."""
        byte = FIRST_NAME + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        mine = self._lock(byte) is not False
        try:
            yield mine
        finally:
            if mine:
                self._unlock(byte)

    def _lock(self, byte: int, shared: bool = False, wait: bool = False) -> bool | None:
        """Whether the lock was had; None where there are no locks."""
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
