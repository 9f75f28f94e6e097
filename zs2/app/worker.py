"""One worker makes all clips of the page, one after the other, in a thread of its own. No torch here.

Visitors wait in line. Work that has no end lets the others go first after each of its parts.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from zs2.errors import InputError, NotWritten, OutOfMemory, counted
from zs2.system.stopping import Stopped
from zs2.system.terminal import show

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
EXPECTED = (InputError, OutOfMemory, NotWritten, FloatingPointError)  # errors whose message is for the visitor


class Stop(Exception):
    """The visitor stopped the work."""


def failure(error: Exception) -> str:
    """What a visitor reads of an error, in one line. Of one that nobody expected, the terminal says more."""
    if isinstance(error, EXPECTED):
        return " ".join(str(error).split())
    with contextlib.suppress(OSError, Stopped):  # nobody reads it: the page goes on
        show(*"".join(traceback.format_exception(error)).splitlines(), most=None)
    return f"this failed ({type(error).__name__}): the server's terminal says more"


class Job:
    """Some work for a visitor.

    Args:
        work: a generator function that gets the job. It yields where other visitors may go first.
        cost: how much work it is, in frames × steps; for estimates.
    Attributes:
        state: waiting, running, done, stopped or failed. message: of a failure, one line.
        shown: what there is to show, as the work publishes it. version: how often it was published.
        seen: the version that the page has taken. spent: seconds that its parts have taken.
        press: the number of the visitor's press that began it; 0 without one.
    """

    def __init__(self, work: Callable[[Job], Generator[None]], cost: float = 0) -> None:
        self.cost, self.state, self.message = cost, WAITING, ""
        self.shown: Any = None
        self.version = self.seen = self.press = 0
        self.spent = 0.0
        self._stop = threading.Event()
        self._parts = work(self)

    @property
    def ended(self) -> bool:
        """Whether there is no more to come."""
        return self.state in (DONE, STOPPED, FAILED)

    def publish(self, shown: Any) -> None:
        """Show something."""
        self.shown = shown
        self.version += 1

    def stop(self) -> None:
        """Ask the work to stop, at its next `check`."""
        self._stop.set()

    def check(self) -> None:
        """Raises: Stop if the visitor stopped the work."""
        if self._stop.is_set():
            raise Stop

    def go_on(self) -> bool:
        """Do the next part. Returns: whether there is another one."""
        self.state = RUNNING
        try:
            self.check()
            next(self._parts)
            return True
        except StopIteration:
            self.end(DONE)
        except Stop:
            self.end(STOPPED)
        except Exception as error:
            self.end(FAILED, failure(error))
        return False

    def end(self, state: str, message: str = "") -> None:
        """End the work in this state."""
        self._parts.close()
        self.message, self.state = message, state


class Worker:
    """The line of jobs, and the thread that does them.

    most: how many jobs may wait.
    """

    def __init__(self, most: int) -> None:
        self.most, self.rate = most, 0.0  # seconds for a unit of cost, as the last jobs took
        self._line: deque[Job] = deque()
        self._change = threading.Condition()
        self._now: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job at the end of the line. Raises: InputError if the line is full, or closed."""
        with self._change:
            if self._closed:
                raise InputError("the server is ending: start it again")
            if len(self._line) >= self.most:
                raise InputError(f"{counted(len(self._line), 'visitor')} wait already: try again in a minute")
            self._line.append(job)
            self._change.notify()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs are done before a waiting one, with that at work."""
        with self._change:
            before = self._line.index(job) if job in self._line else 0
            return before + (self._now is not None and self._now is not job)

    def stop(self, job: Job) -> None:
        """Stop a job: at once if it waits, else at its next check."""
        with self._change:
            job.stop()
            if job in self._line:
                self._line.remove(job)
                job.end(STOPPED)

    @property
    def busy(self) -> bool:
        """Whether a job is at work."""
        return self._now is not None

    def close(self) -> None:
        """Stop all jobs, and wait for the one at work to come to its next check.

        A process must not end before: its end would tear the thread out of the midst of torch, which aborts.
        """
        with self._change:
            self._closed = True
            for job in self._line:
                job.end(STOPPED)
            self._line.clear()
            if self._now is not None:
                self._now.stop()
            self._change.notify()
        self._thread.join()

    def seconds(self, job: Job) -> float | None:
        """How long the job is expected to wait; None if that is not known."""
        with self._change:
            before = list(self._line)[: self._line.index(job)] if job in self._line else []
            costs = [one.cost for one in (*before, self._now) if one is not None and one is not job]
        return self.rate * sum(costs) if self.rate else None

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._line and not self._closed:
                    self._change.wait()
                if not self._line:
                    return
                job = self._now = self._line.popleft()
            start = time.monotonic()
            more = job.go_on()
            job.spent += time.monotonic() - start
            with self._change:
                self._now = None
                if more and self._closed:
                    job.end(STOPPED)
                elif more:
                    self._line.append(job)
            if job.state == DONE and job.cost:
                self.rate = job.spent / job.cost
