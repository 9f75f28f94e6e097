"""The documents: links and anchors lead somewhere, pictures are there, lines are short, and named modules exist."""

from __future__ import annotations

import csv
import io
import re
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import CHECKPOINT, SIDE, TESTS

from zs2.checkpoints.own_settings import OwnSettings

ROOT = TESTS.parent
WIDTH = (
    120  # characters of a line of Markdown; a row of a table can't be broken, so outside the README it may be longer
)
README_LINES = 150
PARAGRAPH_LINES = 5

LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")  # [text](target) and ![text](target)
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HTML = re.compile(r"<(?:img|a|source|video)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"")
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # https:, mailto:
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`[^`\n]+`")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ITEM = re.compile(r" *(?:[-*+]|\d+\.) ")
NOT_TEXT = re.compile(r"\s*(\||#|<|$)")  # a table, a heading, HTML, a blank line

# Paths of the repository, and dotted names of the package, as text and code name them.
PATH = re.compile(r"(?<![\w/.~-])(?:zs2|tests|benchmarks|weights|docs|\.ci)/[\w./-]*\w")
NAME = re.compile(r"(?<![\w/.-])(?:zs2|weights\.recipe)(?:\.[a-zA-Z_]\w*)+")
# Command lines: `zs2 NAME …` and `python -m zs2.NAME …`, without what is behind a comment's sign.
COMMANDS = ("sample", "ablate", "report", "metrics", "models", "app")
COMMAND = re.compile(rf"\b(?:zs2 |-m zs2\.)({'|'.join(COMMANDS)})\b([^#`\n]*(?:\\\n[^#`\n]*)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
NO_MODULE = {"zs2.json"}  # a checkpoint's settings


@cache
def documents() -> list[Path]:
    """The Markdown files of the repository: those that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return sorted(ROOT / name for name in set(done.stdout.split("\0")) if name and (ROOT / name).exists())
    return sorted(path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts))


def every(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test by document, or by those of some names."""
    chosen = [path for path in documents() if not names or path.relative_to(ROOT).as_posix() in names]
    return pytest.mark.parametrize("path", chosen, ids=lambda path: path.relative_to(ROOT).as_posix())


def text_of(path: Path) -> str:
    """A document without its code, where brackets and signs mean something else."""
    return SPAN.sub("", CODE.sub("", path.read_text(encoding="utf-8")))


def targets(path: Path) -> list[str]:
    """Where a document's links and pictures point, within the repository."""
    text = text_of(path)
    found = [*LINK.findall(text), *REFERENCE.findall(text), *HTML.findall(text)]
    return [target for target in found if not OUTSIDE.match(target)]


@cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document.

    Its rule: the heading's text in lower case, without all that is no letter, digit, underscore, hyphen or space, each
    space a hyphen; a heading that is there already has -1, -2, … behind it.
    """
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    known: set[str] = set()
    for heading in HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower().replace("`", "").replace("*", "")).replace(" ", "-")
        unique, count = anchor, 0
        while unique in known:
            count += 1
            unique = f"{anchor}-{count}"
        known.add(unique)
    return known | set(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", text))


def dead(path: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    wrong = []
    for target in targets(path):
        place, _, anchor = unquote(target).partition("#")
        there = path if not place else (ROOT / place[1:] if place.startswith("/") else path.parent / place).resolve()
        if not there.exists() or (anchor and (there.suffix != ".md" or anchor not in anchors(there))):
            wrong.append(target)
    return wrong


def paragraphs(text: str) -> Iterator[list[str]]:
    """The paragraphs and list items of a document, each as its lines."""
    block: list[str] = []
    for line in [*CODE.sub("", text).splitlines(), ""]:
        if NOT_TEXT.match(line) or ITEM.match(line):
            if block:
                yield block
            block = [line] if ITEM.match(line) else []
        else:
            block.append(line)


@every()
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links and pictures name files that are there, and anchors name headings that are there."""
    assert dead(path) == []


@every()
def test_lines_are_short(path: Path) -> None:
    """No line has more than 120 characters, but for rows of tables, which can't be broken."""
    lines = path.read_text(encoding="utf-8").splitlines()
    long = [f"{i}: {line}" for i, line in enumerate(lines, 1) if len(line) > WIDTH and not line.startswith("|")]
    assert long == []


@every()
def test_paragraphs_are_short(path: Path) -> None:
    """A paragraph or an item of a list has at most five lines."""
    text = path.read_text(encoding="utf-8")
    assert [block for block in paragraphs(text) if len(block) > PARAGRAPH_LINES] == []


def test_the_readme_is_short() -> None:
    """150 lines of 120 characters, tables included."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > WIDTH] == []


@every()
def test_named_paths_exist(path: Path) -> None:
    """Files and folders of the repository that a document names, in text or code, are there."""
    text = path.read_text(encoding="utf-8")
    assert [name for name in PATH.findall(text) if not (ROOT / name).exists()] == []


@every()
def test_named_modules_exist(path: Path) -> None:
    """Dotted names that a document uses are modules of the package, or names within them."""
    assert [name for name in NAME.findall(path.read_text(encoding="utf-8")) if not known(name)] == []


def known(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    if name in NO_MODULE:
        return True
    parts = name.split(".")
    found = import_module(parts[0])
    for count, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


@cache
def options(command: str) -> set[str]:
    """The options that a command's help names."""
    module = import_module(f"zs2.{command}.__main__" if command in ("models", "app") else f"zs2.{command}")
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        module.main(["--help"])
    return set(OPTION.findall(text.getvalue()))


@every()
def test_named_options_exist(path: Path) -> None:
    """A command line in a document uses options that the command has."""
    for command, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
        assert set(OPTION.findall(rest)) <= options(command), f"zs2 {command} {rest}"


def test_the_guide_has_every_option() -> None:
    """Every option of a command stands in the guide, or on the pages about guided clips and checkpoints."""
    pages = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("guide.md", "guidance.md", "checkpoints.md")
    )
    named = set(OPTION.findall(pages))
    for command in COMMANDS:
        assert options(command) <= named, command


def test_every_table_is_linked_and_tidy() -> None:
    """A page links each CSV of docs/data. Its rows have one length, and a cell holds one number, rounded."""
    linked = {(page.parent / target).resolve() for page in documents() for target in targets(page)}
    tables = sorted((ROOT / "docs/data").glob("*"))
    assert tables
    for table in tables:
        assert table.suffix == ".csv"
        assert table.resolve() in linked, f"no page links {table.name}"
        with table.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file))
        assert rows, table.name
        assert {len(row) for row in rows} == {len(head)}, table.name
        assert not re.search(r"\[[^\]]*\d|±|<br>", "".join(map("".join, rows))), f"{table.name}: two numbers in a cell"
        assert not re.search(r"\d\.\d{7}", "\n".join(map("\n".join, rows))), f"{table.name}: a number is not rounded"


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What it can't do", "what-it-cant-do"),
        ("The authors' sweeps", "the-authors-sweeps"),
        ("Settings of a checkpoint: `zs2.json`", "settings-of-a-checkpoint-zs2json"),
        ("From λ to μ", "from-λ-to-μ"),
        ("A [link](x.md) and_snake", "a-link-and_snake"),
        ("a - b", "a---b"),
    ],
)
def test_github_s_rule_of_anchors(tmp_path: Path, heading: str, anchor: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# {heading}\n\n## {heading}\n\n```\n# no heading\n```\n", encoding="utf-8")
    assert anchors(page) == {anchor, f"{anchor}-1"}


@every("README.md", "docs/checkpoints.md")
def test_the_default_checkpoint_is_as_the_documents_say(path: Path) -> None:
    """How large it is, and its pictures; how many things it lists."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert f"{CHECKPOINT.relative_to(ROOT).as_posix()}](" in text
    size = sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file())
    assert f" {round(size / 1e6)} MB" in text
    assert f" {SIDE}×{SIDE} pixels, one of {len(OwnSettings.of(CHECKPOINT).things)} emoji-like things" in text


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading\n", encoding="utf-8")
    (tmp_path / "picture.png").touch()
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-heading) [b](#here) ![c](picture.png) [d](https://example.org/x) `[e](not-a-link)`\n"
        '# Here\n<img src="picture.png"> [f](other.md#nowhere) [g](nothing.md) <img src="lost.png"> [h](#there)\n',
        encoding="utf-8",
    )
    assert sorted(dead(page)) == ["#there", "lost.png", "nothing.md", "other.md#nowhere"]


def test_unknown_modules_are_found() -> None:
    assert known("zs2.study.stats.difference")
    assert known("zs2.sample")
    assert not known("zs2.study.stats.nothing")
    assert not known("zs2.nowhere.nothing")
