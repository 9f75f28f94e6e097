"""A progress bar on standard error, for any iterable."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from zs2.system.terminal import shown, write

T = TypeVar("T")
WIDTH = 24


def progress(items: Iterable[T], total: int, label: str, stream: TextIO | None = None) -> Iterator[T]:
    """Yield the items and draw a bar with the time left. On anything but a terminal, print a line every 30 seconds.

    Args:
        total: how many items there will be.
        label: what the items are, before the bar.
        stream: where to draw; standard error by default.
    """
    out = sys.stderr if stream is None else stream
    live = out is not None and out.isatty()
    label = shown(label)
    start = printed = time.monotonic()
    done = 0
    try:
        for done, item in enumerate(items, 1):
            now = time.monotonic()
            left = (now - start) / done * (total - done)
            if live:
                bar = "█" * (WIDTH * done // total)
                write(f"\r{label} {bar:░<{WIDTH}} {done}/{total}, {left:.0f} s left ", out)
            elif now - printed > 30 and done < total:
                printed = now
                write(f"{label} {done}/{total}, {left:.0f} s left\n", out)
            yield item
    finally:
        if live and 0 < done < total:  # stopped early: the next output begins on a new line
            write("\n", out)
    seconds = time.monotonic() - start
    write(f"{chr(13) * live}{label} {total}/{total} in {seconds:.1f} s{' ' * WIDTH * live}\n", out)
