"""The garbage collector, switched off while modules and weights are loaded. No torch here."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch garbage collection off. Importing and loading create many objects and no garbage. The collector would
    traverse all of torch's objects again and again, which takes a third of the loading time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()  # and back: all objects are old now, else the next new one would have them all traversed
            gc.unfreeze()
            gc.enable()
