"""A progress bar on standard error, for any iterable."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from zs2.system.terminal import shown, write

T = TypeVar("T")
WIDTH = 24
LEAST_SECONDS = 10.0  # between two lines


def progress(items: Iterable[T], total: int, label: str, stream: TextIO | None = None) -> Iterator[T]:
    """Yield the items and draw a bar with the time left, on a terminal and in a notebook.

    On anything else, print a line a tenth of the way, but not more than one in 10 seconds.

    Args:
        total: how many items there will be.
        label: what the items are, before the bar.
        stream: where to draw; by default standard error, and in a notebook, where that is red, standard output.
    """
    notebook = stream is None and in_notebook()
    out = (sys.stdout if notebook else sys.stderr) if stream is None else stream
    live = out is not None and (notebook or out.isatty())
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
            elif now - printed > LEAST_SECONDS and 10 * done // total > 10 * (done - 1) // total and done < total:
                printed = now
                write(f"{label} {done}/{total}, {left:.0f} s left\n", out)
            yield item
    finally:
        if live and 0 < done < total:  # stopped early: the next output begins on a new line
            write("\n", out)
    seconds = time.monotonic() - start
    write(f"{chr(13) * live}{label} {total}/{total} in {seconds:.1f} s{' ' * WIDTH * live}\n", out)


def progress_if(wanted: bool | None, items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """The items, with their progress where it is wanted. None: in a notebook."""
    return progress(items, total, label) if wanted or (wanted is None and in_notebook()) else items


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
