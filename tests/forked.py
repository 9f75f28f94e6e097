"""Python commands in processes that are forked from one which has torch and zs2 imported: they begin at once.

They end as Python does, with what is registered for its end. An import is not tested so, nor a terminal or an encoding:
for these, and once for each command, tests start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of what a command imports of zs2, that which takes long, or imports what does.
MODULES = ("sample", "ablate", "metrics", "report", "pipeline", "study.runner", "evaluation.clip_scorer")


# --- in the test ------------------------------------------------------------------------------------------------------


@functools.cache
def server() -> socket.socket:
    """The socket of the process that all others are forked from. It ends with this one."""
    here, there = socket.socketpair()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    there.close()

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


class Forked:
    """`python WORD ...`, with -m, -c or a file as Python takes them, and what tests use of `subprocess.Popen`.

    env: of the process, instead of this one's. limit: of the bytes of a file that it writes.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.returncode: int | None = None
        request = {"words": [*words], "cwd": str(cwd), "env": dict(env or os.environ), "limit": limit}
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(server(), [json.dumps(request).encode() + b"\n"], [writing for _, writing in pipes])
        for _, writing in pipes:
            os.close(writing)
        *self._outputs, self._state = (os.fdopen(reading, encoding="utf-8") for reading, _ in pipes)
        self.pid = int(self._state.readline())

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that killed it; None if it lives."""
        return self.wait(0)

    def wait(self, timeout: float = 600) -> int | None:
        """Likewise, after so many seconds at most."""
        if self.returncode is None and select.select([self._state], [], [], timeout)[0]:
            self.returncode = int(self._state.readline())
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end, and for that of its children which write there as well. Returns: what it wrote to its
        standard output, and to that for errors. Raises: subprocess.TimeoutExpired; then it is killed."""
        end = time.monotonic() + timeout
        read = dict.fromkeys(self._outputs, b"")
        left = {*self._outputs}
        while left and (ready := select.select(left, [], [], max(0, end - time.monotonic()))[0]):
            for output in ready:
                piece = os.read(output.fileno(), 1 << 16)
                read[output] += piece
                if not piece:
                    left.discard(output)
        if left or self.wait(max(0, end - time.monotonic())) is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired("a forked process", timeout)
        for file in (*self._outputs, self._state):
            file.close()
        out, err = (text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in read.values())
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


# --- in the process that is forked ------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request: a process that does it, in which this returns it, and one that waits for that."""
    while True:
        content, files, *_ = socket.recv_fds(requests, 1 << 16, 3)
        while content and not content.endswith(b"\n"):
            content += requests.recv(1 << 16)
        if not content:
            os._exit(0)
        if os.fork():
            for file in files:
                os.close(file)
            with contextlib.suppress(ChildProcessError):  # none is left
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        requests.close()
        out, err, state = files
        process = os.fork()
        if process == 0:
            os.dup2(out, 1)
            os.dup2(err, 2)
            for file in files:
                os.close(file)
            return json.loads(content)
        os.close(out)
        os.close(err)
        os.write(state, f"{process}\n".encode())
        os.write(state, f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n".encode())
        os._exit(0)


def python(words: Sequence[str]) -> None:
    """What Python does with these words. Raises: SystemExit, and what the program raises."""
    if words[0] == "-u":  # unbuffered, as torchrun wants it
        words = words[1:]
    if words[0] == "-m":
        sys.argv = [words[1], *words[2:]]
        sys.path.insert(0, os.getcwd())
        if words[1] == "torch.distributed.run":
            torchrun()
        else:
            sys.exit(importlib.import_module(words[1]).main())
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [*words]
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def torchrun() -> None:
    """torchrun itself; the processes that it starts are forked, too."""
    from torch.distributed import run

    launch = run.elastic_launch

    def forking(config: Any, entrypoint: str) -> Any:
        config.start_method = "fork"
        return lambda *words: launch(config=config, entrypoint=worker)([*words])

    run.elastic_launch = forking
    run.main()


def worker(words: Sequence[str]) -> None:
    """One of the processes of torchrun, for which a return is success."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        python(words)
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    """The process that is forked, in which each fork does its request."""
    import torch.distributed

    for module in MODULES:
        importlib.import_module(f"zs2.{module}")
    if torch.distributed.is_available():
        importlib.import_module("torch.distributed.run")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # one that comes early waits
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):  # not of the former file
        stream = os.fdopen(number, "w", 1 if number == 2 else -1, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
    sys.path[1:1] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    del sys.path[0]  # the folder of this file
    if request["limit"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"],) * 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    python(request["words"])


if __name__ == "__main__":
    main()
