"""What a guided sampling computes of its inputs for a range of frames, once."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Ranges(ABC):
    """Tensors by ranges of frames. A range that was computed is kept.

    keep_all: whether all ranges are kept, or only the last one.
    """

    def __init__(self, *, keep_all: bool) -> None:
        self.keep_all = keep_all
        self._kept: dict[tuple[int, int], Tensor] = {}

    @abstractmethod
    def compute(self, first: int, count: int) -> Tensor:
        """Those of `count` frames from the frame `first` on: (count, c, h, w)."""

    def frames(self, first: int, count: int) -> Tensor:
        """As `compute`, which is called once for each range."""
        if (first, count) not in self._kept:
            if not self.keep_all:
                self._kept.clear()
            self._kept[first, count] = self.compute(first, count)
        return self._kept[first, count]
