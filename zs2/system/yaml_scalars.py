"""The scalars of a YAML file by their path, for the configurations that lie beside original checkpoints.

That is the part of YAML that such files use: mappings by indentation, lists whose entries are mappings, quotes and
comments. Values in flow style (`[1, 2]`, `{a: b}`) stay text. No YAML library is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

from zs2.errors import InputError
from zs2.system.regular_files import read_text

MOST_BYTES = 1_000_000
LINE = re.compile(
    r"(?P<spaces> *)(?P<dashes>(?:- +)*)(?P<key>[^\s#:'\"-][^#:]*?|'[^']*'|\"[^\"]*\")\s*:(?:\s+(?P<value>.*))?"
)
QUOTED = re.compile(r"(['\"])(.*?)\1")


def read_scalars(path: Path) -> dict[str, str]:
    """`a.b.c` → the text of the scalar there, without quotes and comment. Of the entries of a list, the last counts.

    Raises: InputError for a file that is too large or no text.
    """
    try:
        lines = read_text(path, MOST_BYTES, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as YAML ({error})") from error
    scalars: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # the keys that a line stands under, with their indentation
    for line in lines:
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        spaces, indent = len(match["spaces"]), len(match["spaces"]) + len(match["dashes"])
        key = match["key"].strip("'\"")
        while above and (above[-1][0] > spaces or (not match["dashes"] and above[-1][0] == spaces)):
            above.pop()  # a list can stand at the indentation of its key
        above.append((indent, key))
        value = _scalar(match["value"] or "")
        if value:
            scalars[".".join(name for _, name in above)] = value
    return scalars


def _scalar(text: str) -> str:
    quoted = QUOTED.match(text)
    return quoted[2] if quoted else re.split(r"(?:^|\s)#", text)[0].strip()
