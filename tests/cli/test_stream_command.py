"""`python -m zs2.sample` on clips of any length: streams, Ctrl-C within them, and the plan of memory."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LATENTS
from safetensors.torch import save_file
from test_cli import BRIEF, ROOT, environment, failed, files, here, posix, succeeded, text, zs2

from zs2.errors import InputError
from zs2.method import NOISE_MODELS
from zs2.sampling.memory import MemoryPlan
from zs2.sampling.sampler import Sampler
from zs2.system.free_memory import fitting
from zs2.system.stopping import Stopped, signals_stop
from zs2.video.clip import Clip, read_settings
from zs2.video.encoding import Encoding
from zs2.video.metadata import with_png_text
from zs2.video.outputs import Output
from zs2.video.streaming import save
from zs2.video.unfinished import finish, shortened

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
        ("--chunk 0 --out c", ["chunk is 0", "from 1 to"]),
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


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen before the n-th step of the sampler."""

    def happens(number: int, what: Callable[[], None]) -> None:
        step, calls = Sampler.step, []

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == number:
                what()
            return step(*args, **options)

        monkeypatch.setattr(Sampler, "step", counted)

    return happens


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_a_signal_ends_a_stream_with_the_frames_that_are_there(zs2, here, before_step, name, number):
    """In the middle of the third chunk: the file is whole, and its settings say how many frames it has."""
    if name == "c.mp4":
        pytest.importorskip("av")
    before_step(6, lambda: os.kill(os.getpid(), number))
    result = zs2(*LINE, "--frames", "50", "--steps", "2", "--stream", "--out", name)
    assert result.status == 128 + number, result.err
    by = {signal.SIGINT: "", signal.SIGTERM: " by SIGTERM", signal.SIGHUP: " by SIGHUP"}[number]
    kept, stopped = result.err.splitlines()[-2:]
    assert kept == f"zs2: the first 4 of 50 frames are kept: {name}"
    assert stopped == f"zs2: stopped{by}: what was finished before is kept"
    assert result.written == [name, f"{name}.sheet.png", f"{name}.json"]
    assert len([*here.iterdir()]) == 3
    settings = text(here / f"{name}.json")
    assert settings["frames"] == 4
    assert read_settings(here / name) == settings
    if name == "c":
        assert sorted(file.name for file in (here / "c").iterdir()) == [f"{i:04}.png" for i in range(4)]
        again = succeeded(zs2("--replay", "c", "--out", "again"))
        assert again.err.count("warning") == 0
        assert files(here / "again") == files(here / "c")
    else:
        assert len(decoded(here / name)) == 4


@posix
@pytest.mark.parametrize("noise", ["loop", "latents"])
def test_the_kept_frames_are_replayed_where_the_noise_is_of_the_whole_clip(zs2, here, before_step, noise):
    """And interrupted once more, and replayed from that."""
    if noise == "latents":
        drawn = torch.randn(9, LATENTS[0], 2, 2, generator=torch.Generator().manual_seed(0))
        save_file({"latents": drawn}, "noise.safetensors")
        save_file({"latents": drawn[:4].clone()}, "beginning.safetensors")
        options = more = ("--latents", "noise.safetensors")
    else:
        options, more = ("--noise", "loop", "--lam", "0.5"), ()
    line = ("red apple", *BRIEF[:2], *BRIEF[-4:], "--frames", "9", "--chunk", "2", "--no-sheet", *options)
    succeeded(zs2(*line, "--out", "whole"))
    before_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert zs2(*line, "--stream", "--out", "c").status == 130
    assert (text(here / "c.json")["frames"], text(here / "c.json")["part_of"]) == (4, 9)
    again = succeeded(zs2("--replay", "c", *more, "--out", "again", "--no-sheet"))
    assert again.err.count("warning") == 0
    assert files(here / "again") == files(here / "c")
    frames = Clip.open("c").frames
    assert np.array_equal(frames, Clip.open("whole").frames[:4])
    before_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert zs2("--replay", "c", *more, "--stream", "--out", "short", "--no-sheet").status == 130
    assert (text(here / "short.json")["frames"], text(here / "short.json")["part_of"]) == (2, 9)
    succeeded(zs2("--replay", "short", *more, "--out", "short-again.webp"))
    assert np.array_equal(Clip.open("short-again.webp").frames, frames[:2])
    if noise == "latents":
        failed(zs2("--replay", "c", "--latents", "beginning.safetensors"), "(4, ", "expected torch.float32 (9, ")


