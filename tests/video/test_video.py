"""Clips as files: what is written is read back, by Pillow, PyAV and zs2; errors, interruptions, metadata, sheets."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import TESTS, Fixture, benchmark
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zs2.errors import InputError
from zs2.system.json_files import read_json
from zs2.video import formats, metadata
from zs2.video.clip import Clip, read_settings
from zs2.video.encoding import Encoding
from zs2.video.outputs import check_output
from zs2.video.palette import _halves, _moments
from zs2.video.reading import InputClip

SETTINGS = {
    "prompt": 'a "red" äpple 🍎\n\u0000 ☃',
    "lam": 0.01,
    "seed": 0,
    "mu": None,
    "size": [64, 64],
    "b": {"z": 1, "a": 2},
}
IMAGES = ["gif", "webp", "png", "apng"]
FORMATS = [*IMAGES, "mp4", ""]
LOSSLESS = ["webp", "png", "apng", ""]


def moving(count: int = 8, size: int = 64) -> np.ndarray:
    """A smooth ball that moves over a smooth sky: uint8 (F, H, W, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    frames = []
    for index in range(count):
        ball = np.clip(1 - np.hypot(x - 0.3 - 0.4 * index / count, y - 0.5) / 0.25, 0, 1)[..., None]
        sky = np.stack([0.4 + 0.4 * y, 0.6 + 0.2 * y, 0.9 - 0.1 * x], -1)
        frames.append(sky * (1 - ball) + ball * np.array([0.9, 0.2, 0.1]))
    return (np.stack(frames) * 255).round().astype(np.uint8)


def name(ending: str, stem: str = "clip") -> str:
    """The file name of a format; the video extra is needed for MP4 only."""
    if ending == "mp4":
        pytest.importorskip("av")
    return f"{stem}.{ending}" if ending else stem


def decoded(path: Path) -> tuple[np.ndarray, list[float]]:
    """The frames of a file or a folder, and how long each lasts in ms."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())]), []
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            images = list(container.decode(video=0))
            rate = container.streams.video[0].average_rate
        return np.stack([image.to_ndarray(format="rgb24") for image in images]), [float(1000 / rate)] * len(images)
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))  # loads the frame, and with it its duration
            durations.append(image.info.get("duration", 0))
    return np.stack(frames), durations


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_frames_back(tmp_path, ending):
    frames = moving()
    path = tmp_path / "new" / "folders" / name(ending)
    assert Clip(frames, fps=8, settings=SETTINGS).save(path, sheet=True) == [
        path,
        path.with_name(path.name + ".sheet.png"),
        path.with_name(path.name + ".json"),
    ]
    got, _ = decoded(path)
    assert got.shape == frames.shape
    limit = {"gif": 2.0, "mp4": 3.0}.get(ending, 0.0)
    assert np.abs(got.astype(float) - frames).mean() <= limit
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(
        path.name + end for end in ("", ".json", ".sheet.png")
    )


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("count", [1, 8])
def test_settings_come_back_from_every_file(tmp_path, ending, count):
    written = Clip(moving(count), settings=SETTINGS).save(tmp_path / name(ending), sheet=True)
    for path in written:
        assert read_settings(path) == SETTINGS
    if not ending:
        assert all(read_settings(frame) == SETTINGS for frame in written[0].iterdir())


@pytest.mark.parametrize("ending", FORMATS)
def test_long_and_empty_settings_come_back(tmp_path, ending):
    long = {"prompt": "é" * 20_000}
    Clip(moving(2), settings=long).save(tmp_path / name(ending, "long"))
    Clip(moving(2)).save(tmp_path / name(ending, "empty"))
    assert read_settings(tmp_path / name(ending, "long")) == long
    assert read_settings(tmp_path / name(ending, "empty")) == {}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 48), (2, 2, 2)])
def test_one_frame_and_other_shapes(tmp_path, ending, shape):
    frames = np.full((*shape, 3), 90, np.uint8)
    frames[0, 0, 0] = 200
    path = Clip(frames).save(tmp_path / name(ending), json=False)[0]
    got, _ = decoded(path)
    assert got.shape[1:] == frames.shape[1:]
    assert got[0].mean() == pytest.approx(frames[0].mean(), abs=4)


@pytest.mark.parametrize("ending", FORMATS)
def test_same_clip_same_bytes(tmp_path, ending):
    for folder in ("a", "b"):
        Clip(moving(4), settings=SETTINGS).save(tmp_path / folder / name(ending), sheet=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "mp4"])
@pytest.mark.parametrize("fps", [1, 7, 8, 12, 24, 30, 50, 60])
def test_frames_last_as_long_as_the_rate_says(tmp_path, ending, fps):
    if ending == "gif" and fps > 50:
        pytest.skip("refused: see test_what_can_not_be_written")
    frames = moving(9, 16)
    _, durations = decoded(Clip(frames, fps=fps).save(tmp_path / name(ending))[0])
    step = 10 if ending == "gif" else 1
    assert len(durations) == 9
    for index, start in enumerate(itertools.accumulate(durations, initial=0)):
        assert abs(start - 1000 * index / fps) <= step / 2 + 1e-6
    assert ending != "gif" or min(durations) >= 20


def psnr(frames, others):
    return -10 * np.log10(((frames.astype(float) - others) ** 2).mean() / 255**2)


def stored_pictures(side):
    """Three pictures of the default checkpoint as frames of this size."""
    fixture = Fixture("checkpoint_images")
    pictures = (Image.fromarray(fixture[f"{index}/picture"].numpy()) for index in range(3))
    return np.stack([np.asarray(x.resize((side, side), Image.Resampling.BICUBIC)) for x in pictures])


def test_a_gif_is_close(tmp_path):
    """Pictures that have many colours, as they are and enlarged, and one of the checkpoint's own size."""
    own = Fixture("checkpoint_images")["4/picture"].numpy()[None]
    for name, frames, least in (("64", stored_pictures(64), 35), ("256", stored_pictures(256), 34), ("own", own, 41)):
        got, _ = decoded(Clip(frames).save(tmp_path / f"{name}.gif", json=False)[0])
        for frame, shown in zip(frames, got, strict=True):
            assert psnr(shown, frame) > least


def test_a_gif_is_closer_than_ffmpegs(tmp_path, monkeypatch):
    """By 1 dB in each frame."""
    pytest.importorskip("av")
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    write = benchmark("gif").with_ffmpeg
    for side in (64, 256):
        frames = stored_pictures(side)
        got, _ = decoded(Clip(frames).save(tmp_path / f"{side}.gif", json=False)[0])
        write(frames, tmp_path / "ffmpeg.gif")
        theirs, _ = decoded(tmp_path / "ffmpeg.gif")
        for frame, ours, other in zip(frames, got, theirs, strict=True):
            assert psnr(ours, frame) > psnr(other, frame) + 1


def test_a_gif_of_a_plain_frame_has_no_bands(tmp_path):
    """A faint slope has more than 256 colours in a few cells of a coarse histogram."""
    slope = np.linspace(0, 20, 256)
    frame = np.stack(np.broadcast_arrays(slope[:, None], slope, (slope[:, None] + slope) / 2), axis=2)
    frame = (100 + frame).round().astype(np.uint8)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 256
    got, _ = decoded(Clip(frame[None]).save(tmp_path / "clip.gif", json=False)[0])
    assert np.abs(got.astype(int) - frame).max() <= 1


@pytest.mark.parametrize("colours", [1, 2, 256])
def test_a_gif_of_few_colours_is_exact(tmp_path, colours):
    palette = np.random.default_rng(colours).integers(0, 256, (colours, 3), dtype=np.uint8)
    index = np.random.default_rng(0).integers(0, colours, (2, 40, 40))
    frames = palette[index]
    got, _ = decoded(Clip(frames, fps=8).save(tmp_path / "clip.gif")[0])
    assert np.array_equal(np.broadcast_to(got, frames.shape), frames)


def test_a_cluster_of_nearly_one_colour_has_two_halves():
    """One odd pixel in 512²: in float32 the mean would be the other colour, and a half empty."""
    points, weights = np.array([[200, 0, 0], [201, 0, 0]], np.float32), np.array([1.0, 262143.0])
    assert [len(part) for part, _ in _halves(points, weights, *_moments(points, weights))] == [1, 1]


def test_gif_at_eight_fps_alternates(tmp_path):
    _, durations = decoded(Clip(moving(8, 16), fps=8).save(tmp_path / "clip.gif")[0])
    assert durations == [130, 120] * 4


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_equal_frames_keep_their_time(tmp_path, ending):
    frames = moving(3, 16)[[0, 0, 0, 1, 1, 2]]
    _, durations = decoded(Clip(frames, fps=8).save(tmp_path / name(ending))[0])
    assert sum(durations) == 750
    _, durations = decoded(Clip(frames[:3], fps=8).save(tmp_path / name(ending, "still"))[0])
    assert sum(durations) == (380 if ending == "gif" else 0)  # the others make a still picture, which has no time


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_equal_frames_that_last_longer_than_one_picture_can(tmp_path, ending):
    """A GIF has 16 bits for hundredths of a second, an animated PNG for ms. What is shown, and when, stays."""
    different = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for order in ([0] * 70 + [1, 2] + [1] * 140, [0] * 140):
        clip = Clip(different[order], "0.1", {"fps": "1/10", "frames": len(order)})
        path = clip.save(tmp_path / name(ending, f"{len(order)}"))[0]
        if ending != "gif":
            assert np.array_equal(Clip.open(path).frames, clip.frames)
        if ending == "gif" or len(set(order)) > 1:
            pictures, durations = decoded(path)
            assert sum(durations) == 10_000 * len(order)
            assert len(durations) < len(order) / 2
            assert np.array_equal(np.repeat(pictures, [round(time / 10_000) for time in durations], 0), clip.frames)


def test_a_frame_that_lasts_longer_than_an_old_pillow_writes(tmp_path, monkeypatch):
    for version, is_written in (("10.3.0", False), ("12.0.0", False), ("12.1.1", True), ("13.0.0", True)):
        monkeypatch.setattr("PIL.__version__", version)
        with contextlib.nullcontext() if is_written else pytest.raises(InputError, match="no picture of more than 65"):
            check_output(tmp_path / "clip.png", Fraction(1, 66))
        check_output(tmp_path / "clip.png", Fraction(1, 65))
        check_output(tmp_path / "clip.webp", Fraction(1, 100))


@pytest.mark.parametrize("ending", IMAGES)
def test_images_loop_forever(tmp_path, ending):
    with Image.open(Clip(moving(3)).save(tmp_path / name(ending))[0]) as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0


def test_mp4_plays_everywhere(tmp_path):
    av = pytest.importorskip("av")
    path = Clip(moving(10), fps=24).save(tmp_path / "clip.mp4")[0]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(10 / 24, abs=1e-3)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before all is loaded


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 255, 255), 235), ((0, 0, 0), 16), ((0, 255, 0), 173)], ids=["white", "black", "green"]
)
def test_mp4_is_in_the_colours_that_it_says(tmp_path, colour, luma):
    av = pytest.importorskip("av")
    path = Clip(np.full((2, 32, 32, 3), colour, np.uint8)).save(tmp_path / "clip.mp4")[0]
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited range
    assert abs(int(frame.to_ndarray()[0, 0]) - luma) <= 1  # green: 145 in BT.601


