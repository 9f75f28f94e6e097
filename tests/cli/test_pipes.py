"""Where output goes nowhere: a pipe that nobody reads (`zs2 models | head`), a full disk, a closed stream."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import CHECKPOINT

from zs2 import __main__ as top
from zs2 import ablate, metrics, report, sample
from zs2.cli import model_list
from zs2.system.progress import progress
from zs2.system.stopping import SIGPIPE, Stopped

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(CHECKPOINT)
ALONE = 128 + SIGPIPE


@pytest.fixture
def unread() -> Iterator[io.TextIOWrapper]:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        yield stream


OUTPUTS = {
    "zs2": (top.main, []),
    "zs2 --help": (top.main, ["--help"]),
    "zs2 --version": (top.main, ["--version"]),
    "zs2 models": (top.main, ["models"]),
    "models": (model_list.main, []),
    "models MODEL": (model_list.main, [MODEL]),
    "sample --help": (sample.main, ["--help"]),
    "sample --version": (sample.main, ["--version"]),
    "sample --dry-run": (sample.main, ["rose", "--model", MODEL, "--dry-run", "--frames", "2"]),
    "ablate --help": (ablate.main, ["--help"]),
    "report --help": (report.main, ["--help"]),
    "metrics --help": (metrics.main, ["--help"]),
}


@pytest.mark.parametrize("call", OUTPUTS)
def test_a_command_ends_quietly_where_nobody_reads(
    call: str, unread: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    main, argv = OUTPUTS[call]
    assert main(argv) == ALONE
    assert not capsys.readouterr().err
    unread.write("what comes later goes nowhere")
    unread.flush()


ERRORS = {
    "an unknown command": (top.main, ["smaple"]),
    "an unknown option": (sample.main, ["--smaple"]),
    "a wrong value": (sample.main, ["rose", "--model", MODEL, "--frames", "0"]),
    "no such study": (report.main, ["nowhere"]),
}


@pytest.mark.parametrize("call", ERRORS)
def test_an_error_that_nobody_reads(
    call: str, unread: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", unread)
    main, argv = ERRORS[call]
    assert main(argv) == ALONE
    assert not capsys.readouterr().out


def test_progress_that_nobody_reads(unread: io.TextIOWrapper) -> None:
    seen = []
    with pytest.raises(Stopped) as stopped:
        seen += progress([1, 2], 2, "sampling", unread)
    assert stopped.value.number == SIGPIPE


def test_streams_that_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`zs2 models >&- 2>&-`: Python has None for them."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert model_list.main([]) == 0
    assert model_list.main(["nowhere"]) == 2
    assert list(progress([1, 2], 2, "sampling")) == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert model_list.main([]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_nothing_is_said_when_python_ends() -> None:
    """What waits in Python's buffer is not written to the pipe once more."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "zs2", "models"]
    ended = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (ALONE, b"")
