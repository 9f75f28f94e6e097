"""The Makefile: what reaches pip and the commands, by programs in their place that write down how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TESTS

ROOT = TESTS.parent
pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a shell")

# What reaches this make from the one that runs the tests: its variables, also by `make test TORCH=…` (MAKEFLAGS).
GIVEN = ("TORCH", "PROMPT", "SAMPLE", "PAGE", "MAKEFLAGS", "MAKEOVERRIDES")

# As `python -m venv DIR` it makes DIR/bin/python, which is this again; everything else it writes down, a word a line.
PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi
if [ "$1" = -c ]; then exit; fi
echo --- >> calls
for word; do echo "$word" >> calls; done
"""


def calls(folder: Path, *arguments: str) -> list[list[str]]:
    """What `make` calls in an empty clone, without the first two words, `-m` and the module."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in GIVEN}
    words = ["make", *arguments, "PYTHON=./python"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [call.splitlines() for call in (folder / "calls").read_text().split("---\n")[1:]]


def test_a_sample_needs_no_options_of_the_checkpoint(tmp_path):
    install, sample = calls(tmp_path, "sample")
    assert install == ["-m", "pip", "install", "-e", ".[dev,video,metrics]"]  # and it shows its progress
    assert sample == ["-m", "zs2.sample", "--seed", "0", "--out", "out/sample.gif", "--overwrite"]


def test_slow_tests_are_those_of_test_slow_alone(tmp_path):
    """What is chosen by -m is chosen instead of what setup.cfg leaves out."""
    *_, tests = calls(tmp_path, "test-long")
    assert tests == ["tests/run.py", "-m", "long and not slow"]


def test_a_prompt_is_one_word(tmp_path):
    _, sample = calls(tmp_path, "sample", "PROMPT=red apple on a yellow background")
    assert sample[:3] == ["-m", "zs2.sample", "red apple on a yellow background"]


@pytest.mark.parametrize("torch", ["torch==2.13.0", "torch --index-url https://example.org/whl/cpu", "torch>=2.4,<3"])
def test_the_build_of_torch_reaches_pip_as_words_before_everything_else(tmp_path, torch):
    first, second, _ = calls(tmp_path, "sample", f"TORCH={torch}")
    assert first == ["-m", "pip", "install", *torch.split()]
    assert second[:4] == ["-m", "pip", "install", "-e"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("Makefile", "setup.cfg", "pyproject.toml", "python", "calls", ".venv")
    }


def test_the_tests_of_a_gpu_can_do_without_an_environment(tmp_path):
    """For a machine that has torch and no network."""
    install, test = calls(tmp_path, "test-cuda")
    assert install[:3] == ["-m", "pip", "install"]
    assert test == ["-m", "pytest", "-m", "cuda", "tests/test_cuda.py"]
    shutil.rmtree(tmp_path / ".venv")
    (tmp_path / "calls").unlink()
    assert calls(tmp_path, "test-cuda", "RUN=./python") == [test]
    assert not (tmp_path / ".venv").exists()


def test_the_pages_tests_are_all_in_the_folders_that_are_named(tmp_path):
    *_, test = calls(tmp_path, "test-page")
    assert test[:3] == ["tests/run.py", "-m", "page"]
    files = [path for path in TESTS.rglob("test_*.py") if "mark.page" in path.read_text(encoding="utf-8")]
    assert {path.parent for path in files if path != Path(__file__)} == {ROOT / folder for folder in test[3:]}
    *_, some = calls(tmp_path, "test-page", "PAGE=page and core")
    assert some == [*test[:2], "page and core", *test[3:]]
    assert 'PAGE="page and core"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
