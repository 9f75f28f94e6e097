"""The house: which file may import which, how long files are, and the way of a prompt to the attention over frames."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import CHECKPOINT, TESTS

import zs2
from zs2 import ZS2
from zs2.models.temporal import Temporal

ROOT = TESTS.parent
FILES = sorted((ROOT / "zs2").rglob("*.py"))
PACKAGE = Path(zs2.__file__).parent  # that of a wheel, where its tests run; a clone's own folder may have any name

RECIPE = sorted((ROOT / "weights").rglob("*.py"))
READS_A_FOLDER = ("glob", "iglob", "iterdir", "listdir", "rglob", "scandir", "walk")

# From the ground up: a wing, or a file beside the wings, imports only from rows above its own (and from its own wing).
FLOORS = (
    ("version", "errors"),
    ("system",),
    ("parameters",),
    ("method",),
    ("models", "noise", "video"),
    ("guidance",),
    ("sampling",),
    ("checkpoints",),
    ("pipeline", "evaluation"),
    ("cli",),
    ("study",),
    ("reporting",),
    ("sample", "ablate", "report", "metrics", "app"),
    ("__main__",),
)
FLOOR = {name: number for number, row in enumerate(FLOORS) for name in row}
EXCEPTIONS = {("models", "cli"): "zs2/models/__main__.py"}  # the command that lists models
LAZY = "zs2/__init__.py"  # names the API's homes, and imports one when it is asked for


def door(name: str) -> str:
    """The wing, or the file beside the wings, of a module's dotted name."""
    return name.split(".")[1]


def imported(file: Path) -> set[str]:
    """The modules of zs2 that a file imports, also where it does so inside a function or for type checking."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            if node.module == "zs2":
                found |= {f"zs2.{alias.name}" for alias in node.names}
            elif node.module and node.module.startswith("zs2."):
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("zs2.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    path = str(file.relative_to(ROOT))
    if path == LAZY:
        return
    own = door(path.removesuffix(".py").replace("/", "."))
    assert own in FLOOR, f"{path}: give {own} a place in FLOORS, and in docs/architecture.md"
    for module in imported(file):
        other = door(module)
        if other != own and EXCEPTIONS.get((own, other)) != path:
            assert FLOOR[other] < FLOOR[own], f"{path} imports {module}, which is not below it"


def test_wings_know_few_other_wings() -> None:
    """At most 45 arrows between wings, commands and the ground that all stand on apart."""
    ground = {"errors", "method", "system", "version"}
    arrows = {
        (door(str(file.relative_to(ROOT)).removesuffix(".py").replace("/", ".")), door(module))
        for file in FILES
        if file.name not in ("__init__.py", "__main__.py")
        for module in imported(file)
    }
    arrows = {(own, other) for own, other in arrows if own != other and not {own, other} & ground and other in FLOOR}
    assert len(arrows) <= 45, sorted(arrows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_longer_than_one_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_everything_printed_goes_through_one_function(file: Path) -> None:
    """zs2/system/terminal.py shows control characters and shortens; the bar of progress.py needs a carriage return."""
    if file.name in ("terminal.py", "progress.py"):
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Name) and node.id == "print"), f"{file}:{node.lineno}: print"
        if isinstance(node, ast.Attribute) and node.attr in ("write", "writelines"):
            assert ast.unparse(node.value) not in ("sys.stdout", "sys.stderr"), f"{file}:{node.lineno}"


@pytest.mark.parametrize("file", [*FILES, *RECIPE], ids=lambda file: str(file.relative_to(ROOT)))
def test_the_order_of_a_folder_decides_nothing(file: Path) -> None:
    """A file system gives names in any order. They are sorted where they are read, or made a set."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in READS_A_FOLDER:
            node = parents[call]
            while isinstance(node, ast.GeneratorExp | ast.comprehension):
                node = parents[node]
            assert isinstance(node, ast.SetComp) or (
                isinstance(node, ast.Call) and ast.unparse(node.func) in ("sorted", "set", "frozenset", "any", "len")
            ), f"{file}:{call.lineno}: {ast.unparse(call)} in no order: sort it"


def test_rows_name_code_that_is_there() -> None:
    """A name in a table is imported only when it is used: here all of them are."""
    from zs2.method import ATTENTION_KINDS, NOISE_MODELS
    from zs2.sampling.solver import SOLVERS
    from zs2.system.registry import load

    named = [row.implementation for row in (*ATTENTION_KINDS.values(), *SOLVERS.values())]
    named += [row.generate for row in NOISE_MODELS.values()]
    named += [row.start for row in NOISE_MODELS.values() if row.start is not None]
    assert all(callable(load(name)) for name in named)


def test_the_way_from_a_call_to_the_attention_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of zs2 on the stack when frames are first blended, as docs/architecture.md lists them."""
    seen: list[list[str]] = []
    blend = Temporal.blend

    def looking(self: Temporal, *arguments: Any) -> Any:
        frame: FrameType | None = sys._getframe()
        stack = []
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
                stack.append(frame.f_code.co_qualname)
            frame = frame.f_back
        seen.append([*reversed(stack), "Temporal.blend"])
        return blend(self, *arguments)

    monkeypatch.setattr(Temporal, "blend", looking)
    ZS2.from_pretrained(CHECKPOINT, device="cpu")("rose", frames=2, steps=1, height=32, width=32)
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in text.partition("<!-- stops -->")[2].splitlines() if line[:1].isdigit()]
    assert seen[0] == listed
    assert len(listed) <= 10
