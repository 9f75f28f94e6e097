"""What the processes of torchrun know of each other: who lives.

Each one writes to torch's store that it lives, twice a second, from a thread. A process that is dead, or stopped (by
SIGSTOP, in a frozen container, on a machine that hangs), writes nothing.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

from zs2.errors import LostProcess

BEAT = 0.5  # seconds


class Peers:
    """The processes of a group.

    Args: store: torch's key-value store, which all of them share. limit: seconds to wait for the store itself.
    """

    def __init__(self, store: Any, rank: int, size: int, limit: float) -> None:
        self.store, self.rank, self.size = store, rank, size
        store.set_timeout(timedelta(seconds=limit))
        self.terminated = False  # whether SIGTERM came, which may mean that another process has ended
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._end.is_set():
            count += 1
            try:
                self.store.set(f"alive {self.rank}", str(count))
            except RuntimeError:  # the store has ended
                return
            self._end.wait(BEAT)

    def leave(self) -> None:
        """Be silent from now on."""
        self._end.set()
        self._thread.join(2)

    def silent(self) -> list[int]:
        """The other processes that do not write that they live: their ranks. This takes a second.

        If the store itself does not answer, it is taken for rank 0, which keeps it where torchrun does not.
        """
        try:
            before = self._alive()
            time.sleep(2.5 * BEAT)
            after = self._alive()
        except RuntimeError:
            return [0]
        return [rank for rank, count in after.items() if count is None or count == before[rank]]

    def _alive(self) -> dict[int, bytes | None]:
        keys = {rank: f"alive {rank}" for rank in range(self.size) if rank != self.rank}
        return {rank: self.store.get(key) if self.store.check([key]) else None for rank, key in keys.items()}

    def note(self, what: str) -> None:
        """Write something for all processes to see."""
        try:
            self.store.set(what, "1")
        except RuntimeError:  # the store has ended
            return

    def noted(self, what: str) -> bool:
        """Whether any process noted this."""
        try:
            return bool(self.store.check([what]))
        except RuntimeError:
            return False

    def is_first(self, to: str) -> bool:
        """Whether no other process has called this before."""
        try:
            return self.store.add(f"first {to}", 1) == 1
        except RuntimeError:  # the store has ended
            return True

    def wait_for_all(self, limit: float) -> None:
        """Wait until all processes have come here. One that lives has all the time that it needs.

        Raises: LostProcess if one is silent.
        """
        self.note(f"done {self.rank}")
        start = time.monotonic()
        while not all(self.noted(f"done {rank}") for rank in range(self.size)):
            time.sleep(BEAT / 10)
            late = time.monotonic() > start + limit
            if (late or self.terminated) and self.silent():
                raise LostProcess(late=late)
            start = time.monotonic() if late else start
