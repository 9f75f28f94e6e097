"""Signals that end a program, as exceptions: SIGTERM (Slurm, `docker stop`, `timeout`) and SIGHUP (a closed terminal)
end a command as Ctrl-C does, so that it can clean up and keep what is finished."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

SIGPIPE = int(getattr(signal, "SIGPIPE", 13))  # Windows has none
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal ended the work. number: that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def signal_number(error: KeyboardInterrupt) -> int:
    """The signal behind an exception: SIGINT, if it is Python's own."""
    return error.number if isinstance(error, Stopped) else int(signal.SIGINT)


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """Within this block, SIGTERM and SIGHUP raise `Stopped`, once. Ctrl-C raises Python's KeyboardInterrupt.

    A library may turn that exception into another one. The block then raises `Stopped` again. A signal that is ignored
    (nohup) stays ignored. Outside the main thread, nothing changes.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # the clean-up is not disturbed by more of them
        if number != signal.SIGTERM:  # SIGHUP: the terminal is gone
            _leave_terminal()
        raise Stopped(number)

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                if signal.getsignal(one) == signal.SIG_DFL:
                    before[one] = signal.signal(one, stop)
        yield
    except Exception as error:
        if came:
            raise Stopped(came[0]) from error
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class Deferred:
    """Within this block, a signal raises only in `raising` parts; elsewhere it is noted, and what runs goes on.

    Use it in the main thread; elsewhere no signal comes. After the first signal, others are ignored.
    Attributes: stopped: what the handler of outside raises at the first signal, or None.
    """

    def __init__(self) -> None:
        self.stopped: BaseException | None = None
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                if signal.getsignal(one) != signal.SIG_IGN:
                    self._before[one] = signal.signal(one, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """A part that a signal ends at once, also one that came before. Raises: `stopped`."""
        self._raises = True
        try:
            if self.stopped is not None:
                raise self.stopped
            yield
        finally:
            self._raises = False

    def _signalled(self, number: int, frame: Any) -> None:
        if self.stopped is not None:
            return
        handler = self._before[number]
        try:
            if callable(handler):
                handler(number, frame)
            raise Stopped(number)
        except BaseException as error:
            self.stopped = error
        if self._raises:
            self._raises = False
            raise self.stopped


def _leave_terminal() -> None:
    """Write to nowhere from now on, where output went to a terminal that is gone: writing there would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # a closed stream
            if stream is not None and stream.isatty():
                to_nowhere(stream)


def to_nowhere(stream: TextIO) -> None:
    """Let what is written to a stream from now on, and what waits in it, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, or a closed one
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
