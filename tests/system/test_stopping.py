"""Signals as exceptions."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from zs2.errors import InputError
from zs2.system.stopping import Stopped, signals_stop


def swallow() -> None:
    """A signal's exception, turned into another one as native code may do."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise InputError("a damaged file") from None


def stopped(work: Callable[[], None]) -> None:
    with signals_stop():
        work()


def fail() -> None:
    raise InputError("a damaged file")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_library_that_swallows_a_signal_does_not_hide_it() -> None:
    with pytest.raises(Stopped) as error:
        stopped(swallow)
    assert error.value.number == signal.SIGTERM
    with pytest.raises(InputError):
        stopped(fail)