def test_gif_keeps_a_still_background_still(tmp_path):
    frames = np.full((4, 64, 64, 3), (140, 200, 240), np.uint8)
    for index in range(4):
        frames[index, 20:40, 10 * index : 10 * index + 12] = (200, 30 * index, 20)
    got, _ = decoded(Clip(frames).save(tmp_path / "clip.gif")[0])
    assert np.array_equal(got, frames)


def test_json_is_the_settings(tmp_path):
    path = Clip(moving(1), settings=SETTINGS).save(tmp_path / "clip.gif")[1]
    text = path.read_bytes().decode("utf-8")
    assert text == json.dumps(SETTINGS, indent=2, ensure_ascii=False) + "\n"
    assert list(json.loads(text)) == list(SETTINGS)
    assert "äpple 🍎" in text
    assert Clip(moving(1)).save(tmp_path / "other.gif", json=False) == [tmp_path / "other.gif"]
    assert not (tmp_path / "other.gif.json").exists()


def test_settings_are_a_copy():
    settings = {"size": (64, 64), "deep": {"a": 1}}
    clip = Clip(moving(1), settings=settings)
    settings["deep"]["a"] = 2
    assert clip.settings == {"size": [64, 64], "deep": {"a": 1}}


@pytest.mark.parametrize(
    "frames",
    [
        moving(1).astype(np.float32),
        moving(1)[0],
        moving(1)[:0],
        moving(1)[..., :2],
        np.zeros((1, 0, 8, 3), np.uint8),
        "frames",
    ],
    ids=["float", "3-d", "none", "2-channels", "no-height", "text"],
)
def test_other_frames_are_refused(frames):
    with pytest.raises(InputError, match=r"expected a uint8 array \(F, H, W, 3\)"):
        Clip(frames)


