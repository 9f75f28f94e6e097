"""What all commands share: the parser, errors and warnings of one line, and exit statuses. No torch here."""

from __future__ import annotations

import argparse
import atexit
import functools
import gc
import io
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from zs2.errors import InputError, NotWritten, OutOfMemory, brief, did_you_mean, is_out_of_memory
from zs2.system.atomic import NO_ROOM, write_advice
from zs2.system.stopping import SIGPIPE, Stopped, signal_number, signals_stop
from zs2.system.terminal import show, write
from zs2.version import __version__

P = ParamSpec("P")
NO_MEMORY = "out of memory: try fewer --frames, a smaller --size, or half precision (--dtype)"
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}
# In the metavar of an option that takes a file, a folder or a name, and does not itself check what it is.
NAMED = re.compile("PATH|FILE|DIR|CLIP|IMAGE|MODEL|NAME|toml|^P$")


class Failure(Exception):
    """The work failed, and not because of an option: the command prints the message in one line and exits with 1."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage.

    where: begins every error, such as the file that the options are from.
    """

    where = ""

    def error(self, message: str) -> NoReturn:
        say(f"error: {self.where}{message}")
        sys.exit(2)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The value of an option. An empty path is an error, because it would be the current folder, and so is an empty
        name, which would decide nothing."""
        metavar = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        if "" in arg_strings and NAMED.search(metavar):
            raise argparse.ArgumentError(action, f"'' is empty: expected {metavar}")
        return super()._get_values(action, arg_strings)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """One value of an option. What is no number is answered in the words of the other errors."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in NUMBERS:
                raise
            raise argparse.ArgumentError(action, f"{brief(arg_string)}: expected {NUMBERS[action.type]}") from None

    def _print_message(self, message: str, file: Any = None) -> None:  # the help, and the version
        show(*message.splitlines(), to=file, most=None)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """The options. An unknown argument ends the command with a hint: the nearest option, or quotes."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            hint = did_you_mean(unknown[0].partition("=")[0], names) if unknown[0].startswith("-") else ""
            words = [word for word in unknown if not word.startswith("-")]
            if isinstance(getattr(options, "prompt", None), str) and words == unknown:
                hint = f': quote the prompt: "{" ".join([options.prompt, *words])}"'
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options


def program(name: str) -> str:
    """How to call a command, such as `sample`, in the way that this one was called: `zs2 sample`, or by its module."""
    called = Path(sys.argv[0])
    by_name = called.stem == "zs2" or (called.name == "__main__.py" and called.parent.name == "zs2")
    return f"zs2 {name}".strip() if by_name or not name else f"python -m zs2.{name}"


def parser(name: str, description: str, epilog: str) -> Parser:
    """The parser of a command, with `--version` and no other option.

    Options not given are absent, so a command can warn about those that have no effect. `%(prog)s` in the texts is how
    the command was called.
    """
    p = Parser(
        prog=program(name),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=f"zs2 {__version__}")
    return p


def say(text: str) -> None:
    """Print one line on standard error."""
    show(f"zs2: {' '.join(text.split())}", to=sys.stderr)


def quiet_without_reader(main: Callable[P, int]) -> Callable[P, int]:
    """End a command without a word, with the exit status of SIGPIPE, where nobody reads its output any more."""

    @functools.wraps(main)
    def quiet(*args: P.args, **keywords: P.kwargs) -> int:
        try:
            return main(*args, **keywords)
        except Stopped as error:
            if error.number != SIGPIPE:
                raise
            return 128 + SIGPIPE

    return quiet


@quiet_without_reader
def command(
    parser: argparse.ArgumentParser, run: Callable[[dict[str, Any]], object], argv: Sequence[str] | None
) -> int:
    """Parse the arguments and run the command with the options. Warnings and errors become one line each.

    Returns: the exit status: 0; 1 if the work failed; 2 for a wrong option; 128 and the number of a signal that ended
        it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 141 for a pipe that nobody reads any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # λ on a terminal that has none
    options = vars(parser.parse_args(argv))
    atexit.register(gc.freeze)  # the process ends without a last search for garbage in all of torch's objects
    warned: set[str] = set()

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in warned:
            warned.add(str(message))
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = warn
        try:
            with signals_stop():
                run(options)
                write("", sys.stdout)  # what waits in it
        except InputError as error:
            say(f"error: {error}")
            return 2
        except OSError as error:
            say(f"error: {NO_MEMORY if is_out_of_memory(error) else _named(error)}")
            return 1
        except (FloatingPointError, Failure, OutOfMemory) as error:
            say(f"error: {error}")
            return 1
        except (MemoryError, RuntimeError, ImportError) as error:
            if not is_out_of_memory(error):
                raise
            libraries = f"too little memory to load torch and other libraries ({error}): raise its limit (ulimit -v)"
            say(f"error: {libraries if isinstance(error, ImportError) else NO_MEMORY}")
            return 1
        except KeyboardInterrupt as error:
            number = signal_number(error)
            if number == SIGPIPE:
                raise
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            say(f"stopped{by}: what was finished before is kept")
            return 128 + number
    return 0


def _named(error: OSError) -> str:
    """What failed, with what to do on a full disk. Who writes a file names it, so the rest is standard output."""
    if isinstance(error, NotWritten) or error.errno not in NO_ROOM:
        return str(error)
    if not isinstance(error.filename, str):
        return f"the standard output can't be written ({error.strerror}): make room there, or send it elsewhere"
    return f"{error.filename} can't be written ({error.strerror}): {write_advice(error.errno, Path(error.filename))}"
