"""Python is as good as the command line: every option of `zs2 sample` has its keyword, and the guide has both."""

from __future__ import annotations

import argparse
import inspect
import re

import pytest
from helpers import TESTS

from zs2 import Clip
from zs2.cli.derived_options import LOADING, flag
from zs2.cli.sample_options import parser
from zs2.pipeline import CALLS

KEYWORDS = {*(name for names in CALLS.values() for name in names), *inspect.signature(Clip.save).parameters}
OTHERWISE = {  # options that are something else than a keyword of that name, as the guide has it
    "--model": "first argument",
    "--size": "`width`, `height`",
    "--fast": "`**FAST`",
    "--motion-target": "see below",
    "--prompts": "a loop",
    "--travel": "`prompt`: a list, or a dictionary by frames",
    "--out": "`clip.save(path)`",
    "--stream": "`model.stream`",
    "--resumable": "`model.stream(…, resume=FILE)`",
    "--resume": "the same",
    "--replay": "`replay(model, file)`",
    "--dry-run": "`model.plan(request).memory`",
}
COMMAND_ONLY = {  # what has a meaning for files and processes of a command alone
    "--skip-existing": "what is there is for the caller to see",
    "--process-timeout": "of torchrun",
}


def rows() -> dict[str, str]:
    """The Python column of the guide's tables that have one, by option."""
    found, header = dict[str, str](), ""
    pages = [TESTS.parent / "docs" / name for name in ("guide.md", "guidance.md")]
    for line in (line for page in pages for line in page.read_text(encoding="utf-8").splitlines()):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        header = header if line.startswith("|") and header else line
        if header.startswith("| command line | Python |") and cells[:1] != [""]:
            found |= dict.fromkeys(re.findall(r"`(--[a-z0-9-]+)", cells[0]), cells[1])
    return found


ACTIONS = [action for action in parser()._actions if action.dest not in ("help", "version", "prompt")]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.option_strings[0])
def test_every_option_has_its_keyword_and_both_stand_in_the_guide(action: argparse.Action) -> None:
    option, cells = action.option_strings[0], rows()
    assert option in cells, f"the guide has no row of {option}"
    cell = cells[option]
    if option in COMMAND_ONLY:
        assert cell == ""
    elif option in OTHERWISE:
        assert cell == OTHERWISE[option]
    else:
        keyword = LOADING.get(action.dest, action.dest)
        assert keyword in KEYWORDS, f"{option} has no keyword"
        assert re.search(rf"`{keyword}\b", cell), f"the row of {option} does not name {keyword}"


def test_the_exceptions_are_options() -> None:
    options = {option for action in ACTIONS for option in action.option_strings}
    assert options >= OTHERWISE.keys() | COMMAND_ONLY.keys()


def test_keywords_that_are_no_options_are_those_of_python() -> None:
    """What has no option takes objects, which a command line does not have."""
    options = {LOADING.get(action.dest, action.dest) for action in ACTIONS} | {"prompt"}
    more = {name for name in KEYWORDS - options if flag(name) not in OTHERWISE}
    assert more == {
        *("self", "path", "json", "callback", "progress", "group"),
        *("width", "height", "context", "negative_context", "controlnet"),  # --control names a ControlNet and its clip
    }
