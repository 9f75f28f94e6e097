"""`python -m zs2.models`: the models that have a short name. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL, SHORT_NAMES
from zs2.cli.command import command, parser

TAKES = f"""\
--model takes one of these names, or any Stable Diffusion 1.x, 2.x or XL model: a folder in the diffusers layout, a
single .safetensors file, or its id on the hub, owner/name, or owner/name@revision for a branch, a tag or a commit. What
is here comes before an id. From the hub, only the files needed are downloaded, once. Each licence is the model's own:
read it on the model's page. Without --model it is {DEFAULT_MODEL}, which comes with zs2."""


def run(_: dict[str, Any]) -> None:
    """Print the table of short names."""
    rows = [("name", "model", "licence"), *((name, *row) for name, row in SHORT_NAMES.items())]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, model, licence in rows:
        print(f"{name:<{first}}  {model:<{second}}  {licence}")
    print(f"\n{TAKES}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns: the exit status."""
    p = parser("models", "List the short names of models, with their ids on the hub and their licences.", TAKES)
    return command(p, run, argv)