@pytest.mark.parametrize(
    "fps",
    [0, -1, None, 1001, True, "", "x", "1/0", "1" * 30, 0.009, 1e-320, float("nan"), float("inf"), 1.23456789, [8]],
)
def test_other_rates_are_refused(fps):
    with pytest.raises(InputError, match=r"fps is .* 0.01 to 1000"):
        Clip(moving(1), fps=fps)


@pytest.mark.parametrize(
    "settings",
    [{"a": float("nan")}, {"a": float("inf")}, {"a": {1}}, {"a": "\ud800"}, [1], "a", {"a": "x" * 2_000_000}],
    ids=["nan", "inf", "set", "surrogate", "list", "text", "long"],
)
def test_other_settings_are_refused(settings):
    with pytest.raises(InputError, match=r"^the settings [^\n]*$"):
        Clip(moving(1), settings=settings)


def test_frames_in_any_memory_order(tmp_path):
    frames = moving(3)
    flipped = Clip(frames[::-1, :, ::-1]).save(tmp_path / "clip.webp")[0]
    assert np.array_equal(decoded(flipped)[0], frames[::-1, :, ::-1])


def refused(path: Path, words: str, fps: int = 8, overwrite: bool = False) -> None:
    """`check_output` and `save` both refuse, in one line, and leave no trace."""
    root = next(folder for folder in path.parents if folder.is_dir())
    before = sorted(root.rglob("*"))
    clip, way = Clip(moving(2), fps=fps), {"overwrite": overwrite}
    for attempt in (lambda: check_output(path, fps, **way), lambda: clip.save(path, **way)):
        with pytest.raises(InputError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_what_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "taken.gif.json").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused(
        tmp_path / "clip.gfi",
        r"unknown output ending '.gfi'.*, or none, which is a folder of PNG files; did you mean '.gif'\?$",
    )
    refused(tmp_path / "clip.v2", "or none, which is a folder of PNG files$")
    refused(tmp_path / "clip.gif", "50 fps at most, got 51: use .webp, .png or .mp4", fps=51)
    refused(tmp_path / "file" / "clip.gif", "file is not a folder")
    refused(tmp_path / "file" / "a" / "b" / "clip.gif", "file is not a folder")
    refused(tmp_path / "dangling" / "clip.gif", "dangling is not a folder")
    refused(tmp_path / "folder.gif", "is a folder: expected a file")
    refused(tmp_path / "taken.gif", "taken.gif.json is a folder")
    refused(tmp_path / "file", "holds other things")
    refused(tmp_path / ("n" * 300 + ".gif"), "can't be written")
    refused(tmp_path / ".gif", "names no file")
    for nothing in ("", ".", "..", "/"):
        with pytest.raises(InputError, match="names no file"):
            check_output(nothing, 8)
    with pytest.raises(InputError, match="fps is 0"):
        check_output(tmp_path / "clip.gif", 0)
    if os.path.isdir("/proc") and sys.platform == "linux":
        with pytest.raises(InputError, match="can't be written"):
            check_output("/proc/clip.gif", 8)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_a_closed_folder_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(tmp_path / "closed" / "clip.gif", "can't be written")


