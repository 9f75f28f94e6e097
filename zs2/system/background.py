"""Work that goes on beside other work, in a thread of its own: the hashing of weights beside sampling."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Begin some work now. Returns: what waits for its end, and returns what it returned or raises what it raised.

    Nobody waits for it where the program ends before.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result
