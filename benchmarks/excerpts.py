"""Fill the tables of the documents from the CSVs in docs/data.

    python benchmarks/excerpts.py             all documents; prints those that changed
    python benchmarks/excerpts.py --check     change nothing; exit with 1 if a table is out of date

A comment before a table says where its rows are from: the CSV's columns in the table's order, and which rows. A `+`
shows the signs of a column, and `mean (low … high)` three columns in one cell, the latter two where they are not empty.
Values are separated by `|`, and the rows come in their order:

    <!-- data/ablation.csv: variant, mean, +difference, low, high; prompts = open; variant = A | B -->

Values that several tables share are named before: `<!-- $parts = A | B -->`, then `variant = $parts`. The head of the
table stands in the document, so its titles are free. Cells are the CSV's, to the last digit.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from zs2.errors import InputError
from zs2.system.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "docs/*.md", "weights/*/README.md")
NAMED = re.compile(r"<!-- (\$\w+) = ([^>]*?) -->")
BEGUN = re.compile(r"<!-- data/[^>]*>?")
JOINED = re.compile(r"(.*?) \((.*?) … (.*?)\)")
TABLE = re.compile(r"(<!-- (data/[\w-]+\.csv): ([^>]*?) -->\n+(?:\|.*\n){2})((?:\|.*\n)*)")


def shown(text: str, signed: bool = False) -> str:
    """A cell of a CSV as a document shows it."""
    plus = "+" if signed and re.match(r"[\d.]*[1-9]", text) else ""
    return plus + re.sub(r"^-(?=[\d.])", "−", text).replace("|", r"\|")


def _columns(column: str) -> Sequence[str]:
    """The columns of the CSV that a table's column shows: one, or three as `mean (low … high)`."""
    joined = JOINED.fullmatch(column)
    return [column] if joined is None else joined.groups()


def _cell(row: dict[str, str], column: str) -> str:
    """A cell of a document's table."""
    value, *ends = (shown(row[one.lstrip("+")], one.startswith("+")) for one in _columns(column))
    return f"{value} ({ends[0]} … {ends[1]})" if any(ends) else value


def rows(folder: Path, name: str, what: str) -> list[str]:
    """The rows of a table in Markdown. what: the columns and conditions of its comment.

    Raises: InputError for a CSV that is not there or has no rows, for a row of another length than the head, for a
        column that the CSV lacks, for a condition without a value, and for a value that no row has.
    """
    head, found = read(folder / name, name)
    columns, *conditions = (part.strip() for part in " ".join(what.split()).split(";"))
    names = [column.strip() for column in columns.split(",")]
    single = [part for one in names for part in _columns(one)]
    for column in (*(one.lstrip("+") for one in single), *(one.split("=")[0].strip() for one in conditions)):
        if column not in head:
            raise InputError(f"{name} has no column {column!r}, only {', '.join(head)}")
    for condition in conditions:
        column, is_given, values = (part.strip() for part in condition.partition("="))
        if not is_given:
            raise InputError(f"{name}: the condition {condition!r} has no value: expected COLUMN = VALUE")
        wanted = [value.strip() for value in values.split("|")]
        missing = [value for value in wanted if all(row[column] != value for row in found)]
        if missing:
            raise InputError(f"{name}: no row has {column} = {missing[0]}")
        found = sorted((row for row in found if row[column] in wanted), key=lambda row: wanted.index(row[column]))
    cells = ([_cell(row, one) for one in names] for row in found)
    return [f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|\n" for line in cells]


def read(file: Path, name: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV. name: what errors call it. Raises: InputError as `rows` does."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.reader(opened)
            (_, head), *lines = [(reader.line_num, line) for line in reader if line] or [(1, [])]
    except FileNotFoundError:
        raise InputError(f"{name} is not there: expected a CSV of that name") from None
    if not lines:
        raise InputError(f"{name} has no rows{' below its head' * bool(head)}: expected at least one")
    for number, line in lines:  # as an editor counts them, empty ones included
        if len(line) != len(head):
            raise InputError(f"{name}, line {number}: {len(line)} cells, expected {len(head)}, as the head has")
    return head, [dict(zip(head, line, strict=True)) for _, line in lines]


def filled(page: str, folder: Path = DOCS) -> str:
    """A document with its tables filled anew. folder: what the CSVs' names are relative to.

    Raises: InputError as `rows` does, and for a comment that names a CSV, but can't be read or has no table after it.
    """
    named = dict(NAMED.findall(page))
    if lost := BEGUN.search(TABLE.sub("", page)):
        raise InputError(
            f"{lost[0]!r} fills no table: expected <!-- data/NAME.csv: COLUMNS; … -->, then a table's head"
        )

    def table(match: re.Match[str]) -> str:
        what = re.sub(r"\$\w+", lambda name: named.get(name[0], name[0]), match[3])
        return match[1] + "".join(rows(folder, match[2], what))

    return TABLE.sub(table, page)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is out of date")
    args = p.parse_args(argv)
    changed = []
    for file in (file for pattern in PAGES for file in sorted(ROOT.glob(pattern))):
        old = file.read_text(encoding="utf-8")
        try:
            new = filled(old)
        except InputError as error:
            print(f"error: {file.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if new != old:
            changed.append(file)
            if not args.check:
                write_text(file, new)
            print(f"{file.relative_to(ROOT)}: {'out of date' if args.check else 'filled'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
