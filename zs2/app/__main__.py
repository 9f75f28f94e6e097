"""`python -m zs2.app`: a page to play with, in the browser. The page is page.py. No torch and no Gradio before it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, cast

from zs2.app.clip_options import Limits
from zs2.app.worker import Worker
from zs2.cli.command import Parser, command, parser
from zs2.cli.derived_options import add_model, chosen_model
from zs2.errors import InputError, whole
from zs2.system.devices import AUTO, DTYPE_HELP
from zs2.system.terminal import Escaping, show

INSTALL = "the page needs Gradio 6: pip install 'zs2[app]' (in a clone: pip install -e '.[app]', or make app)"
HOST, PORT, PORT_MAX = "127.0.0.1", 7860, 65535
BYTES_MAX = 2**26  # of a file that a visitor drops


def run(options: dict[str, Any]) -> None:
    """Serve the page until a signal comes. Raises: InputError for wrong options, without Gradio, or a taken port."""
    limits = Limits(
        **{
            name: whole(option, options[key], 1)
            for name, option, key in (
                ("frames", "--max-frames", "max_frames"),
                ("steps", "--max-steps", "max_steps"),
                ("size", "--max-size", "max_size"),
                ("queue", "--queue", "queue"),
            )
            if key in options
        }
    )
    port = whole("--port", options["port"], 1, PORT_MAX) if "port" in options else None
    names = options.get("models", [chosen_model(options)])
    if "models" in options and "model" in options:
        raise InputError("--model and --models are given: expected one of them (the first of --models opens the page)")
    visitors = read_visitors(options["auth"]) if "auth" in options else None
    if find_spec("gradio") is None:
        raise InputError(INSTALL)
    with tempfile.TemporaryDirectory(prefix="zs2-app-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        from zs2.cli.checked_models import check_models

        loading = {"device": options.get("device"), "dtype": options.get("dtype", AUTO)}
        networks, default = options.get("controls", ()), chosen_model({})
        check_models(names, networks, loading)  # before seconds of importing Gradio

        from zs2.app.server import serve
        from zs2.app.studio import Studio

        studio = Studio(names, limits, loading, default, networks)
        show(f"loading {names[0]}")
        with contextlib.redirect_stderr(cast(TextIO, Escaping(sys.stderr))):  # Gradio prints what visitors sent
            close, address = serve(studio, Path(folder), options.get("host", HOST), port, visitors, BYTES_MAX)
            show(f"the page is at {address} (Ctrl-C ends it)")
            try:
                threading.Event().wait()
            finally:
                end(studio.worker, close, folder)


def end(worker: Worker, close: Callable[[], object], folder: str) -> None:
    """End the worker and the page. folder: that of visitors' files."""
    try:
        if worker.busy:
            show("ending after the step under way (Ctrl-C again: at once)")
        worker.close()
        close()
    except KeyboardInterrupt:  # a step can't be interrupted, and Python can't end cleanly in the midst of one
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signal.SIGINT)


def read_visitors(file: str) -> list[tuple[str, str]]:
    """The names and passwords of a file, a line NAME:PASSWORD each. Raises: InputError."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--auth {file}: can't be read ({error}): expected a file of lines NAME:PASSWORD") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, password = line.partition(":")
            if not name or not password:
                raise InputError(f"--auth {file}: line {number}: expected NAME:PASSWORD, one for each visitor")
            if name in found:
                raise InputError(f"--auth {file}: line {number}: {name!r} stands above, too: expected each name once")
            found[name] = password
    if not found:
        raise InputError(f"--auth {file}: no line NAME:PASSWORD in it: expected one for each visitor")
    return [*found.items()]


def options_parser() -> Parser:
    """The parser of the command line."""
    p = parser(
        "app",
        "Open a page to play with: make clips and look at them in the browser, side by side, or without end.",
        """examples:
  %(prog)s                                    the default checkpoint, for this machine's browser
  %(prog)s --models sd15 sd21 --host 0.0.0.0 --auth visitors.txt --max-frames 16
Nothing leaves this machine but what visitors load from it.""",
    )
    g = p.add_argument_group("models")
    add_model(g)
    g.add_argument("--models", nargs="+", metavar="MODEL", help="what visitors may choose from, as --model takes it")
    g.add_argument(
        "--controls",
        nargs="+",
        metavar="MODEL",
        help="ControlNets that visitors may choose from, as zs2 sample --control takes them (default: none)",
    )
    g.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is of cuda, mps, cpu)")
    g.add_argument("--dtype", metavar="DTYPE", help=DTYPE_HELP)
    g = p.add_argument_group("server")
    g.add_argument("--host", metavar="NAME", help=f"where it listens; 0.0.0.0: for other machines (default {HOST})")
    g.add_argument("--port", type=int, metavar="N", help=f"(default: the first free one from {PORT})")
    g.add_argument("--auth", metavar="FILE", help="who may enter: lines NAME:PASSWORD (default: everybody)")
    limits = Limits()
    for name, most in (("frames", limits.frames), ("steps", limits.steps), ("size", limits.size)):
        what = {"size": "pixels of the longer side"}.get(name, name)
        g.add_argument(f"--max-{name}", type=int, metavar="N", help=f"the most {what} of a clip (default {most})")
    g.add_argument("--queue", type=int, metavar="N", help=f"how many visitors may wait (default {limits.queue})")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 2 for wrong input; 130 for Ctrl-C."""
    return command(options_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
