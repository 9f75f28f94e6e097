"""`zs2 COMMAND`, or `python -m zs2 COMMAND`: all commands under one name. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from zs2.cli.command import parser, quiet_without_reader, say
from zs2.errors import InputError, choose

COMMANDS = {
    "sample": ("zs2.sample", "make clips from prompts"),
    "ablate": ("zs2.ablate", "run an ablation study: every variant on every prompt and seed, with metrics"),
    "report": ("zs2.report", "make the report of a study: a web page, Markdown and CSV"),
    "metrics": ("zs2.metrics", "measure clips"),
    "app": ("zs2.app.__main__", "open a page to play with, in the browser"),
    "models": ("zs2.cli.model_list", "list the models that have a short name"),
}


@quiet_without_reader
def main(argv: Sequence[str] | None = None) -> int:
    """The command. `zs2 help COMMAND` is `zs2 COMMAND --help`.

    Returns: the exit status of the chosen command; 0 for help; 2 for an unknown command.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    lines = "\n".join(f"  zs2 {name:<9}{purpose}" for name, (_, purpose) in COMMANDS.items())
    top = parser("", "Zero-shot video from image diffusion models (ZS²).", f"commands:\n{lines}")
    top.usage = "zs2 COMMAND …   (zs2 COMMAND --help: its options)"
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments:
        top.print_help()
        return 0
    if arguments[0].startswith("-"):
        top.parse_args(arguments[:1])
    try:
        module, _ = COMMANDS[choose("command", arguments[0], tuple(COMMANDS))]
    except InputError as error:
        say(f"error: {error}")
        return 2
    status: int = import_module(module).main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
