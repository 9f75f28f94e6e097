"""The Python of the documents: every block compiles, its names are defined or imported, and its keywords exist."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Collection
from pathlib import Path

import pytest
from test_documents import every, known

from zs2 import Clip
from zs2.pipeline import CALLS

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("guide", "guidance", "checkpoints", "architecture")))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PRESUPPOSED = {"docs/guidance.md": {"model"}}  # as the page says
LOADS = ("from_pretrained", "variant", "with_controlnet")  # these return a model


def tree_of(text: str) -> ast.Module:
    """A page's blocks of Python, one after the other, as a reader would type them."""
    return ast.parse("\n".join(BLOCK.findall(text)))


def undefined(tree: ast.Module) -> set[str]:
    """The names that are used and neither defined, imported nor built in."""
    known_names = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known_names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known_names.add(node.name)
        elif isinstance(node, ast.arg):
            known_names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known_names.add(node.id)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known_names


def missing_imports(tree: ast.Module) -> list[str]:
    """What is imported from zs2 and is not there."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "")[:3] == "zs2"]
    return [name for node in froms for alias in node.names if not known(name := f"{node.module}.{alias.name}")]


def keywords(call: ast.Call, models: set[str]) -> Collection[str] | None:
    """The keywords of a call of a model or a clip; None for any other call."""
    match call.func:
        case ast.Attribute(attr="save"):
            return inspect.signature(Clip.save).parameters
        case ast.Attribute(value=ast.Name(id="ZS2"), attr="from_pretrained"):
            return CALLS["ZS2.from_pretrained()"]
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in models:
            return CALLS.get(f"model.{attr}()")
        case ast.Name(id=name) if name in models:
            return CALLS["model()"]
        case ast.Call(func=ast.Attribute(attr="variant")):
            return CALLS["model()"]
    return None


def unknown_keywords(tree: ast.Module) -> list[str]:
    """The keywords that calls of models and clips do not have."""
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
    made = [node for node in loads if getattr(node.value.func, "attr", None) in LOADS]
    models = {"model"} | {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
    calls = [(node, keywords(node, models)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        one.arg
        for node, there in calls
        if there is not None
        for one in node.keywords
        if one.arg and one.arg not in there
    ]


@every(*PAGES)
def test_the_python_of_a_page_uses_what_is_there(path: Path) -> None:
    tree = tree_of(path.read_text(encoding="utf-8"))
    page = path.relative_to(Path(__file__).parents[1]).as_posix()
    assert undefined(tree) - PRESUPPOSED.get(page, set()) == set()
    assert missing_imports(tree) == []
    assert unknown_keywords(tree) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('clip = model("fox face")', ({"model"}, [], [])),
        ("from zs2 import ZS2, Klip", (set(), ["zs2.Klip"], [])),
        ('from zs2 import ZS2\nZS2.from_pretrained("x", lambda_=1, lam=1)', (set(), [], ["lambda_"])),
        ("model = other = 1\nother = model.variant(mu=1, steps=2)\nother('x', step=3)", (set(), [], ["step", "steps"])),
        ("model = 1\nmodel.variant(mu=1)('x', seed=1, mu=2).save('x.gif', fps=8)", (set(), [], ["fps", "mu"])),
        ("model = 1\nmodel.stream('x', frames=None, out=1)\nmodel.plan(request)", ({"request"}, [], ["out"])),
    ],
)
def test_what_is_not_there_is_found(code: str, found: tuple[set[str], list[str], list[str]]) -> None:
    tree = tree_of(f"# A page\n\n```python\n{code}\n```\n")
    assert (undefined(tree), missing_imports(tree), sorted(unknown_keywords(tree))) == found
