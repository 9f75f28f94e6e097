"""What dead processes leave: playable while they live, then named, and cleared or made a clip by the next run there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from zs2.errors import InputError
from zs2.system.atomic import remove_unfinished, write_all
from zs2.video.clip import Clip, read_settings
from zs2.video.encoding import Encoding
from zs2.video.leftovers import clear_leftovers
from zs2.video.outputs import Output
from zs2.video.streaming import save
from zs2.video.unfinished import Unfinished

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes, and needs locks")
SETTINGS = {"prompt": "", "frames": 9, "fps": 8}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames(count: int) -> Iterator[np.ndarray]:
    chance = np.random.default_rng(0)
    return (chance.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count))


def killed(work: Callable[[], object]) -> None:
    """Do some work in a process that kills itself."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(name: str, count: int = 4) -> None:
    """A process that is killed when so many frames of a stream are written."""

    def stream() -> Iterator[np.ndarray]:
        yield from frames(count)
        kill_this()

    if name.endswith(".mp4"):
        pytest.importorskip("av")
    killed(lambda: save(stream(), 9, Output.at(Path(name)), Encoding(), lambda: SETTINGS, sheet=True))


def cleared(*targets: str, **options: bool) -> list[str]:
    """What a run says that is about to write these clips."""
    return clear_leftovers([Path(target) for target in targets], **options)


@pytest.mark.parametrize(("name", "count"), [("c.mp4", 3), ("c", 4)])
def test_a_killed_stream_leaves_its_frames_which_the_next_run_makes_a_clip(here, name, count):
    """An MP4 is playable up to the frame before its last."""
    leave(name)
    assert [file.name for file in here.iterdir()] == [f"{name}.part"]
    playable = here / f"{name}.part" / name
    assert read_settings(playable) == SETTINGS
    if name == "c":
        assert np.array_equal(Clip.open(playable).frames, np.stack([*frames(4)]))
    else:
        import av

        with av.open(str(playable)) as container:
            assert sum(1 for _ in container.decode(video=0)) == count
    (line,) = cleared("other.gif")
    assert line == f"{name}.part, which a killed process left, is now {name}: {count} frames"
    assert sorted(file.name for file in here.iterdir()) == [name, f"{name}.json"]
    assert read_settings(here / name) == read_settings(here / f"{name}.json") == SETTINGS | {"frames": count}
    if name == "c":
        assert np.array_equal(Clip.open(here / "c").frames, np.stack([*frames(4)]))
    assert cleared("other.gif", name) == []


@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_the_same_clip_begins_anew(here, name):
    leave(name)
    (line,) = cleared(name)
    count = 3 if name == "c.mp4" else 4
    assert line == f"removed {name}.part, which a killed process left, with the first {count} frames of a clip"
    assert list(here.iterdir()) == []


def test_a_stream_that_was_killed_before_a_frame_leaves_nothing(here):
    leave("c", 0)
    assert cleared("d") == ["removed c.part, which a killed process left, without frames"]
    assert list(here.iterdir()) == []


def test_frames_never_replace_a_clip_that_is_there(here):
    leave("c")
    Clip(np.stack([*frames(2)]), 8, SETTINGS | {"frames": 2}).save("c")
    (line,) = cleared("d")
    assert line == "c.part, which a killed process left, has 4 frames in c.part/c: move or delete it"
    assert len([*here.glob("c/*")]) == 2
    assert len([*here.glob("c.part/c/*")]) == 4


def test_a_killed_save_leaves_what_the_next_run_removes(here):
    killed(lambda: write_all({Path("c.gif"): lambda target: (target.write_text("half"), kill_this())}))
    (left,) = here.iterdir()
    assert left.match(".zs2-*.part")
    assert cleared("d.gif") == [f"removed {left.name}, which a killed process left"]
    assert list(here.iterdir()) == []


def test_what_a_living_process_writes_is_left_alone(here):
    def writing(target: Path) -> None:
        assert remove_unfinished(here) == cleared("d.gif") == []
        target.write_text("whole")

    write_all({here / "c.gif": writing})
    assert (here / "c.gif").read_text() == "whole"
    with Unfinished(here / "c") as work:
        (work.folder / ".zs2-spare").write_text("")
        assert cleared("d.gif") == []
        with pytest.raises(InputError, match=r"another process is writing c, in c.part: choose another"):
            cleared("c")
        with pytest.raises(InputError, match=r"c.part: another process is writing this clip"):
            save(frames(2), 2, Output.at(here / "c"), Encoding(), lambda: SETTINGS, sheet=False)
        assert {file.name for file in work.folder.iterdir()} == {".zs2-lock", ".zs2-spare"}


@pytest.mark.parametrize("name", ["whole", "lock", "frame", "spare", "ready", "old", "json"])
def test_a_clip_may_have_any_name(here, name):
    leave(name)
    (line,) = cleared("d.gif")
    assert line == f"{name}.part, which a killed process left, is now {name}: 4 frames"
    assert (
        save(frames(9), 9, Output.at(here / name, overwrite=True), Encoding(), lambda: SETTINGS, sheet=True).ended
        is None
    )
    assert len([*here.iterdir()]) == 3


@pytest.mark.parametrize("name", ["notes.txt", ".zs2-lock"])
def test_a_folder_of_someone_else_is_left_alone(here, name):
    (here / "c.part" / "sub").mkdir(parents=True)
    (here / "c.part" / name).write_text("mine")
    assert cleared("d.gif") == []
    with pytest.raises(InputError, match=r"c.part is in the way, and not an unfinished clip: choose another --out"):
        cleared("c")
    assert {file.name for file in (here / "c.part").iterdir()} == {"sub", name}
