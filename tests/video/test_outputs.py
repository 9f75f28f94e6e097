"""Where clips go: nothing that is there is replaced unless asked for, and no two clips take one name."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zs2.errors import InputError
from zs2.system import atomic
from zs2.system.own_files import check_own
from zs2.video.clip import Clip, read_settings
from zs2.video.outputs import Output, check_outputs, free_name, next_number, taken

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
ENDINGS = [".gif", ".webp", ".png", ".apng", ".mp4", ""]


def clip(**settings: object) -> Clip:
    return Clip(FRAMES, settings=settings)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def path(folder: Path, ending: str) -> Path:
    if ending == ".mp4":
        pytest.importorskip("av")
    return folder / f"panda{ending}"


# --- what is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("there", ["", ".json", ".sheet.png"])
def test_nothing_that_is_there_is_replaced_unless_asked_for(tmp_path, ending, there):
    """A clip of zs2, a stranger's file, and a file that only goes with the clip."""
    target = path(tmp_path, ending)
    stranger = target.with_name(target.name + there)
    if there or ending:
        stranger.write_bytes(b"mine")
    else:
        clip(old=True).save(target, json=False)
    before = tree(tmp_path)
    for sheet in (False, True):
        with pytest.raises(InputError, match=r"is there: expected a new name, such as .*panda-2.*overwrite=True"):
            clip().save(target, sheet=sheet)
        assert tree(tmp_path) == before
    clip(new=True).save(target, sheet=True, overwrite=True)
    for file in (target, *(target.with_name(target.name + end) for end in (".json", ".sheet.png"))):
        assert read_settings(file) == {"new": True}


def test_clips_of_two_formats_share_no_file(tmp_path):
    """Of one name: each JSON and sheet describes its own clip."""
    for number, ending in enumerate(ENDINGS[:4]):
        clip(number=number).save(tmp_path / f"panda{ending}", sheet=True)
    clip(number=4).save(tmp_path / "panda", sheet=True)
    assert len(list(tmp_path.iterdir())) == 15
    for number, ending in enumerate([*ENDINGS[:4], ""]):
        for end in ("", ".json", ".sheet.png"):
            assert read_settings(tmp_path / f"panda{ending}{end}") == {"number": number}


@pytest.mark.parametrize("ending", [".gif", ""])
def test_a_replaced_clip_leaves_no_file_that_describes_it(tmp_path, ending):
    target = path(tmp_path, ending)
    clip(old=True).save(target, sheet=True)
    clip(new=True).save(target, json=False, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [target.name]


def test_a_strangers_file_that_goes_with_a_replaced_clip_stays(tmp_path):
    clip(old=True).save(tmp_path / "panda.gif", json=False)
    (tmp_path / "panda.gif.json").write_text('{"scripts": {}}')
    Image.new("RGB", (4, 4)).save(tmp_path / "panda.gif.sheet.png")
    before = tree(tmp_path)
    clip(new=True).save(tmp_path / "panda.gif", json=False, overwrite=True)
    after = tree(tmp_path)
    assert after.pop("panda.gif") != before.pop("panda.gif")
    assert after == before


def test_a_folder_of_pictures_with_a_description_is_no_clip(tmp_path):
    """As cameras write them."""
    (tmp_path / "panda").mkdir()
    exif = Image.Exif()
    exif[0x010E] = "{}"
    Image.new("RGB", (4, 4)).save(tmp_path / "panda" / "0000.png", exif=exif)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="holds other things"):
        clip().save(tmp_path / "panda", overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "asked", "free"),
    [
        (["panda.gif"], "panda.gif", "panda-2.gif"),
        (["panda.gif", "panda-2.gif"], "panda.gif", "panda-3.gif"),
        (["panda-2.gif"], "panda-2.gif", "panda-3.gif"),
        (["panda.gif", "panda-2.webp", "panda-7.gif.json"], "panda.gif", "panda-8.gif"),
        (["panda-9.mp4.part"], "panda.mp4", "panda-10.mp4"),
        (["panda-cub-4.gif", "xpanda-5.gif", "panda-٦.gif"], "panda.gif", "panda-2.gif"),
        (["c-s0.gif", "c-s1.gif"], "c.gif", "c-2.gif"),
        (["a.b-3.gif"], "a.b.gif", "a.b-4.gif"),
        (["panda"], "panda", "panda-2"),
    ],
)
def test_the_next_free_name(tmp_path, names, asked, free):
    for name in names:
        (tmp_path / name).touch()
    assert free_name(tmp_path / asked) == tmp_path / free


@pytest.mark.parametrize(
    ("names", "number"),
    [([], 1), (["00007-s3.gif"], 8), (["99999.gif", "100000.gif.json"], 100001), (["00003.mp4.part", "x00009"], 4)],
)
def test_the_next_number(tmp_path, names, number):
    for name in names:
        (tmp_path / name).touch()
    assert next_number(tmp_path) == number
    assert next_number(tmp_path / "nowhere") == 1


