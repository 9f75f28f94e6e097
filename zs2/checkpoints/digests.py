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
from collections.abc import Iterable
from pathlib import Path

from zs2.system.atomic import write_json

LARGE = 2**28  # bytes from which a digest is kept; less is hashed in under half a second
SETTLED = 2  # seconds since the last change: a second change in the same tick of the file system's clock can't be seen
KEPT = 200  # the number of digests to keep: the last ones


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of some files, one after another."""
    files = list(files)
    before = [file.stat() for file in files]
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
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _state(stats: Iterable[os.stat_result]) -> str:
    return " ".join(f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for s in stats)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "zs2", "sha256.json")


def _kept() -> dict[str, str]:
    """The digests in the cache, without entries that are none. If the file is missing or is not a cache: nothing."""
    try:
        kept = json.loads(_cache().read_text(encoding="utf-8"))
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
