"""Files that are written whole or not at all: under a temporary name first, then renamed to their own.

A temporary folder lies in the target's folder, because a rename is only atomic within one file system. Its name begins
with `.zs2-` and ends with `.part`. It goes away whatever is raised. Only a killed process leaves one, which
`remove_unfinished` removes later.

Each has a file `lock`, which its process holds locked (flock) as long as it lives. So the folder of a living process is
never taken for a dead one's, on this machine or another that shares the file system.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from zs2.errors import NotWritten

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".zs2-", ".part"  # of temporary names
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, the limit of a file's size
LOCK = "lock"  # the file in a temporary folder that its process holds locked


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Name the file that is written, if the block fails to write it. Raises: NotWritten, or FileExistsError."""
    try:
        yield
    except (NotWritten, FileExistsError):  # what is there stays: who asked for the file says so
        raise
    except OSError as error:
        message = f"{target} can't be written ({error.strerror or error}): {write_advice(error.errno, target.parent)}"
        failed = NotWritten(message)
        failed.errno = error.errno
        raise failed from error


def write_advice(number: int | None, folder: Path, elsewhere: str = "choose another place") -> str:
    """What to do where a file in a folder can't be written. number: of the error."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"make room on the disk of {folder.absolute()}, or {elsewhere}"
    if number == errno.EFBIG and resource is not None:
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY:
            return f"a file may have {most} bytes here: raise that limit (ulimit -f)"
    return elsewhere


def write_bytes(file: Path, content: bytes) -> None:
    """Write one file. Readers get the old content or the new one, never a part. Raises: NotWritten."""
    with writing(file), _temporary_folder(file.parent) as folder:
        part = folder / "new"
        part.write_bytes(content)
        os.replace(part, file)


def write_text(file: Path, text: str) -> None:
    """Write one file in UTF-8, with line ends as they stand in the text. Raises: NotWritten."""
    write_bytes(file, text.encode())


def write_json(file: Path, value: Any) -> None:
    """Write one JSON file, in UTF-8 and indented by 1. Raises: NotWritten; TypeError for what JSON does not have."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_all(
    jobs: Mapping[Path, Callable[[Path], object]],
    record: Path | None = None,
    choose: Callable[[], Mapping[Path, bool]] | None = None,
) -> list[Path]:
    """Write several files or folders that belong together. None is renamed before all are written.

    If anything is raised, KeyboardInterrupt included, no temporary file stays. Each target is then the old one or the
    new one. Only the record can be missing: an old one is moved away before the first target changes, and the new one
    comes last. So a record always describes the targets that are there.

    Args:
        jobs: for each target, in the order of renaming, a function that writes it to the path it is called with. All
            targets are in one folder, which is made if it is missing.
        record: the target that describes the others, such as a clip's settings: the last of `jobs`.
        choose: see `rename_all`.
    Returns: the targets. Raises: NotWritten, and what the jobs raise.
    """
    first = next(iter(jobs))
    with writing(first):
        first.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(first.parent) as stage:
            new, old = stage / "new", stage / "old"
            new.mkdir()
            old.mkdir()
            for target, write in jobs.items():
                with writing(target):
                    write(new / target.name)
            return rename_all({target: new / target.name for target in jobs}, old, record, choose)


def rename_all(
    written: Mapping[Path, Path],
    old: Path,
    record: Path | None = None,
    choose: Callable[[], Mapping[Path, bool]] | None = None,
) -> list[Path]:
    """Rename files or folders that are written, all in one file system, to their targets; see `write_all`.

    No other process renames in their folder meanwhile, where the file system has locks. Where it has none, a target
    that may not be replaced still isn't.

    Args:
        written: where each target is now. old: a folder for what was there before.
        choose: returns the targets, in the order of `written`, and whether each replaces what is there (default: those
            of `written`, and they do). It is called when all is written, and again if another process has taken the
            first target meanwhile.
    Returns: the targets. Raises: NotWritten; FileExistsError for what may not be replaced; what `choose` raises.
    """
    sources = list(written.values())
    with _locked(next(iter(written)).parent):
        while True:
            targets = dict.fromkeys(written, True) if choose is None else choose()
            last = [*targets][-1]
            if record is not None and targets[last] and last.exists():
                with writing(last):
                    os.replace(last, old / last.name)
            for source, (target, replace) in zip(sources, targets.items(), strict=True):
                try:
                    with writing(target):
                        _replace(source, target, old / target.name) if replace else _rename(source, target)
                except FileExistsError:
                    if source != sources[0]:
                        raise
                    break
            else:
                return [*targets]


def _rename(new: Path, target: Path) -> None:
    """Rename `new` to `target`. Raises: FileExistsError if anything but an empty folder is there."""
    try:
        if new.is_dir():
            os.rename(new, target)
            return
        os.link(new, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        if new.is_dir():
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # a file system without links
        os.replace(new, target)
    else:
        os.unlink(new)


def _replace(new: Path, target: Path, old: Path) -> None:
    """Rename `new` to `target`. A folder there is first renamed to `old`, since only a file can be replaced at once."""
    is_folder = target.is_dir()
    try:
        if is_folder:
            os.replace(target, old)
        os.replace(new, target)
    except BaseException:
        if is_folder and not os.path.lexists(target):
            os.replace(old, target)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of this folder. Without locks, go on."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def check_writable(folder: Path) -> None:
    """Try to write in a folder, leaving no trace. Permissions alone do not tell. Raises: OSError if it fails."""
    with tempfile.TemporaryFile(dir=folder, prefix=PREFIX, suffix=SUFFIX):
        pass


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the temporary files and folders that dead processes left. Returns: their paths.

    Those of living processes stay, and all of them where the file system has no locks.
    """
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
        with contextlib.suppress(OSError):
            lock = try_lock(path / LOCK if path.is_dir() else path)
            if lock is not None:
                with lock:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


class NoLocks(OSError):
    """The file system, or Windows, has no locks."""


def try_lock(file: Path) -> IO[bytes] | None:
    """Lock a file, which is made if it is missing, until it is closed or the process ends.

    Returns: the open file; None if another process has locked or removed it. Raises: NoLocks; OSError.
    """
    if fcntl is None:
        raise NoLocks
    try:
        opened = open(file, "a+b")  # noqa: SIM115 (it stays open)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        opened.close()
        if isinstance(error, BlockingIOError):
            return None
        raise NoLocks from error
    try:
        if os.path.samestat(os.fstat(opened.fileno()), os.stat(file)):
            return opened
    except OSError:  # it is gone
        pass
    opened.close()
    return None


def _remove(folder: Path) -> None:
    """Remove a folder, also if a signal comes just then."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder, locked until it is removed at the end of the block."""
    path, lock = None, None
    try:
        with contextlib.suppress(NoLocks):
            while lock is None:  # again, if a clean-up took the folder for a dead process's before it was locked
                path = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX, suffix=SUFFIX))
                lock = try_lock(path / LOCK)
        assert path is not None
        yield path
    finally:
        if path is not None:
            _remove(path)
        if lock is not None:
            lock.close()
