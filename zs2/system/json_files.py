"""Reading JSON files, value by value. An error names the file and the key at once, before anything is built.

A JSON may be a stranger's. After `parse_json` its texts can be written and its nesting is shallow. After a method of
`Reader` a value has the type and the bounds that its user expects.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zs2.errors import InputError, brief, choose, warn, whole
from zs2.system.regular_files import read_bytes

Json = Mapping[str, Any]

MOST_BYTES = 4 * 2**20  # of a configuration
LARGE_BYTES = 64 * 2**20  # of a vocabulary or a study
MOST_DEPTH = 100  # of lists and objects in each other
MOST_NAME = 100  # characters: a path of Windows has 260, a name of Linux 255
NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MOST_NAME - 1}}}")  # from a file; it may become part of a path

# The most that sizes in JSONs can be: far above what any model has, and small enough to be built, or refused, at once.
MOST_CHANNELS = 2**16  # of a layer
MOST_LAYERS = 1000
MOST_LEVELS = 16  # each halves the resolution
MOST_TOKENS = 10**7  # ids of a vocabulary
MOST_PIXELS = 2**16  # of a side
MOST_TIMESTEPS = 10**5


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `most` bytes.

    Raises: InputError, with the file's name, if it is missing, no regular file, too large, or anything but a JSON
        object. Warns of a key that is there twice.
    """
    try:
        return parse_json(str(path), read_bytes(path, most).decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as JSON ({error})") from error


def parse_json(what: str, text: str) -> dict[str, Any]:
    """The JSON object in a text. what: its name, for errors.

    Raises: InputError for anything else, for NaN and infinity, which JSON does not have, for half a surrogate pair,
        and for lists and objects that are nested too deeply. Warns of a key that is there twice.
    """
    repeated: list[str] = []

    def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and not repeated:
            repeated.extend([key for key, times in Counter(key for key, _ in pairs).items() if times > 1][:3])
        return found

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        value = json.loads(text, object_pairs_hook=merged, parse_constant=no_number)
        if re.search(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
        if not _is_shallow(value):
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: can't be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{what}: expected a JSON object, got a {type(value).__name__}")
    if repeated:
        warn(f"{what}: {', '.join(map(brief, repeated))} is there twice: the last one counts")
    return value


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are at most MOST_DEPTH deep in each other."""
    within = [value]
    for _ in range(MOST_DEPTH):
        within = [part for outer in within if isinstance(outer, dict | list) for part in _containers(outer)]
        if not within:
            return True
    return False


def _containers(outer: dict[str, Any] | list[Any]) -> Iterator[Any]:
    values = outer.values() if isinstance(outer, dict) else outer
    return (part for part in values if isinstance(part, dict | list))


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
                    f"{what}: {key} = {brief(json[key])} is not supported, only {values[0]!r}: another architecture"
                )

    def warn_of_unknown(self, known: set[str]) -> None:
        """Warn of keys that zs2 does not read and that are not off: they may mean another model."""
        on = {key for key, value in self.json.items() if value not in (None, False) and not key.startswith("_")}
        if on - known:
            unknown = ", ".join(sorted(on - known))
            warn(f"{self.what}: zs2 does not know {unknown}: the result may differ")

    def whole(self, key: str, default: int | None, least: int = 1, most: int | None = None) -> int:
        """A whole number from `least` to `most`. Without a default the key must be there."""
        return whole(f"{self.what}: {key}", self.json.get(key, default), least, most)

    def number(self, key: str, default: float | None, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number from `least` to `most`. Without a default the key must be there."""
        value = self.json.get(key, default)
        if not is_number(value) or not least <= value <= most:
            span = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected a number{span}")
        return value

    def numbers(self, key: str, least: float = -math.inf, most: float = math.inf) -> tuple[float, ...] | None:
        """A list of finite numbers from `least` to `most`, or None."""
        values = self.json.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(is_number(value) and least <= value <= most for value in values):
            span = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
            raise InputError(f"{self.what}: {key} is {brief(values)}: expected a list of numbers{span}")
        return tuple(values)

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Null is false, whatever the default."""
        value = False if self.json.get(key, default) is None else self.json.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected true or false")
        return value

    def name(self, key: str, default: str | None, options: Sequence[str]) -> str:
        """One of the options. Without a default the key must be there."""
        return choose(f"{key} in {self.what}", self.json.get(key, default), options)

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Without a default the key must be there."""
        value = self.json.get(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected a text")
        return value

    def path_name(self, key: str) -> str:
        """A name that may become part of a path, and so can't lead out of its folder."""
        value = self.text(key)
        if not NAME.fullmatch(value):
            expected = f"letters, digits, '.', '_' and '-', at most {MOST_NAME} and no '.' first"
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected {expected}")
        return value

    def within(self, key: str, most: int) -> list[Reader]:
        """A reader for each object of a list that has at most `most` of them."""
        values = self.json.get(key)
        if not isinstance(values, list) or len(values) > most or not all(isinstance(one, dict) for one in values):
            raise InputError(f"{self.what}: {key} is {brief(values)}: expected a list of at most {most} objects")
        return [Reader(f"{self.what}: {key} {i}", value, {}) for i, value in enumerate(values)]

    def object(self, key: str) -> Json | None:
        """An object, or None."""
        value = self.json.get(key)
        if not isinstance(value, dict | None):
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected a JSON object")
        return value

    def texts(self, key: str) -> dict[str, str] | None:
        """An object whose values are texts, or None."""
        values = self.object(key)
        if values is not None and not all(isinstance(value, str) for value in values.values()):
            raise InputError(f"{self.what}: {key} is {brief(values)}: expected texts")
        return None if values is None else dict(values)

    def kinds(self, key: str, default: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
        """Block types."""
        values = self.json.get(key, default)
        if not isinstance(values, list | tuple) or len(values) > MOST_LEVELS:
            raise InputError(f"{self.what}: {key} is {brief(values)}: expected a list of block types")
        return tuple(choose(f"block type in {self.what}", value, options) for value in values)

    def levels(
        self,
        key: str,
        default: int | tuple[int, ...],
        count: int | None = None,
        used: Sequence[bool] | None = None,
        most: int = MOST_CHANNELS,
    ) -> tuple[int, ...]:
        """A whole number for each level, at most `most`. If the number of levels is known, one number stands for all.

        Args:
            used: whether a level uses its number. The others become 1, whatever they are.
        """
        value = self.json.get(key, default)
        if count is not None and isinstance(value, int):
            value = (value,) * count
        length = len(value) if isinstance(value, list | tuple) else 0
        if not 1 <= length <= MOST_LEVELS or length != (count or length):
            expected = "a list" if count is None else f"one whole number, or {count} of them"
            raise InputError(f"{self.what}: {key} is {brief(value)}: expected {expected}")
        if used is not None:
            value = [number if use else 1 for number, use in zip(value, used, strict=True)]
        return tuple(whole(f"{self.what}: {key}", number, 1, most) for number in value)

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
            raise InputError(f"{self.what}: {key} is {brief(size)}: expected a whole number, or two")
        if None in sides:
            return None
        height, width = (whole(f"{self.what}: {key}", side, 1, MOST_PIXELS) for side in sides)
        return height, width


def is_number(value: object) -> bool:
    """Whether a value of a JSON is a finite number, and no true or false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # 10^400 as a whole number
        return False
