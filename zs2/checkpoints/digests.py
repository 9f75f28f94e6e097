"""The SHA-256 of weights, and the memory of it: gigabytes take seconds to hash, and seldom change.

The digests of large files are kept in `zs2/sha256.json` of the user's cache, by what the file system says of the files:
device, inode, size, and the times of the last change of content and of anything at all. Another file, or this one
written again, differs in one of them, and is hashed. The cache has no names; without it, everything is hashed.
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

LARGE = 2**28  # bytes of what is kept: the rest is hashed in less than half a second
SETTLED = 2  # seconds since the last change: within a file system's clock tick another one would not show
KEPT = 200  # digests, the last ones


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
    """What is kept, without what is no digest: nothing where there is no such file, or another one."""
    try:
        kept = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last: no home, or nested too deeply
        return {}
    if not isinstance(kept, dict):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v)}


def _keep(state: str, digest: str) -> None:
    """Add a digest to the cache. Where the cache can't be written, nothing happens."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _cache()
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept() | {state: digest}
        write_json(file, dict(list(kept.items())[-KEPT:]))
