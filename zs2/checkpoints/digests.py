"""The SHA-256 of weights, with a cache: gigabytes take seconds to hash, and seldom change.

The digests of large files are kept in `zs2/sha256.json` in the user's cache. The key is what the file system knows of
the files: device, inode, size, and the times of the last change of the content and of the inode. Another file, or the
same file written again, differs in one of these, and is hashed. The cache holds no file names. Without the cache,
everything is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from zs2.errors import InputError
from zs2.system.atomic import write_json
from zs2.system.regular_files import check_regular, file_identity, read_text

LARGE = 2**28  # bytes from which a digest is kept; less is hashed in under half a second
SETTLED = 2  # seconds since the last change: a second change in the same tick of the file system's clock can't be seen
MOST_BYTES = 2**20  # of the cache
KEPT = 200  # the number of digests to keep: the last ones


class ChangedFile(InputError):
    """A file is not the one that was loaded: it was replaced, written to, or removed since."""


def identity(files: Iterable[Path]) -> list[tuple[int, ...] | None]:
    """What tells files from others of the same names: device, inode, size, and the time of the last change.

    None for a file that is missing. Take it before the files are opened, and compare it after they are hashed.
    """
    return [file_identity(file) for file in files]


def check_identity(files: Sequence[Path], before: Sequence[tuple[int, ...] | None]) -> None:
    """Raise `ChangedFile` if files are not those whose identity was taken before."""
    now = identity(files)
    changed = [file for file, one, other in zip(files, now, before, strict=False) if one != other]
    if changed or len(now) != len(before):
        name = changed[0].name if changed else "a file"
        raise ChangedFile(f"{name} was changed after it was loaded")


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of some files, one after another.

    Raises: InputError for a file of the hub's cache whose content is not what its name says; `ChangedFile` for a file
        that is gone.
    """
    files = list(files)
    try:
        before = [check_regular(file) for file in files]
    except FileNotFoundError as error:
        raise ChangedFile(f"{Path(error.filename).name} is gone") from error
    if sum(stat.st_size for stat in before) < LARGE:
        return _hash(files)
    state, kept = _state(before), _kept()
    if state in kept:
        return kept[state]
    digest = _hash(files)
    settled = time.time() - max(max(stat.st_mtime, stat.st_ctime) for stat in before) > SETTLED
    if settled and _state(file.stat() for file in files) == state:
        _keep(state, digest)
    return digest


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        own, named = hashlib.sha256(), _named(path)
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
                if named:
                    own.update(block)
        if named and own.hexdigest() != named:
            raise InputError(
                f"{path.parent.name}/{path.name} is damaged: its SHA-256 is {own.hexdigest()}, the hub says {named}: "
                f"remove {path.resolve()} and fetch it again"
            )
    return digest.hexdigest()


def _named(path: Path) -> str | None:
    """The SHA-256 by which the hub's cache names a large file. Small files have another digest in their names."""
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name) else None


def _state(stats: Iterable[os.stat_result]) -> str:
    return " ".join(f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for s in stats)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "zs2", "sha256.json")


def _kept() -> dict[str, str]:
    """The digests in the cache, without entries that are none. If the file is missing or is not a cache: nothing."""
    try:
        kept = json.loads(read_text(_cache(), MOST_BYTES))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder, or JSON is nested too deeply
        return {}
    if not isinstance(kept, dict):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v)}


def _keep(state: str, digest: str) -> None:
    """Add a digest to the cache. If the cache can't be written, nothing happens."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _cache()
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept() | {state: digest}
        write_json(file, dict(list(kept.items())[-KEPT:]))
