"""A clone is small: what git tracks, beside the weights."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TESTS

ROOT = TESTS.parent
MB = 1_000_000


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Bytes of each tracked file outside weights/."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    try:
        top = Path(git("rev-parse", "--show-toplevel").rstrip("\n"))
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout")
    if top.resolve() != ROOT.resolve():
        pytest.skip("inside the checkout of something else")
    files = [name for name in git("ls-files", "-z").split("\0") if name and not name.startswith("weights/")]
    return {name: (ROOT / name).lstat().st_size for name in files if (ROOT / name).exists()}


def test_no_file_is_over_2_mb(sizes: dict[str, int]) -> None:
    assert sizes
    assert {name: size for name, size in sizes.items() if size > 2 * MB} == {}


def test_all_files_are_under_12_mb_and_the_fixtures_under_8(sizes: dict[str, int]) -> None:
    assert sum(sizes.values()) < 12 * MB
    assert sum(size for name, size in sizes.items() if name.startswith("tests/fixtures/")) < 8 * MB
