"""Reading a checkpoint's JSON, and writing files whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zs2.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: InputError that names the file if it is missing or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value
