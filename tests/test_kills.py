"""Streams and studies that are killed at random moments: kills.py, with few kills here and 40 in the slow tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from forked import Forked
from helpers import TESTS

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has torch")


def kill(narrow: Path, folder: Path, *options: str) -> None:
    """Run kills.py. Its output, with the seed, is that of the test."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    process = Forked([str(TESTS / "kills.py"), str(narrow), str(folder), *options], folder, environment)
    out, err = process.communicate(timeout=1800)
    print(out)
    assert process.returncode == 0, err


@pytest.mark.long
def test_three_kills(narrow, tmp_path):
    kill(narrow, tmp_path, "--seed", "205", "--resumed", "2", "--plain", "1")


@pytest.mark.slow
def test_40_kills_of_streams_and_studies(narrow, tmp_path):
    """20 of them of streams that go on. The seed is another one each time."""
    kill(narrow, tmp_path, "--resumed", "20", "--plain", "10", "--grids", "10")