@posix
@pytest.mark.parametrize("is_old", [False, True])
def test_a_stream_goes_on_after_the_beginning_of_a_loop(zs2, here, before_step, is_old):
    """is_old: its beginning was kept before there was `part_of`."""
    line = (*LINE, "--frames", "7", "--noise", "loop", "--no-sheet")
    before_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert zs2(*line, "--stream", "--resumable", "--out", "c").status == 130
    settings = text(here / "c.json")
    assert (settings["frames"], settings.pop("part_of")) == (4, 7)
    for file in (here / "c").iterdir() if is_old else ():
        file.write_bytes(with_png_text(file.read_bytes(), json.dumps(settings)))
    succeeded(zs2(*line, "--stream", "--resume", "--out", "c"))
    succeeded(zs2(*line, "--out", "whole"))
    assert files(here / "c") == files(here / "whole")


def test_what_is_said_of_a_beginning():
    """Only where its frames depend on the number of frames of the whole, or can't be known not to."""
    settings = {"frames": 9, "prompt": "rose", "latents": None}
    for noise in NOISE_MODELS:
        short = shortened(settings | {"noise": noise}, 4)
        assert short == settings | {"noise": noise, "frames": 4} | ({"part_of": 9} if noise == "loop" else {})
    assert shortened(settings | {"noise": "of an extension"}, 4)["part_of"] == 9
    assert shortened(settings | {"noise": None, "latents": "ab"}, 4)["part_of"] == 9
    assert shortened(settings | {"noise": "loop", "part_of": 20}, 4)["part_of"] == 20


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_clip_is_finished_ends_the_command_after_it(zs2, here, monkeypatch, number):
    """Of several clips, the next one does not begin."""

    def signalled(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return finish(*args, **options)

    monkeypatch.setattr("zs2.video.streaming.finish", signalled)
    result = zs2(*LINE, "--seed", "0,1", "--stream", "--out", "c", "--no-sheet")
    assert (result.status, result.written) == (128 + number, ["c-s0", "c-s0.json"])
    assert "frames are kept" not in result.err
    assert result.err.splitlines()[-1].endswith("what was finished before is kept")
    assert sorted(file.name for file in here.iterdir()) == ["c-s0", "c-s0.json"]
    assert text(here / "c-s0.json")["frames"] == 5


def test_too_little_memory_ends_a_stream_with_the_frames_that_are_there(zs2, here, before_step):
    """As torch says it on a CPU."""
    before_step(6, raises(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")))
    result = zs2(*LINE, "--frames", "50", "--steps", "2", "--stream", "--out", "c", "--no-sheet")
    kept, error = result.err.splitlines()[-2:]
    assert kept == "zs2: the first 4 of 50 frames are kept: c"
    assert error.startswith("zs2: error: out of memory")
    assert (result.status, result.written) == (1, ["c", "c.json"])
    assert text(here / "c.json")["frames"] == 4


def noise(count: int, end: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
    """Random frames, and then what ends them."""
    chance = np.random.default_rng(0)
    for _ in range(count):
        yield chance.integers(0, 256, (32, 32, 3), np.uint8)
    end()


def raises(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


def is_signalled(number: int) -> Callable[[], None]:
    def end() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    return end


def a_full_disk() -> None:
    """The next PNG file is written to a device that has no space, by the kernel's word."""
    Path("c.part/.zs2-frame").symlink_to("/dev/full")


ENDS = {  # what ends a stream, and what then is raised
    "Ctrl-C": (is_signalled(signal.SIGINT), KeyboardInterrupt),
    "SIGTERM": (is_signalled(signal.SIGTERM), Stopped),
    "SIGHUP": (is_signalled(signal.SIGHUP), Stopped),
    "memory": (raises(MemoryError()), MemoryError),
    "torch's memory": (raises(RuntimeError("not enough memory: you tried to allocate")), RuntimeError),
    "a full disk": (raises(OSError(errno.ENOSPC, "No space left on device")), OSError),
    "NaN": (raises(FloatingPointError("NaN")), FloatingPointError),
}


@posix
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_however_a_stream_ends_its_frames_are_a_whole_clip(here, name, end):
    """Its frames, settings and sheet are those of a clip of so many frames."""
    if name == "c.mp4":
        pytest.importorskip("av")
    ending, error = ENDS[end]
    settings = {"prompt": ["a", "b", "c", "d", "e"], "frames": 9, "fps": 8}
    with signals_stop():
        saved = save(noise(3, ending), 9, Output.at(Path(name)), Encoding(), lambda: settings, sheet=True)
    assert type(saved.ended) is error
    assert (saved.count, saved.kept) == (3, Path(name))
    assert not list(here.glob("*.part"))
    want = {"prompt": ["a", "b", "c"], "frames": 3, "fps": 8}
    assert read_settings(here / name) == text(saved.files[-1]) == want
    assert sorted(file.name for file in here.iterdir()) == [name, f"{name}.json", f"{name}.sheet.png"]
    Clip(np.stack([*noise(3)]), 8, want).save(f"want/{name}")
    if name == "c":
        assert files(here / "c") == files(here / "want" / "c")
    else:
        assert np.array_equal(decoded(here / name), decoded(here / "want" / name))


def decoded(file: Path) -> np.ndarray:
    """The frames that PyAV decodes from an MP4."""
    import av

    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_in_the_middle_of_a_frame(here):
    """The frames before it are a clip."""

    def frames():
        yield from noise(3)
        a_full_disk()
        yield from noise(3)

    saved = save(frames(), 6, Output.at(Path("c")), Encoding(), lambda: {"prompt": "", "frames": 6}, sheet=True)
    assert isinstance(saved.ended, OSError)
    assert saved.ended.errno == errno.ENOSPC
    assert saved.count == len(files(here / "c")) == 3
    assert [*map(str, saved.files)] == ["c", "c.sheet.png", "c.json"]
    assert not (here / "c.part").exists()


@posix
def test_a_file_that_can_not_grow_keeps_the_frames_before(here):
    """`ulimit -f`, which stops an MP4 in the middle of a frame, and its sheet."""
    pytest.importorskip("av")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.warns(UserWarning, match=r"c.mp4.sheet.png can't be written \(File too large\)"):
            saved = save(
                noise(60), 60, Output.at(Path("c.mp4")), Encoding(), lambda: {"prompt": "", "frames": 60}, sheet=True
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(saved.ended, OSError)
    assert 5 < saved.count < 60
    assert read_settings(here / "c.mp4")["frames"] == saved.count == len(decoded(here / "c.mp4"))
    assert sorted(files(here)) == ["c.mp4", "c.mp4.json"]


def test_a_stream_without_a_frame_leaves_nothing(here):
    for name in ("c", "c.mp4"):
        with pytest.raises(OSError, match="no space left"):
            save(
                noise(0, raises(OSError("no space left"))), 5, Output.at(Path(name)), Encoding(), lambda: {}, sheet=True
            )
        assert list(here.iterdir()) == []


def test_settings_are_asked_for_when_the_first_frame_is_there(here):
    order = []

    def settings():
        order.append("settings")
        return {"prompt": "", "frames": 2}

    frames = (order.append("frame") or frame for frame in noise(2))
    assert save(frames, 2, Output.at(Path("c")), Encoding(), settings, sheet=False).ended is None
    assert order == ["frame", "settings", "frame"]


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
    failed(zs2("--frames", "1", "--size", "65536x65536"), "not even one frame at a time fits", "--stream")
    assert files(here) == {}


@pytest.mark.long
def test_the_plan_is_near_the_peak():
    """Of a whole process; benchmarks/length.py does this at Stable Diffusion 1.5's size too.

    With one arena of glibc's allocator: on a busy machine it adds more, and up to a quarter of the plan.
    """
    words = [sys.executable, str(ROOT / "benchmarks" / "length.py"), "one", "default", "16"]
    more = environment() | {"MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(words, env=more, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads(ended.stdout)
    assert measured["plan"] == pytest.approx(measured["peak"], rel=0.15)


def test_what_fits_is_the_largest_chunk_that_does():
    def needs(chunk):
        return MemoryPlan(
            process=0,
            weights=100,
            latents=0,
            frames=0,
            text=0,
            states=0,
            deep=0,
            control=0,
            flow=0,
            unet=10 * chunk,
            decoding=5,
        )

    assert fitting(needs, 8, None, asked=True) == 8
    assert fitting(needs, 8, 180, asked=True) == 8
    assert fitting(needs, 8, 170, asked=False) == 5  # nine tenths of what is free
    with pytest.raises(InputError, match=r"a chunk of 8 frames needs .*: 5 would fit"):
        fitting(needs, 8, 170, asked=True)
    with pytest.raises(InputError, match="not even one frame"):
        fitting(needs, 8, 120, asked=False)
