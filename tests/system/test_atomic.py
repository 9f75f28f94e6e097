"""Files written whole or not at all. `Clip.save` (test_video.py) and killed studies (test_ablate.py) use it, too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zs2.system.atomic import check_writable, remove_unfinished, write_all, write_bytes, write_json, write_text

WRITERS: list[tuple[Callable[[Path, Any], None], Any, bytes]] = [
    (write_bytes, b"\x00new", b"\x00new"),
    (write_text, "é\r\nλ\n", "é\r\nλ\n".encode()),
    (write_json, {"λ": [1, None]}, '{\n "λ": [\n  1,\n  null\n ]\n}\n'.encode()),
]


@pytest.mark.parametrize(("write", "value", "content"), WRITERS)
def test_a_file_is_written_or_replaced(tmp_path, write, value, content):
    file = tmp_path / "file"
    for _ in range(2):
        write(file, value)
        assert file.read_bytes() == content
        file.write_text("old")
    with open(file) as reader:
        write(file, value)
        assert reader.read() == "old"
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(("owner", "step"), [(Path, "write_bytes"), (os, "replace")])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize(("write", "value", "content"), WRITERS)
def test_a_file_that_can_not_be_written_stays_as_it_was(
    tmp_path, monkeypatch, write, value, content, owner, step, error
):
    def fail(*_: object, **__: object) -> None:
        raise error

    file = tmp_path / "file"
    for old in (None, b"old"):
        if old is not None:
            file.write_bytes(old)
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, fail)
            with pytest.raises((KeyboardInterrupt, OSError)):
                write(file, value)
        assert (file.read_bytes() if file.exists() else None) == old
        assert [*tmp_path.iterdir()] == [file] * (old is not None)


def test_what_is_no_json_leaves_the_file(tmp_path):
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": {1}})
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}


def test_no_target_changes_before_all_are_written(tmp_path):
    one, two = tmp_path / "new" / "one", tmp_path / "new" / "two"

    def write(content: str) -> dict[Path, Callable[[Path], object]]:
        return {file: lambda part: part.write_text(content) for file in (one, two)}

    write_all(write("old"))
    with pytest.raises(ZeroDivisionError):
        write_all({**write("new"), two: lambda part: 1 / 0}, record=two)
    assert (one.read_text(), two.read_text()) == ("old", "old")
    write_all(write("new"), record=two)
    assert (one.read_text(), two.read_text()) == ("new", "new")
    assert {*one.parent.iterdir()} == {one, two}


def test_a_check_leaves_no_trace(tmp_path):
    check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "nowhere")
    assert [*tmp_path.iterdir()] == []


def test_only_temporary_files_are_removed(tmp_path):
    names = {"clip.webp", ".zs2-notes", "notes.part"}
    for name in (*names, ".zs2-1.part"):
        (tmp_path / name).write_text("")
    (tmp_path / ".zs2-2.part" / "new").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == names


@pytest.mark.parametrize("after", [False, True])
def test_a_signal_during_the_clean_up_leaves_nothing(tmp_path, monkeypatch, after):
    """The signal comes just before or just after the file in the temporary folder is removed."""
    unlink, left = os.unlink, [1]

    def interrupted(*words: object, **options: object) -> None:
        if left and left.pop():
            if after:
                unlink(*words, **options)
            raise KeyboardInterrupt
        unlink(*words, **options)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
