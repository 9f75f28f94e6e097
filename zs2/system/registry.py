"""Tables of named things: attention kinds, noise models, solvers, metrics. One row is all that a new one needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from zs2.errors import choose


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by their names, in the order in which they were added.

    Args:
        what: what a row is, for error messages, such as "noise model".
        rows: the first rows.
        check: raises ValueError for a row that can't be added.
    """

    def __init__(self, what: str, rows: Iterable[Row] = (), check: Callable[[Row], None] | None = None) -> None:
        self.what, self._check = what, check
        self._rows: dict[str, Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> Row:
        """Add a row and return it. Raises: ValueError if the name is taken, or the row does not fit."""
        if row.name in self._rows:
            raise ValueError(f"there is a {self.what} {row.name!r} already: choose another name")
        if self._check is not None:
            self._check(row)
        self._rows[row.name] = row
        return row

    def remove(self, name: str) -> None:
        """Take a row out again. Raises: InputError if there is none of that name."""
        del self._rows[self[name].name]

    def __getitem__(self, name: str) -> Row:
        """The row of a name. Raises: InputError that lists the names, with the nearest one."""
        return self._rows[choose(self.what, name, tuple(self._rows))]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def load(implementation: Any) -> Any:
    """What a row names as its implementation: an object itself, or `module:name`, imported when it is first needed."""
    if not isinstance(implementation, str):
        return implementation
    module, _, name = implementation.partition(":")
    return getattr(import_module(module), name)
