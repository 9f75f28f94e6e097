"""Several processes in one folder: what one has claimed no other gets, and what killed ones left is removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import TESTS

import zs2.study.lock
from zs2.study.lock import Workplace

pytestmark = pytest.mark.skipif(zs2.study.lock.fcntl is None, reason="there are no locks here")

ROOT = TESTS.parent
OTHER = """if True:
    import sys
    from pathlib import Path
    from zs2.study.lock import Workplace
    folder = Path(sys.argv[1])
    with Workplace(folder, [folder]) as place:
        {work}
"""
WAIT = "print('ready', flush=True); input()"


class Other:
    """Another process in a folder; it says `ready` when its work is so far."""

    def __init__(self, folder: Path, work: str) -> None:
        words = [sys.executable, "-c", OTHER.format(work=work), str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it end."""
        self.process.communicate("\n", timeout=600)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=600)


Start = Callable[[str], Other]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes in the folder of the test."""
    started: list[Other] = []

    def one(work: str) -> Other:
        started.append(Other(tmp_path, work))
        return started[-1]

    yield one
    for other in started:
        other.kill()


def claimed(folder: Path, *names: str) -> list[bool]:
    """Whether this process gets names that it claims all together."""
    with Workplace(folder, [folder]) as place:
        got = []
        for name in names:
            with place.claim(name) as mine:
                got.append(mine)
        return got


def test_a_claim_holds_against_other_processes_until_it_is_given_back(start, tmp_path):
    other = start(f"with place.claim('a') as mine: assert mine; {WAIT}\n        {WAIT}")
    assert claimed(tmp_path, "a", "b") == [False, True]
    print(file=other.process.stdin, flush=True)
    assert other.line() == "ready"  # it is still there, but done with a
    assert claimed(tmp_path, "a", "b") == [True, True]
    other.go_on()


def test_a_claim_ends_with_its_process_however_that_ends(start, tmp_path):
    other = start(f"with place.claim('a') as mine: {WAIT}")
    assert claimed(tmp_path, "a") == [False]
    other.kill()
    assert claimed(tmp_path, "a") == [True]


def test_a_claim_in_vain_takes_nothing_from_the_one_who_has_it(start, tmp_path):
    start(f"with place.claim('a') as mine: {WAIT}")
    assert [claimed(tmp_path, "a") for _ in range(3)] == [[False]] * 3


def leave_behind(folder: Path) -> set[str]:
    """What killed processes leave: a file and a folder that is not empty. Returns the names of what is not theirs."""
    (folder / ".zs2-file.part").write_text("half")
    (folder / ".zs2-folder.part" / "new").mkdir(parents=True)
    (folder / ".zs2-folder.part" / "new" / "clip.webp").write_text("half")
    others = {"clip.webp", ".zs2-notes", "notes.part", "x.zs2-1.part"}
    for name in others:
        (folder / name).write_text("keep me")
    return others


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".lock"}


def test_what_killed_processes_left_is_removed(tmp_path):
    others = leave_behind(tmp_path)
    with Workplace(tmp_path, [tmp_path]) as place:
        assert names(tmp_path) == others
        assert place.removed == [tmp_path / ".zs2-file.part", tmp_path / ".zs2-folder.part"]
        leave_behind(tmp_path)
    assert names(tmp_path) == others


def test_what_another_process_is_writing_is_left_alone_until_the_last_one_leaves(start, tmp_path):
    other = start(WAIT)
    leave_behind(tmp_path)
    there = names(tmp_path)
    with Workplace(tmp_path, [tmp_path]):
        assert names(tmp_path) == there
    assert names(tmp_path) == there
    other.go_on()
    assert len(names(tmp_path)) == len(there) - 2


def test_a_process_that_came_first_does_not_remove_what_a_later_one_is_writing(start, tmp_path):
    with Workplace(tmp_path, [tmp_path]):
        other = start(WAIT)
        leave_behind(tmp_path)
    assert (tmp_path / ".zs2-file.part").exists()
    other.kill()
    with Workplace(tmp_path, [tmp_path]):
        assert not (tmp_path / ".zs2-file.part").exists()


def test_one_process_at_a_time_is_writing(start, tmp_path):
    log = tmp_path / "log"
    say = "with place.writing(): {}print({!r}, file=open(folder / 'log', 'a'))"
    first = start(say.format(f"{WAIT}; ", "first"))
    second = start(f"print('ready', flush=True); {say.format('', 'second')}".replace("; with", "\n        with"))
    time.sleep(0.3)
    assert not log.exists()  # the second waits, whenever it came to it
    first.go_on()
    second.process.wait(timeout=600)
    assert log.read_text().split() == ["first", "second"]


def no_lock(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("how", ["a system without locks", "a file system without locks"])
def test_without_locks_all_work_is_taken_and_nothing_is_removed(tmp_path, monkeypatch, how):
    if how == "a system without locks":
        monkeypatch.setattr(zs2.study.lock, "fcntl", None)
    else:
        monkeypatch.setattr(zs2.study.lock.fcntl, "lockf", no_lock)
    leave_behind(tmp_path)
    there = names(tmp_path)
    with Workplace(tmp_path, [tmp_path]) as place, place.writing(), place.claim("a") as mine:
        assert mine
    assert names(tmp_path) == there
