"""A guard for processes of tests: no socket connects to another machine, and no other machine's name is looked up."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)
REPORTS: list[Callable[[Any], object]] = []


def stay_here(report: Callable[[Any], object]) -> None:
    """From now on, what would leave this machine fails as without a network, and is reported: a name or an address."""
    if REPORTS:  # conftest.py may be run again, by a test of it
        return
    REPORTS.append(report)
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connected(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            report(address)
            raise OSError(f"no network in tests: {address}")
        connect(self, address)

    def looked_up(host: Any, *more: Any, **others: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (*LOOPBACK, socket.gethostname()):
            report(name)
            raise socket.gaierror(f"no network in tests: {name}")
        return getaddrinfo(host, *more, **others)

    socket.socket.connect, socket.getaddrinfo = connected, looked_up  # type: ignore[method-assign, assignment]
