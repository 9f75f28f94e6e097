"""The momentum states of a stream, from a chunk of frames to the next: those after each step, on the model's device or
on another one, which has more memory.

States on another device travel as one copy a step and way, on a CUDA stream of their own, so that the UNet goes on
meanwhile. Those of step i go out while step i + 1 is computed, and those that step i + 1 needs come in during step i.
The memory of the host is pinned; only then does a copy not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zs2.models.unet import States


class KeptStates:
    """States that stay on the model's device."""

    def __init__(self, steps: int) -> None:
        self._states: list[States] = [()] * steps

    def take(self, i: int) -> States:
        """The states that step i starts from: those after the previous chunk, or none."""
        return self._states[i]

    def keep(self, i: int, states: States) -> None:
        """Keep the states after step i for the next chunk."""
        self._states[i] = states

    def stored(self, i: int) -> States:
        """The states after step i where they are kept, to be read now."""
        return self._states[i]


class TravellingStates(KeptStates):
    """States that are kept elsewhere. Those that are taken are views of one tensor.

    device: that of the model. there: where states are kept.
    """

    def __init__(self, steps: int, device: torch.device, there: torch.device) -> None:
        super().__init__(steps)
        self.device, self.there = device, there
        self._shapes: list[list[torch.Size | None]] = [[] for _ in range(steps)]  # None: a block without state
        self._buffers: list[Tensor | None] = [None] * steps  # all states of a step, flat, where they are kept
        self._coming: dict[int, tuple[Tensor, torch.Event | None]] = {}  # the same on the device, on its way there
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take(self, i: int) -> States:
        """The states that step i starts from. Those of the step after it begin to come."""
        for step in (i, i + 1):
            self._fetch(step)
        if i not in self._coming:
            return [None] * len(self._shapes[i])
        numbers, arrived = self._coming.pop(i)
        if self._stream is not None and arrived is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(arrived)
            numbers.record_stream(here)
        return self._views(i, numbers)

    def keep(self, i: int, states: States) -> None:
        """Send the states after step i to where they are kept."""
        self._shapes[i] = [None if state is None else state.shape for state in states]
        present = [state.flatten() for state in states if state is not None]
        if not present:
            return
        numbers = torch.cat(present)
        buffer = self._buffers[i]
        if buffer is None or buffer.shape != numbers.shape:
            buffer = self._buffers[i] = self._new_buffer(numbers)
        with self._aside():
            buffer.copy_(numbers, non_blocking=True)
        if self._stream is not None:
            numbers.record_stream(self._stream)

    def stored(self, i: int) -> States:
        """The states after step i where they are kept, to be read now."""
        if self._stream is not None:
            self._stream.synchronize()
        numbers = self._buffers[i]
        return () if numbers is None else self._views(i, numbers)

    def _views(self, i: int, numbers: Tensor) -> States:
        """The states of step i within one tensor of all of them."""
        shapes = self._shapes[i]
        pieces = iter(numbers.split([shape.numel() for shape in shapes if shape is not None]))
        return [None if shape is None else next(pieces).view(shape) for shape in shapes]

    def _fetch(self, i: int) -> None:
        """Let the states of step i begin to come, if there are any, and if they are not coming yet."""
        buffer = self._buffers[i] if i < len(self._buffers) else None
        if buffer is None or i in self._coming:
            return
        with self._aside():
            numbers = buffer.to(self.device, non_blocking=True)
            self._coming[i] = numbers, None if self._stream is None else self._stream.record_event()

    def _new_buffer(self, numbers: Tensor) -> Tensor:
        if self._stream is not None and self.there.type == "cpu":
            try:
                return torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            except RuntimeError:  # the system pins no more
                pass
        return torch.empty(numbers.shape, dtype=numbers.dtype, device=self.there)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within, copies follow what the model computed so far, and what it computes next does not wait for them."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
