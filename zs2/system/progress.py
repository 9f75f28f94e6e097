"""A progress bar on standard error, for anything that yields."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")
WIDTH = 24


def progress(items: Iterable[T], total: int, label: str, stream: TextIO | None = None) -> Iterator[T]:
    """Yield the items, drawing a bar with the time left; on something that is no terminal, one line every 30 seconds.

    Args:
        total: how many items there will be. label: what is being done. stream: standard error by default.
    """
    out = sys.stderr if stream is None else stream
    live = out.isatty()
    start = said = time.monotonic()
    done = 0
    try:
        for done, item in enumerate(items, 1):
            now = time.monotonic()
            left = (now - start) / done * (total - done)
            if live:
                bar = "█" * (WIDTH * done // total)
                print(f"\r{label} {bar:░<{WIDTH}} {done}/{total}, {left:.0f} s left ", end="", file=out, flush=True)
            elif now - said > 30 and done < total:
                said = now
                print(f"{label} {done}/{total}, {left:.0f} s left", file=out, flush=True)
            yield item
    finally:
        if live and 0 < done < total:  # stopped: what is said next begins a line of its own
            print(file=out, flush=True)
    seconds = time.monotonic() - start
    print(f"{chr(13) * live}{label} {total}/{total} in {seconds:.1f} s{' ' * WIDTH * live}", file=out, flush=True)
