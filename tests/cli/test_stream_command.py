"""`python -m zs2.sample` on clips of any length: streams, Ctrl-C within them, and the plan of memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import BRIEF, ROOT, command, environment, failed, files, here, posix, succeeded, text, zs2

from zs2.errors import InputError
from zs2.sampling.memory import MemoryPlan, fitting
from zs2.video.clip import read_settings

__all__ = ["here", "zs2"]  # fixtures
LINE = ("red apple", *BRIEF, "--frames", "5", "--chunk", "2", "--lam", "0.5")


@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_a_stream_writes_the_files_of_the_clip(zs2, here, name):
    if name == "c.mp4":
        pytest.importorskip("av")
    want = succeeded(zs2(*LINE, "--out", f"whole/{name}"))
    got = succeeded(zs2(*LINE, "--out", f"streamed/{name}", "--stream"))
    assert got.written == [path.replace("whole", "streamed") for path in want.written]
    assert re.search(r"^frames 5/5 in ", got.err, re.MULTILINE)
    assert files(here / "streamed") == files(here / "whole") != {}
    succeeded(zs2("--replay", f"whole/{name}.json", "--stream", "--state-device", "cpu", "--out", f"again/{name}"))
    assert files(here / "again") == files(here / "whole")


def test_a_stream_is_mp4_by_default(zs2):
    pytest.importorskip("av")
    assert succeeded(zs2(*BRIEF, "--stream", "--no-sheet")).written == ["out/00001.mp4", "out/00001.mp4.json"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--out c.gif", ["c.gif", "needs all frames at once", ".mp4", "folder"]),
        ("--out c.webp", ["c.webp", "needs all frames at once"]),
        ("--out c.mp4 --size 12x12 --model MODEL", ["no such model"]),
        ("--chunk 0 --out c", ["chunk is 0", "at least 1"]),
        ("--state-device typewriter --out c", ["typewriter", "try cpu"]),
    ],
)
def test_streams_that_can_not_be_written(zs2, here, line, words):
    failed(zs2("red apple", *BRIEF, "--stream", *line.split()), *words)
    assert files(here) == {}


def test_state_device_that_is_the_models_has_no_effect(zs2):
    """And the plan counts the states of all steps."""
    line = (*BRIEF, "--stream", "--out", "c", "--dry-run")
    plain, other = (succeeded(zs2(*line, *more)) for more in ((), ("--state-device", "cpu")))
    assert [row for row in plain.out.splitlines() if row.startswith("states")] == [
        row for row in other.out.splitlines() if row.startswith("states")
    ]
    assert other.warnings == ["state_device cpu has no effect: the model is there, too"]


def test_state_device_without_a_stream_has_no_effect(zs2):
    (warning,) = succeeded(zs2(*BRIEF, "--state-device", "cpu")).warnings
    assert warning == "state_device: no effect without --stream"


@posix
@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_ctrl_c_ends_a_stream_with_the_frames_that_are_there(here, name):
    """In the middle of the third chunk: the file is whole, and its settings say how many frames it has."""
    if name == "c.mp4":
        pytest.importorskip("av")
    code = (
        "import os, signal, sys; from zs2.sample import main; from zs2.sampling.sampler import Sampler\n"
        "step, calls = Sampler.step, []\n"
        "def interrupted(*args, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 6: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(*args, **options)\n"
        "Sampler.step = interrupted\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    line = (*LINE, "--frames", "50", "--steps", "2", "--stream", "--out", name)
    result = command(*line, program=("-c", code), cwd=here)
    assert result.status == 130, result.err
    assert result.err.splitlines()[-1] == "zs2: stopped: what was finished before is kept"
    assert result.written == [name, f"{name}.sheet.png", f"{name}.json"]
    settings = text(here / f"{name}.json")
    assert settings["frames"] == 4
    assert read_settings(here / name) == settings
    if name == "c":
        assert sorted(file.name for file in (here / "c").iterdir()) == [f"{i:04}.png" for i in range(4)]
        again = succeeded(command("--replay", "c", "--out", "again", cwd=here))
        assert again.err.count("warning") == 0
        assert {k[-8:]: v for k, v in files(here / "again").items()} == {
            k[-8:]: v for k, v in files(here / "c").items()
        }
    else:
        import av

        with av.open(str(here / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 4


def test_a_stream_that_fails_leaves_nothing(here):
    """The disk is full, say. Its settings were asked for when the first frame was there."""
    from zs2.video.streaming import save

    order = []

    def settings():
        order.append("settings")
        return {"prompt": "", "frames": 5}

    def broken():
        order.append("frame")
        yield np.zeros((16, 16, 3), np.uint8)
        raise OSError("no space left")

    for name in ("c", "c.mp4"):
        with pytest.raises(OSError, match="no space left"):
            save(broken(), 5, Path(name), 8, settings, sheet=True)
        assert list(here.iterdir()) == []
    assert order == ["frame", "settings"] * 2


# --- the plan of memory -----------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_needed_and_makes_nothing(zs2, here):
    result = succeeded(zs2("--frames", "20", "--chunk", "4", "--dry-run"))
    first, *rows = result.out.splitlines()
    assert first == "20 frames, 4 at a time:"
    assert [row.split()[0] for row in rows] == [
        *("process", "weights", "latents", "frames", "text", "states", "deep", "unet", "decoding", "peak", "free")
    ]
    assert files(here) == {}


def test_a_plan_that_does_not_fit_says_which_chunk_would(zs2, here):
    """Terabytes; half of what would fit is asked for then, since other programs may have taken some meanwhile."""
    line = ("--frames", "20000", "--size", "512x512", "--stream", "--out", "c", "--chunk")
    result = zs2(*line, "20000")
    failed(result, "a chunk of 20000 frames needs", "are free", "would fit")
    chunk = int(re.search(r"(\d+) would fit", result.err)[1])
    assert succeeded(zs2(*line, str(max(1, chunk // 2)), "--dry-run")).warnings == []
    failed(zs2(*line, str(4 * chunk + 4)), "would fit")
    failed(zs2("--frames", "1", "--size", "100000x100000"), "not even one frame at a time fits", "--stream")
    assert files(here) == {}


def test_the_plan_is_near_the_peak():
    """Of a whole process; benchmarks/length.py does this at Stable Diffusion 1.5's size too."""
    words = [sys.executable, str(ROOT / "benchmarks" / "length.py"), "one", "emoji64", "16"]
    ended = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads(ended.stdout)
    assert measured["plan"] == pytest.approx(measured["peak"], rel=0.15)


def test_what_fits_is_the_largest_chunk_that_does():
    def needs(chunk):
        return MemoryPlan(
            process=0, weights=100, latents=0, frames=0, text=0, states=0, deep=0, unet=10 * chunk, decoding=5
        )

    assert fitting(needs, 8, None, asked=True) == 8
    assert fitting(needs, 8, 180, asked=True) == 8
    assert fitting(needs, 8, 170, asked=False) == 5  # nine tenths of what is free
    with pytest.raises(InputError, match=r"a chunk of 8 frames needs .*: 5 would fit"):
        fitting(needs, 8, 170, asked=True)
    with pytest.raises(InputError, match="not even one frame"):
        fitting(needs, 8, 120, asked=False)
