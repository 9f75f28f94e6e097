"""Run the page's command with arguments, where no socket may connect to another machine: an attempt is printed."""

from __future__ import annotations

import socket
import sys
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
connect = socket.socket.connect


def guarded(self: socket.socket, address: Any) -> None:
    """Connect to this machine only."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
        print(f"BLOCKED {address}", flush=True)
        raise OSError("blocked")
    connect(self, address)


def looked_up(host: Any, *more: Any, **others: Any) -> Any:
    """Look up this machine's names only."""
    if host not in (*LOOPBACK, None, "", "0.0.0.0") and not isinstance(host, bytes):
        print(f"BLOCKED {host}", flush=True)
        raise socket.gaierror("blocked")
    return getaddrinfo(host, *more, **others)


if __name__ == "__main__":
    getaddrinfo = socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = guarded, looked_up  # type: ignore[method-assign, assignment]
    from zs2.app.__main__ import main

    sys.exit(main(sys.argv[1:]))
