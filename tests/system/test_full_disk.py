"""Files that can't be written, on a full disk or beyond `ulimit -f`: the error names the file, and says what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from zs2.checkpoints.hub import _explain
from zs2.cli.command import command, parser
from zs2.errors import NotWritten
from zs2.system.atomic import write_all, write_bytes, write_json, write_text, writing
from zs2.video.clip import Clip
from zs2.video.encoding import Encoding
from zs2.video.formats import WRITERS
from zs2.video.outputs import Output
from zs2.video.streaming import save

posix = pytest.mark.skipif(os.name != "posix", reason="sets a limit of the process")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8)
SETTINGS = {"prompt": "", "frames": 4, "fps": 8}
LIMIT = 3000  # bytes: each of these clips is longer
LARGE = f"a file may have {LIMIT} bytes here: raise that limit (ulimit -f)"
ENDINGS = list(WRITERS)


@contextmanager
def limited(most: int = LIMIT) -> Iterator[None]:
    """No file of this process may be longer."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def needs_av(ending: str) -> None:
    if ending == ".mp4":
        pytest.importorskip("av")


LONG = "x" * (LIMIT + 1)
FILES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: write_bytes(path, LONG.encode()),
    "text": lambda path: write_text(path, LONG),
    "JSON": lambda path: write_json(path, {"a": LONG}),
    "several": lambda path: write_all({path.with_name("first"): Path.touch, path: lambda to: to.write_text(LONG)}),
    **{f"clip{ending}": lambda path, e=ending: Clip(FRAMES, 8, SETTINGS).save(f"{path}{e}") for ending in ENDINGS},
}


@posix
@pytest.mark.parametrize("kind", FILES)
def test_a_file_beyond_the_limit_of_its_size_is_named(tmp_path, kind):
    needs_av(kind.removeprefix("clip"))
    path = tmp_path / "file"
    with limited(), pytest.raises(NotWritten) as caught:
        FILES[kind](path)
    ending = kind.removeprefix("clip") if kind.startswith("clip") else ""
    assert str(caught.value) == f"{path}{ending} can't be written (File too large): {LARGE}"
    assert caught.value.errno == errno.EFBIG
    assert left(tmp_path) == []


@full
@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending])
def test_a_file_on_a_full_disk_is_named(tmp_path, ending):
    """Whatever library writes it: it writes to a device that has no room, by the kernel's word."""
    needs_av(ending)
    clip = tmp_path / f"clip{ending}"

    def write(target: Path) -> None:
        target.symlink_to("/dev/full")
        WRITERS[ending](FRAMES, Encoding(), "{}", target)

    with pytest.raises(NotWritten) as caught:
        write_all({clip: write})
    room = f"make room on the disk of {tmp_path}, or choose another place"
    assert str(caught.value) == f"{clip} can't be written (No space left on device): {room}"
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []


@posix
@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_a_stream_that_can_not_grow_is_named(tmp_path, name):
    """By its name, not that of a hidden file."""
    needs_av(Path(name).suffix)
    with limited():
        try:
            ended = save(iter(FRAMES), 4, Output.at(tmp_path / name), Encoding(), lambda: SETTINGS, sheet=False).ended
        except NotWritten as error:  # no frame came
            ended = error
    assert isinstance(ended, NotWritten)
    assert str(ended) == f"{tmp_path / name} can't be written (File too large): {LARGE}"


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "deep" / "c.gif"
    with pytest.raises(
        NotWritten, match=r"^.*/file/deep/c.gif can't be written \(Not a directory\): choose another pl"
    ):
        Clip(FRAMES, 8).save(path) if os.name == "nt" else write_all({path: Path.touch})


def test_what_is_no_failure_of_writing_stays(tmp_path):
    for error in (ValueError("a"), FloatingPointError("b"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "c"):
            raise error
        assert caught.value is error


def test_a_name_is_given_once(tmp_path):
    with pytest.raises(NotWritten, match=r"^inner can't be"), writing(Path("outer")), writing(Path("inner")):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space", "s/.lock"), "s/.lock can't be written (No space): make room on the disk of"),
        (OSError(errno.ENOSPC, "No space"), "the standard output can't be written (No space): make room there, or"),
        (OSError(errno.EIO, "Input/output error", "s/.lock"), "[Errno 5] Input/output error: 's/.lock'"),
    ],
    ids=str,
)
def test_the_commands_say_what_to_do_for_what_else_is_full(capsys, error, says):
    """What zs2 does not write by `writing`: locks, folders, and the output, which has no name."""

    def run(_: object) -> None:
        raise error

    assert command(parser("test", "", ""), run, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zs2: error: {says}")


@full
def test_an_output_on_a_full_disk_is_an_error(capsys, monkeypatch):
    """Also if it is only noticed at the end."""
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert command(parser("test", "", ""), lambda _: print("written"), []) == 1
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # so that it can be closed
    assert "the standard output can't be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device): make room on the disk of "),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room on the disk of "),
        (RuntimeError("Data processing error: IO: No space left (os error 28)"), "No space left on device): make room"),
        (OSError(errno.EFBIG, "File too large"), f"File too large): {LARGE}"),
        (RuntimeError("Internal Writer Error: File too large (os error 27)"), f"File too large): {LARGE}"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied): set HF_HOME to another folder"),
    ],
)
@posix
def test_a_download_that_can_not_be_written(error, words):
    """The error names the cache, and not the connection."""
    pytest.importorskip("huggingface_hub")
    with limited():
        message = _explain(error, "sd15", "owner/name", None)
    assert message.startswith("can't write to ")
    assert words in message
    assert "connection" not in message
