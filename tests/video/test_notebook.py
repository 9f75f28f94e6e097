"""What a notebook shows of a clip, and the progress of work there and in a log."""

from __future__ import annotations

import base64
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from zs2.system import progress as module
from zs2.system.progress import in_notebook, progress, progress_if
from zs2.video import clip as clips
from zs2.video.clip import Clip


def shown(clip: Clip) -> tuple[Image.Image, int]:
    """The picture of a clip in a notebook, and the width at which it is shown."""
    data, metadata = clip._repr_mimebundle_()
    assert data["text/plain"] == repr(clip)
    return Image.open(io.BytesIO(base64.b64decode(data["image/png"]))), metadata["image/png"]["width"]


@pytest.mark.parametrize(("side", "width"), [(16, 256), (64, 256), (100, 200), (256, 256), (300, 300)])
def test_a_clip_shows_itself_moving(side: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, side, 3), dtype=np.uint8)
    picture, at = shown(Clip(frames, 4, {"prompt": "secret"}))
    assert (picture.n_frames, at) == (3, width)
    for index, frame in enumerate(frames):
        picture.seek(index)
        assert np.array_equal(np.asarray(picture.convert("RGB")), frame)
        assert picture.info["duration"] == 250
    assert not {"zs2", "parameters"} & picture.info.keys()


def test_a_long_clip_shows_its_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    monkeypatch.setattr(clips, "SHOWN_BYTES", frames.nbytes - 1)
    picture, _ = shown(Clip(frames))
    assert not getattr(picture, "is_animated", False)
    assert picture.size == Clip(frames).sheet().size


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython as the kernel of a notebook has it; tests/test_tour.py has a real one."""
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


@pytest.mark.usefixtures("notebook")
def test_a_notebook_has_a_bar_on_its_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_notebook()
    assert list(progress_if(None, "ab", 2, "sampling")) == ["a", "b"]
    out, err = capsys.readouterr()
    assert "\rsampling ████████████░░░░░░░░░░░░ 1/2, " in out
    assert out.rstrip().endswith("s")
    assert err == ""
    assert list(progress_if(False, "ab", 2, "sampling")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace()])
def test_ipython_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not in_notebook()


def test_python_alone_is_silent_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert list(progress_if(None, "ab", 2, "sampling")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
    assert list(progress_if(True, "ab", 2, "sampling")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("sampling 2/2 in ")


@pytest.mark.parametrize(
    ("total", "seconds", "lines"),
    [
        (100, 5.0, ["10/100", "20/100", "30/100", "40/100", "50/100", "60/100", "70/100", "80/100", "90/100"]),
        (25, 7.5, ["3/25", "5/25", "8/25", "10/25", "13/25", "15/25", "18/25", "20/25", "23/25"]),
        (4, 60.0, ["1/4", "2/4", "3/4"]),
        (100, 0.01, []),  # a second in all
    ],
)
def test_a_log_has_a_line_a_tenth_of_the_way(
    monkeypatch: pytest.MonkeyPatch, total: int, seconds: float, lines: list[str]
) -> None:
    now = iter(np.arange(0, 10**4) * seconds)
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    out = io.StringIO()
    list(progress(range(total), total, "sampling", out))
    *between, last = out.getvalue().splitlines()
    assert [line.split()[1].rstrip(",") for line in between] == lines
    assert last.startswith(f"sampling {total}/{total} in ")
