"""`python -m zs2.models`: the models with a short name, or what one model says of itself. No torch here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL, SHORT_NAMES
from zs2.checkpoints.locate import BUNDLED, local_path, locate
from zs2.checkpoints.own_settings import FILE, OF_METHOD, OF_REQUEST, OwnSettings
from zs2.cli.command import command, parser
from zs2.errors import InputError, counted
from zs2.system.terminal import show

TAKES = f"""\
--model takes one of these names, or any Stable Diffusion 1.x, 2.x or XL model: a folder in the diffusers layout, a
single .safetensors file, or its id on the hub, owner/name, or owner/name@revision for a branch, a tag or a commit. What
is here comes before an id. From the hub, only the files needed are downloaded, once. Each licence is the model's own:
read it on the model's page. Without --model it is {DEFAULT_MODEL}, which comes with zs2."""
WIDTH = 100  # characters of a line of names


def run(options: dict[str, Any]) -> None:
    """Print the table of short names, or one model's own settings, examples and things."""
    if "model" in options:
        print_own_settings(options["model"])
        return
    there = [(model, what) for model, what in BUNDLED.items() if local_path(model) is not None]
    bundled = [(Path(model).name, model, f"MIT; comes with zs2{what}") for model, what in there]
    rows = [("name", "model", "licence"), *((name, *row) for name, row in SHORT_NAMES.items()), *bundled]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, model, licence in rows:
        show(f"{name:<{first}}  {model:<{second}}  {licence}")
    show("", *TAKES.splitlines())


def print_own_settings(model: str) -> None:
    """Print what a model's zs2.json says. From the hub, only that file is fetched.

    Raises: InputError if there is no such model, or no such file.
    """

    def choose(names: Iterable[str], _: str) -> list[str]:
        if FILE not in names:
            raise InputError(f"it has no {FILE}: its defaults are the paper's")
        return [FILE]

    path, name = locate(model, "float32", choose)
    own = OwnSettings.read(path, name)
    if own == OwnSettings(own.name):
        raise InputError(f"{own.name} has no {FILE}: its defaults are the paper's")
    values = {name: getattr(own, name) for name in (*OF_REQUEST, *OF_METHOD)}
    show(own.summary([name for name, value in values.items() if value is not None]) or f"{own.name} ({FILE})")
    for title, prompts in (("prompts", own.prompts), ("prompts that leave the look open", own.open_prompts)):
        if prompts:
            show("", f"{title}:", *(f'  "{prompt}"' for prompt in prompts))
    if own.base is not None:
        show("", f"its other parts are those of {own.base}")
    if own.things:
        names = textwrap.wrap(", ".join(own.things), WIDTH, break_on_hyphens=False)
        show("", f"it knows {counted(len(own.things), 'thing')}:", *(f"  {line}" for line in names))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns: the exit status."""
    p = parser(
        "models",
        "List the short names of models, with their ids on the hub and their licences. Of one model, list its own\n"
        "settings, example prompts, and the things that it knows.",
        TAKES,
    )
    p.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"one whose {FILE} is shown, such as {Path(DEFAULT_MODEL).name}"
    )
    return command(p, run, argv)