# --- a name that is taken while a clip is made ------------------------------------------------------------------------


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no links here")


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def any_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has hard links, and one that has none."""
    if not request.param:
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.parametrize("ending", [".webp", ""])
@pytest.mark.usefixtures("any_file_system")
def test_a_clip_whose_name_is_taken_meanwhile_gets_the_next_one(tmp_path, ending):
    target = path(tmp_path, ending)
    output = Output.at(target, instead=True)
    clip(other=True).save(target, sheet=True)
    before = tree(tmp_path)
    other = target.with_name(f"panda-2{ending}")
    written = clip(this=True).write(output, sheet=True)
    assert written[0] == other
    assert all(read_settings(file) == {"this": True} for file in written)
    assert {name: content for name, content in tree(tmp_path).items() if "-2" not in name} == before


@pytest.mark.parametrize("ending", [".webp", ""])
@pytest.mark.usefixtures("any_file_system")
def test_a_name_that_is_taken_in_the_last_moment_is_not_replaced(tmp_path, ending):
    """Between the last look and the renaming, by a program that knows of no locks."""
    target = path(tmp_path, ending)
    others, (other,) = [target, tmp_path / f"b{ending}"], clip(other=True).save(tmp_path / f"c{ending}", json=False)

    def name() -> Path:
        chosen = others.pop(0)
        if chosen == target:
            other.rename(target)
        return chosen

    written = clip(this=True).write(Output(target, name), sheet=False)
    assert [file.name for file in written] == [f"b{ending}", f"b{ending}.json"]
    assert read_settings(target) == {"other": True}
    assert {file.name for file in tmp_path.iterdir()} == {target.name, *(file.name for file in written)}


@pytest.mark.parametrize("step", ["link", "unlink", "rename"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_renaming_leaves_whole_files(tmp_path, monkeypatch, step, after):
    """Of new names: a clip without its settings at worst."""
    function = getattr(os, step)

    def interrupted(*arguments: object, **options: object) -> None:
        if options:  # as the cleaning up calls it
            return function(*arguments, **options)
        if after:
            function(*arguments)
        raise KeyboardInterrupt

    target = tmp_path / ("panda" if step == "rename" else "panda.webp")
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(atomic.os, step, interrupted)
        clip(frames=2).save(target)
    assert {file.name for file in tmp_path.iterdir()} <= {target.name}
    if target.exists():
        assert np.array_equal(Clip.open(target).frames, FRAMES)


def save_numbered(folder: str, count: int, barrier: object) -> None:
    """As several commands without --out do, each with `count` clips."""
    os.chdir(folder)
    barrier.wait()  # type: ignore[attr-defined]
    for seed in range(count):
        name = lambda: Path(f"{next_number(Path()):05}.png")  # noqa: E731
        clip(process=os.getpid(), seed=seed).write(Output(Path("00001.png"), name), sheet=False)


def test_processes_that_write_at_once_lose_no_clip(tmp_path):
    """Each clip has a number of its own, and its settings beside it."""
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=save_numbered, args=(str(tmp_path), 10, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = [f"{number:05}.png" for number in range(1, 41)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names, *(f"{name}.json" for name in names)])
    made = [read_settings(tmp_path / name) for name in names]
    assert len({(one["process"], one["seed"]) for one in made}) == 40
    assert [json.loads((tmp_path / f"{name}.json").read_text()) for name in names] == made


# --- many clips -------------------------------------------------------------------------------------------------------


def test_many_outputs_are_checked_by_one_look_at_their_folder(tmp_path, monkeypatch):
    """Their number decides nothing but the time: no file is made, or asked for, for each."""
    looked: list[str] = []
    for name in ("listdir", "lstat", "stat", "open", "mkdir"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _f=function, _n=name, **k: (looked.append(_n), _f(*a, **k))[1])
    for count in (10, 10_000):
        looked.clear()
        paths = [tmp_path / f"c-p{number}.gif" for number in range(count)]
        assert check_outputs(paths, 8, tmp_path / "c.gif") == []
        assert len(looked) < 40
    assert list(tmp_path.iterdir()) == []


def test_of_many_outputs_the_first_one_that_is_there_is_named(tmp_path):
    paths = [tmp_path / f"c-p{number}.gif" for number in range(9)]
    for number in (3, 5, 7):
        clip().save(paths[number])
    there = check_outputs(paths, 8, tmp_path / "c.gif")
    assert there == [paths[3], paths[5], paths[7]]
    error = str(taken(there, tmp_path / "c.gif"))
    assert error.startswith(f"{paths[3]} is there, and those of 2 other clips: ")
    assert f"such as {tmp_path / 'c-2.gif'}" in error


# --- files that a command writes anew ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "overwrite", "words"),
    [
        (None, False, ""),
        (b"the mark, and more", False, ""),
        (b"mine", True, ""),
        (b"mine", False, "this command did not write it: expected a new name, or --overwrite"),
        (b"mine", None, "this command did not write it: expected a new name$"),
        (b"", False, "did not write it"),
        (b" " * 5000 + b"the mark", False, "did not write it"),
        ("folder", True, "did not write it: expected a new name$"),
    ],
)
def test_a_command_replaces_its_own_files(tmp_path, content, overwrite, words):
    file = tmp_path / "report.md"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    expected = pytest.raises(InputError, match=words) if words else contextlib.nullcontext()
    with expected:
        check_own([(file, ("another", "the mark"))], overwrite=overwrite)
