"""Reading the JSON files of a checkpoint, value by value. An error names the key at once, before anything is built."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from zs2.errors import InputError, choose, whole

Json = Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: InputError, with the file's name, if it is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


class Reader:
    """Reads the values of one JSON file. Every method raises InputError for a value of another kind.

    Args:
        what: the name of the file, for errors.
        json: its content.
        fixed: the values that a key may have if it is present. Any other value is another architecture.
        not_null: keys that may be missing, but not null: with null there the libraries fail.
    """

    def __init__(
        self, what: str, json: Json, fixed: Mapping[str, Sequence[Any]], not_null: Collection[str] = ()
    ) -> None:
        self.what, self.json = what, json
        for key in sorted(not_null):
            if json.get(key, key) is None:
                raise InputError(f"{what}: {key} is null: expected a value (the libraries that write such files fail)")
        for key, values in fixed.items():
            if key in json and json[key] not in values:
                raise InputError(
                    f"{what}: {key} = {json[key]!r} is not supported, only {values[0]!r}: another architecture"
                )

    def warn_of_unknown(self, known: set[str]) -> None:
        """Warn of keys that zs2 does not read and that are not off: they may mean another model."""
        on = {key for key, value in self.json.items() if value not in (None, False) and not key.startswith("_")}
        if on - known:
            unknown = ", ".join(sorted(on - known))
            warnings.warn(f"{self.what}: zs2 does not know {unknown}: the result may differ", stacklevel=4)

    def whole(self, key: str, default: int | None, least: int = 1) -> int:
        """A whole number of at least `least`. Without a default the key must be there."""
        return whole(f"{self.what}: {key}", self.json.get(key, default), least)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.json.get(key, default)
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise InputError(f"{self.what}: {key} is {repr(value)[:40]}: expected a number")
        return value

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of numbers, or None."""
        values = self.json.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise InputError(f"{self.what}: {key} is {values!r}: expected a list of numbers")
        return tuple(values)

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Null is false, whatever the default."""
        value = False if self.json.get(key, default) is None else self.json.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.what}: {key} is {value!r}: expected true or false")
        return value

    def name(self, key: str, default: str, options: Sequence[str]) -> str:
        """One of the options."""
        return choose(f"{key} in {self.what}", self.json.get(key, default), options)

    def kinds(self, key: str, default: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
        """Block types."""
        values = self.json.get(key, default)
        if not isinstance(values, list | tuple):
            raise InputError(f"{self.what}: {key} is {values!r}: expected a list of block types")
        return tuple(choose(f"block type in {self.what}", value, options) for value in values)

    def levels(
        self, key: str, default: int | tuple[int, ...], count: int | None = None, used: Sequence[bool] | None = None
    ) -> tuple[int, ...]:
        """A whole number for each level. If the number of levels is known, one number stands for all.

        Args:
            used: whether a level uses its number. The others become 1, whatever they are.
        """
        value = self.json.get(key, default)
        if count is not None and isinstance(value, int):
            value = (value,) * count
        if not isinstance(value, list | tuple) or not value or len(value) != (count or len(value)):
            expected = "a list" if count is None else f"one whole number, or {count} of them"
            raise InputError(f"{self.what}: {key} is {value!r}: expected {expected}")
        if used is not None:
            value = [number if use else 1 for number, use in zip(value, used, strict=True)]
        return tuple(whole(f"{self.what}: {key}", number, 1) for number in value)

    def check_divides(self, widths: Sequence[int], parts: Sequence[int], key: str) -> None:
        """Check that each width can be divided into its number of parts."""
        for width, part in zip(widths, parts, strict=True):
            if width % part:
                raise InputError(f"{self.what}: {key} is {part}, which does not divide {width} channels")

    def pair(self, key: str) -> tuple[int, int] | None:
        """A height and a width, or one number for both. None if the key is missing, or a number is null."""
        size = self.json.get(key)
        sides = [size, size] if isinstance(size, int) or size is None else size
        if not isinstance(sides, list) or len(sides) != 2:
            raise InputError(f"{self.what}: {key} is {size!r}: expected a whole number, or two")
        if None in sides:
            return None
        return whole(f"{self.what}: {key}", sides[0], 1), whole(f"{self.what}: {key}", sides[1], 1)
