"""Files that are written whole or not at all: under a temporary name first, then renamed to their own.

A temporary file or folder lies in the target's folder, because a rename is only atomic within one file system. Its
name begins with `.zs2-` and ends with `.part`. It goes away whatever is raised. Only a killed process leaves one, which
`remove_unfinished` removes later.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PREFIX, SUFFIX = ".zs2-", ".part"  # of temporary names


def write_bytes(file: Path, content: bytes) -> None:
    """Write one file. Readers get the old content or the new one, never a part. Raises: OSError."""
    with _temporary_folder(file.parent) as folder:
        part = Path(folder, file.name)
        part.write_bytes(content)
        os.replace(part, file)


def write_text(file: Path, text: str) -> None:
    """Write one file in UTF-8, with line ends as they stand in the text. Raises: OSError."""
    write_bytes(file, text.encode())


def write_json(file: Path, value: Any) -> None:
    """Write one JSON file, in UTF-8 and indented by 1. Raises: OSError; TypeError for what JSON does not have."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_all(jobs: Mapping[Path, Callable[[Path], object]], record: Path | None = None) -> None:
    """Write several files or folders that belong together. None is renamed before all are written.

    If anything is raised, KeyboardInterrupt included, no temporary file stays. Each target is then the old one or the
    new one. Only the record can be missing: an old one is moved away before the first target changes, and the new one
    comes last. So a record always describes the targets that are there.

    Args:
        jobs: for each target, in the order of renaming, a function that writes it to the path it is called with. All
            targets are in one folder, which is made if it is missing.
        record: the target that describes the others, such as a clip's settings: the last of `jobs`.
    Raises: OSError, and what the jobs raise.
    """
    folder = next(iter(jobs)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(folder) as stage:
        new, old = Path(stage, "new"), Path(stage, "old")
        new.mkdir()
        old.mkdir()
        for target, write in jobs.items():
            write(new / target.name)
        if record is not None and record.exists():
            os.replace(record, old / record.name)
        for target in jobs:
            _replace(new / target.name, target, old / target.name)


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


def check_writable(folder: Path) -> None:
    """Try to write in a folder, leaving no trace. Permissions alone do not tell. Raises: OSError if it fails."""
    with tempfile.TemporaryFile(dir=folder, prefix=PREFIX, suffix=SUFFIX):
        pass


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left. No other process may be writing there."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=folder, prefix=PREFIX, suffix=SUFFIX)