@pytest.mark.parametrize("path", ["clip.gif", "CLIP.GIF", "a/b/clip.webp", "clip", "two.dots.png", "c.apng"])
def test_what_can_be_written_is_a_path_and_leaves_no_trace(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output(path, 50) == Path(path)
    assert check_output(str(tmp_path / path), 8) == tmp_path / path
    assert list(tmp_path.iterdir()) == []
    assert all(written.exists() for written in Clip(moving(2)).save(path, sheet=True))


def test_mp4_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    (tmp_path / "clip.mp4").write_bytes(b"x")
    for attempt in (lambda: check_output(tmp_path / "clip.mp4", 8), lambda: read_settings(tmp_path / "clip.mp4")):
        with pytest.raises(InputError, match=r"pip install 'zs2\[video\]'"):
            attempt()


def test_mp4_of_odd_size_is_refused(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(InputError, match=r"even width and height.*63x64"):
        Clip(moving(1)[:, :, 1:]).save(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_folder_is_replaced(tmp_path):
    Clip(moving(8)).save(tmp_path / "clip")
    assert len(list((tmp_path / "clip").iterdir())) == 8
    Clip(moving(3), settings=SETTINGS).save(tmp_path / "clip", overwrite=True)
    assert sorted(file.name for file in (tmp_path / "clip").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    assert read_settings(tmp_path / "clip") == SETTINGS
    (tmp_path / "empty").mkdir()
    Clip(moving(1)).save(tmp_path / "empty")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip", "clip.json", "empty", "empty.json"]


@pytest.mark.parametrize("stranger", ["notes.txt", "1.png", "0001.PNG", "0009.png", "0003.png/x", ".hidden"])
def test_a_folder_with_other_things_stays(tmp_path, stranger):
    Clip(moving(3)).save(tmp_path / "clip")
    other = tmp_path / "clip" / stranger
    other.parent.mkdir(exist_ok=True)
    other.write_bytes((tmp_path / "clip" / "0000.png").read_bytes())
    before = tree(tmp_path)
    refused(tmp_path / "clip", "holds other things than a clip's frames", overwrite=True)
    assert tree(tmp_path) == before


def test_a_folder_of_other_pictures_stays(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "0000.png")
    refused(tmp_path / "photos", "holds other things")
    (tmp_path / "photos" / "0000.png").write_bytes(b"not a picture")
    refused(tmp_path / "photos", "holds other things")


def test_a_linked_file_or_folder_is_replaced_itself(tmp_path):
    Clip(moving(2)).save(tmp_path / "far" / "clip", json=False)
    Clip(moving(2)).save(tmp_path / "far" / "clip.gif", json=False)
    before = tree(tmp_path / "far")
    for each in ("clip", "clip.gif"):
        (tmp_path / each).symlink_to(Path("far") / each)
        Clip(moving(5)).save(tmp_path / each, json=False, overwrite=True)
        assert not (tmp_path / each).is_symlink()
        assert len(decoded(tmp_path / each)[0]) == 5
    assert tree(tmp_path / "far") == before


def interrupt(monkeypatch, owner: object, attribute: str, call: int, after: bool = False) -> None:
    """Let call number `call` of a function, from 0, raise KeyboardInterrupt, before or after its work; once."""
    function, calls = getattr(owner, attribute), itertools.count()

    def wrapper(*args, **kwargs):
        hit = next(calls) == call
        if hit and not after:
            raise KeyboardInterrupt
        result = function(*args, **kwargs)
        if hit:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, attribute, wrapper)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("what", ["frame", "saved", "sheet", "json", "move"])
def test_an_interrupted_write_changes_nothing(tmp_path, monkeypatch, ending, what):
    path = tmp_path / name(ending)
    for earlier in (False, True):
        if earlier:
            Clip(moving(2, 32), settings={"old": True}).save(path, sheet=True)
        before = tree(tmp_path)
        with monkeypatch.context() as patch:
            if what == "frame" and ending == "mp4":
                interrupt(patch, formats, "Fraction", 3)  # between two frames, the container being open
            elif what == "frame":
                interrupt(patch, Image, "fromarray", 3)
            elif what == "saved":
                interrupt(patch, Image.Image, "save", 0, after=True)
            elif what == "sheet":
                interrupt(patch, Clip, "sheet", 0)
            elif what == "json":
                interrupt(patch, Path, "write_bytes", 0)
            else:  # all is written, but nothing is in its place
                interrupt(patch, os, "replace", 0)
            with pytest.raises(KeyboardInterrupt):
                Clip(moving(5, 32)).save(path, sheet=True, overwrite=True)
        assert tree(tmp_path) == before
        assert earlier or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("ending", ["webp", ""])
def test_a_json_means_a_whole_clip_whenever_interrupted(tmp_path, monkeypatch, ending, call, after):
    path = tmp_path / name(ending)
    old, new = moving(2, 16), moving(5, 16)
    Clip(old, settings={"frames": 2}).save(path, sheet=True)
    with monkeypatch.context() as patch:
        interrupt(patch, os, "replace", call, after)
        try:
            Clip(new, settings={"frames": 5}).save(path, sheet=True, overwrite=True)
        except KeyboardInterrupt:
            pass
        else:
            assert call > 3
    got = decoded(path)[0]
    assert np.array_equal(got, old if len(got) == 2 else new)  # the old clip or the new one, never a mixture or none
    if path.with_name(path.name + ".json").exists():
        assert read_settings(path.with_name(path.name + ".json")) == read_settings(path) == {"frames": len(got)}
    assert {file.name for file in tmp_path.iterdir()} <= {path.name + end for end in ("", ".json", ".sheet.png")}


def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Clip(moving(2)).save(tmp_path / "clip.gif")
    assert list(tmp_path.iterdir()) == []


def test_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "mine").write_text("")
    Clip(moving(1)).save(tmp_path / "clip.gif")
    Clip(moving(1)).save(tmp_path / "folder")
    (tmp_path / "my_folder").mkdir()
    assert (tmp_path / "clip.gif").stat().st_mode == (tmp_path / "mine").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "my_folder").stat().st_mode


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "apng", "mp4", "json"])
def test_reading_settings_from_anything_else(tmp_path, ending):
    path = tmp_path / name(ending)
    with pytest.raises(InputError, match="no such file"):
        read_settings(path)
    rng = np.random.default_rng(0)
    garbage = [
        b"",
        b"\0",
        b"GIF89a",
        b"null",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 100_000,
        b"#EXTM3U\nclip.gif",
    ]
    garbage += [b"\x89PNG\r\n\x1a\n" + bytes(100), b"RIFF\x10\0\0\0WEBPVP8 ", rng.bytes(5_000)]
    if ending != "json":
        whole = Clip(moving(2, 16), settings=SETTINGS).save(tmp_path / name(ending, "whole"))[0].read_bytes()
        garbage += [whole[: len(whole) // 10], whole[:40] + rng.bytes(200)]
    for data in garbage:
        path.write_bytes(data)
        with pytest.raises(InputError, match="expected a clip of zs2") as caught:
            read_settings(path)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken EXIF
@pytest.mark.parametrize("ending", IMAGES)
def test_reading_settings_from_damaged_files(tmp_path, ending):
    data = bytearray(Clip(moving(2, 16), settings=SETTINGS).save(tmp_path / name(ending))[0].read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / name(ending, "damaged")
    for _ in range(40):
        damaged = data.copy()
        for place in rng.integers(0, len(data), 5):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert isinstance(read_settings(path), dict)


def test_reading_settings_where_there_are_none(tmp_path):
    image = Image.new("RGB", (8, 8))
    for ending in ("gif", "webp", "png"):
        image.save(tmp_path / f"other.{ending}")
        with pytest.raises(InputError, match="no settings of zs2 in it"):
            read_settings(tmp_path / f"other.{ending}")
    image.save(tmp_path / "gimp.gif", comment=b"Created with GIMP")
    with pytest.raises(InputError, match="no settings of zs2 in it"):
        read_settings(tmp_path / "gimp.gif")
    (tmp_path / "long.json").write_text(json.dumps({"a": "x" * 5_000_000}))
    with pytest.raises(InputError, match="too long"):
        read_settings(tmp_path / "long.json")
    with pytest.raises(InputError, match=r"clip.jsn: unknown clip ending '.jsn'.*did you mean '.json'"):
        read_settings(tmp_path / "clip.jsn")
    with pytest.raises(InputError, match="no such file"):
        read_settings(tmp_path)


@pytest.mark.parametrize("right", [".gif", ".webp", ".png", ".json", ".mp4"])
def test_a_renamed_file_is_read_as_what_it_is(tmp_path, right):
    if right == ".mp4":
        pytest.importorskip("av")
    clip = Clip(moving(3, 16), settings={"width": 16, "height": 16, "frames": 3})
    made = tmp_path / ("clip.webp.json" if right == ".json" else f"clip{right}")
    clip.save(tmp_path / f"clip{'.webp' if right == '.json' else right}")
    settings = read_settings(made)
    assert settings["width"] == 16
    for other in (".gif", ".webp", ".apng", ".mp4", ".json", ".jpg", ".txt", ""):
        place = shutil.copy(made, tmp_path / f"other{other}")
        assert read_settings(place) == settings
        if right in (".webp", ".png"):
            assert np.array_equal(Clip.open(place).frames, clip.frames)
        else:
            not_opened(Path(place), "no clip" if right == ".json" else f"\\{right} is lossy")


def test_a_file_of_another_kind_is_told_so(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "clip.webp", "JPEG")
    with pytest.raises(InputError, match=r"clip.webp: its content is of another kind, '.jpg': expected one of .json"):
        read_settings(tmp_path / "clip.webp")
    with pytest.raises(InputError, match=r"clip.jpeg: unknown clip ending '.jpeg': expected one of .json"):
        read_settings((tmp_path / "clip.webp").rename(tmp_path / "clip.jpeg"))


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 39532096\n"


@pytest.mark.parametrize(
    ("read", "file"),
    [
        *((read, file) for read in (read_settings, InputClip) for file in ("clip.json", "clip.webp", "clip.mp4")),
        (Clip.open, "clip.webp"),
        (read_json, "config.json"),
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, read, file):
    path = tmp_path / file
    path.write_text(POINTER)
    with pytest.raises(InputError, match="a Git LFS pointer, not the file itself: run `git lfs pull`") as told:
        read(path)
    assert str(told.value).startswith(str(path))


def test_a_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "clip.json").write_bytes(b'\xef\xbb\xbf{"seed": 1}')
    assert read_settings(tmp_path / "clip.json") == {"seed": 1}


# --- opening ----------------------------------------------------------------------------------------------------------


@given(
    ending=st.sampled_from(LOSSLESS),
    fps=st.integers(1, 1000),
    pictures=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_clip_is_opened_as_it_was_saved(ending, fps, pictures, size):
    """Equal frames in a row are one picture in a file, and a still clip has no times."""
    different = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    settings = SETTINGS | {"fps": fps, "frames": len(pictures), "height": size[0], "width": size[1]}
    clip = Clip(different[pictures], fps, settings)
    with tempfile.TemporaryDirectory() as folder:
        opened = Clip.open(clip.save(Path(folder, name(ending)))[0])
    assert np.array_equal(opened.frames, clip.frames)
    assert (opened.fps, opened.settings) == (fps, settings)


@pytest.mark.parametrize("ending", ["webp", "png", "apng"])
@pytest.mark.parametrize("fps", [1, 7, 24, 60])
def test_times_say_the_rate_where_the_settings_do_not(tmp_path, ending, fps):
    """As in files of before, which had the rate of another file."""
    frames = moving(6, 16)[[0, 1, 1, 2, 3, 3, 3, 4, 5]]
    for settings in ({}, {"fps": "fast"}, {"fps": 0}, {"fps": 1001}, {"frames": 2}, {"fps": 1}):
        formats.WRITERS[f".{ending}"](frames, Encoding(fps), json.dumps(settings), tmp_path / name(ending))
        opened = Clip.open(tmp_path / name(ending))
        assert np.array_equal(opened.frames, frames)
        assert (opened.fps, opened.settings) == (fps, settings)


@pytest.mark.parametrize("ending", LOSSLESS)
def test_one_frame_is_opened_as_one(tmp_path, ending):
    opened = Clip.open(Clip(moving(1, 15), settings={"prompt": "a"}).save(tmp_path / name(ending))[0])
    assert np.array_equal(opened.frames, moving(1, 15))
    assert opened.fps == 8


def not_opened(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Clip.open(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_what_is_no_lossless_clip_is_not_opened(tmp_path):
    clip = Clip(moving(3, 16), settings={"width": 16, "height": 16, "frames": 3})
    for ending in ("gif", "GIF", "mp4"):
        path = tmp_path / f"clip.{ending}"
        if ending == "gif":
            clip.save(path)
        not_opened(path, f"\\.{ending.lower()} is lossy: expected .webp, .png, .apng or a folder of PNG files")
    clip.save(tmp_path / "clip.webp", sheet=True)
    not_opened(tmp_path / "clip.webp.json", "no clip: expected .webp")
    not_opened(
        tmp_path / "clip.webp.sheet.png", r"is 592x200, its settings say 16x16: expected a clip .*not a contact sheet"
    )
    not_opened(tmp_path / "gone.png", "no such file")
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    not_opened(tmp_path / "holiday.png", "no settings of zs2 in it")
    with pytest.raises(InputError, match=r"clip.avi: unknown clip ending '.avi'"):
        Clip.open(tmp_path / "clip.avi")


def test_a_folder_with_other_things_is_not_opened(tmp_path):
    path = Clip(moving(3, 16)).save(tmp_path / "clip")[0]
    (path / "0002.png").rename(path / "0003.png")
    not_opened(path, "no clip: expected .webp, .png, .apng or a folder 0000.png, 0001.png, …")
    (path / "0000.png").unlink()
    not_opened(path, "0000.png: no such file")


def test_a_folder_of_pictures_of_two_sizes_is_not_opened(tmp_path):
    path = Clip(moving(2, 16)).save(tmp_path / "clip")[0]
    (Clip(moving(1, 8)).save(tmp_path / "other")[0] / "0000.png").replace(path / "0001.png")
    not_opened(path, "can't be read .*several sizes")


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_a_clip_that_is_cut_off_is_not_opened(tmp_path, ending):
    path = Clip(moving(5), settings=SETTINGS | {"fps": 8}).save(tmp_path / name(ending))[0]
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        not_opened(path, "expected a clip of zs2")


@pytest.mark.parametrize("durations", [[100, 0, 100], 0])
def test_a_picture_that_lasts_no_time_is_refused(tmp_path, durations):
    """As where another program has saved the clip again, and kept its settings."""
    images = [Image.fromarray(frame) for frame in moving(3, 16)]
    path, info = tmp_path / "clip.png", metadata.png_text("{}")
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, pnginfo=info)
    not_opened(path, "a picture in it lasts no time: expected a clip of zs2")


# --- contact sheets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((8, 64, 64), (8 * 196 + 4, 192 + 8)),  # one row, three times as large
        ((1, 64, 64), (192 + 8, 192 + 8)),
        ((8, 512, 512), (8 * 255 + 4, 251 + 8)),  # reduced to what 2048 pixels hold
        ((1, 512, 512), (512 + 8, 512 + 8)),
        ((12, 64, 64), (4 * 196 + 4, 3 * 196 + 4)),
        ((16, 64, 64), (4 * 196 + 4, 4 * 196 + 4)),
        ((24, 64, 64), (6 * 196 + 4, 4 * 196 + 4)),
        ((60, 64, 64), (10 * 196 + 4, 6 * 196 + 4)),
        ((500, 64, 64), (10 * 196 + 4, 6 * 196 + 4)),
        ((4, 32, 64), (4 * 196 + 4, 96 + 8)),
        ((2, 4096, 4), (2 * 8 + 4, 4096 + 8)),
    ],
)
def test_sheet_size(shape, size):
    assert Clip(np.zeros((*shape, 3), np.uint8)).sheet().size == size


def test_sheet_shows_the_pixels_of_the_clip():
    frames = moving(6)
    sheet = np.asarray(Clip(frames).sheet(columns=3, tile=130))  # 130 allows a factor of two
    assert sheet.shape == (2 * 132 + 4, 3 * 132 + 4, 3)
    assert (sheet[:4] == 200).all()
    assert (sheet[132:136] == 200).all()
    for index in range(6):
        top, left = 4 + 132 * (index // 3), 4 + 132 * (index % 3)
        tile = sheet[top : top + 128, left : left + 128]
        assert np.array_equal(tile, frames[index].repeat(2, axis=0).repeat(2, axis=1))


def test_sheet_of_a_long_clip_has_its_first_and_last_frame():
    frames = np.zeros((200, 4, 4, 3), np.uint8) + np.arange(200, dtype=np.uint8)[:, None, None, None]
    sheet = np.asarray(Clip(frames).sheet(tile=4))
    values = sheet[4::8, 4::8, 0].ravel()
    assert values[0] == 0
    assert values[-1] == 199
    assert set(np.diff(values)) <= {3, 4}


def test_sheet_reduces_smoothly_and_checks_its_arguments():
    clip = Clip(moving(2, 256))
    sheet = np.asarray(clip.sheet(columns=1, tile=64))
    assert sheet.shape == (2 * 68 + 4, 64 + 8, 3)
    small = np.asarray(Image.fromarray(clip.frames[0]).resize((64, 64), Image.Resampling.BOX), float)
    assert np.abs(sheet[4:68, 4:68] - small).mean() < 1.5
    assert clip.sheet(columns=99).size == clip.sheet().size
    for wrong in ({"columns": 0}, {"tile": 0}, {"tile": 5000}, {"columns": 1.5}):
        with pytest.raises(InputError):
            clip.sheet(**wrong)


def test_repr():
    assert repr(Clip(moving(3))) == "Clip(3 frames of 64x64 at 8 fps)"


def test_video_needs_no_torch_and_no_pyav():
    code = "import sys, zs2.video.clip; print([name for name in ('torch', 'av') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
