"""tests/run.py, on test files of its own: every test runs once, and the last line and the status say how they ended;
and what all tests share."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TESTS

DRAWN: list[torch.Tensor] = []
LOG = "from pathlib import Path\n\n\ndef log(name): Path('log.txt').open('a').write(name + '\\n')\n"
FILE = """import pytest
from log import log


@pytest.mark.parametrize("number", range(3))
def test_passes(number): log(f"{__name__} {number}")


def test_is_skipped(): pytest.skip("not here")
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status, and what was printed."""
    words = [sys.executable, str(TESTS / "run.py"), *arguments]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # to start faster
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return ended.returncode, ended.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files of three tests that pass, and note that they ran, and one that is skipped."""
    (tmp_path / "log.py").write_text(LOG)
    for number in range(5):
        (tmp_path / f"test_{number}.py").write_text(FILE)
    return tmp_path


def test_every_test_runs_once(folder):
    status, out = run(folder)
    lines = out.splitlines()
    assert status == 0
    assert lines[-1].startswith("15 passed, 0 failed, 5 skipped in ")
    assert sum(line.startswith("test_") and "3 passed, 1 skipped" in line for line in lines) == 5  # a line a file
    ran = (folder / "log.txt").read_text().splitlines()
    assert sorted(ran) == [f"test_{file} {number}" for file in range(5) for number in range(3)]


def test_arguments_are_those_of_pytest(folder):
    status, out = run(folder, "test_3.py", "-k", "passes and not 2")
    assert status == 0
    assert out.splitlines()[-1].startswith("2 passed, 0 failed, 0 skipped in ")


@pytest.mark.parametrize(
    ("code", "words", "counted"),
    [
        ("def test_wrong(): assert 1 == 2", ["test_9.py::test_wrong", "assert 1 == 2"], "15 passed, 1 failed"),
        ("import nonesuch", ["No module named 'nonesuch'"], "0 passed, 1 failed"),
        ("import os\ndef test_dies(): os._exit(0)", ["a process ended in test_9.py, with status 0"], "1 failed"),
    ],
)
def test_what_goes_wrong_is_shown_and_fails(folder, code, words, counted):
    (folder / "test_9.py").write_text(code)
    status, out = run(folder)
    assert status != 0
    assert counted in out.splitlines()[-1]
    for word in words:
        assert word in out


@pytest.mark.parametrize("number", range(3))
def test_what_is_drawn_without_a_seed_is_the_same_whatever_ran_before(number: int) -> None:
    DRAWN.append(torch.rand(4))
    assert torch.equal(DRAWN[-1], DRAWN[0])


def test_what_a_shell_has_set_for_the_hub_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
    for name in names:
        monkeypatch.setenv(name, "1")
    runpy.run_path(str(TESTS / "conftest.py"))
    assert [name for name in names if name in os.environ] == ["HF_HUB_CACHE"]


def test_another_machine_is_not_asked(no_network: list[Any]) -> None:
    for ask in (
        lambda: socket.create_connection(("192.0.2.1", 80), 1),
        lambda: urllib.request.urlopen("http://example.com", timeout=1),
        lambda: socket.getaddrinfo(b"example.org", 80),  # as asynchronous clients do
    ):
        with pytest.raises(OSError, match="no network in tests"):
            ask()
    assert no_network == ["192.0.2.1", "example.com", "example.org"]
    no_network.clear()
