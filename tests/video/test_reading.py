"""Clips as input: every kind of file gives the frames that were written, by range, and a wrong one is one line."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zs2.errors import InputError, collected
from zs2.video.clip import Clip
from zs2.video.reading import InputClip
from zs2.video.resizing import resized


def drawn(count: int = 7, height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth frames that differ from each other by far more than a lossy format changes them."""
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([x * 4, y * 5, np.full_like(x, 30 * i)], axis=-1) for i in range(count)]
    return np.stack(frames).astype(np.uint8)


FRAMES = drawn()
CLIP = Clip(FRAMES, 8, {"fps": 8})


def photos(folder: Path) -> Path:
    """Pictures whose names are numbered without zeros in front."""
    folder.mkdir()
    for i, frame in enumerate(drawn(12)):
        Image.fromarray(frame).save(folder / f"shot {i}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def saved(tmp_path: Path, name: str) -> Path:
    CLIP.save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "levels"), [("a.webp", 0), ("a.png", 0), ("frames", 0), ("a.gif", 12), ("a.mp4", 10), (None, 0)]
)
def test_the_frames_of_every_kind_in_any_order(tmp_path, name, levels):
    clip = InputClip(CLIP if name is None else saved(tmp_path, name))
    assert (clip.count, clip.shape) == (7, (24, 32))
    assert clip.fps == (None if name == "frames" else 8)
    for first, count in ((0, 7), (2, 3), (3, 1), (5, 2), (0, 1)):
        got = clip.frames(first, count).astype(int)
        assert np.abs(got - FRAMES[first : first + count]).mean() <= levels / 4
        assert np.abs(got - FRAMES[first : first + count]).max() <= levels


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "a.mp4"])
@pytest.mark.parametrize("other", ["b.mov", "b.webm", "b.png", "b"])
def test_a_clip_with_another_ending_is_what_it_was(tmp_path, name, other):
    digest = InputClip(saved(tmp_path, name)).sha256
    renamed = InputClip((tmp_path / name).rename(tmp_path / other))
    assert (renamed.count, renamed.shape, renamed.fps) == (7, (24, 32), 8)
    assert renamed.sha256 == digest
    assert np.abs(renamed.frames(0, 7).astype(int) - FRAMES).max() <= 12


@pytest.mark.parametrize("brand", [b"avif", b"heic", b"mif1"])
@pytest.mark.parametrize("name", ["a.avif", "a.png"])
def test_a_picture_in_the_container_of_videos_is_no_video(tmp_path, brand, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x1cftyp" + brand + bytes(100))
    with pytest.raises(InputError, match=r"can't be read \(cannot identify image file .*expected a folder of pictures"):
        InputClip(tmp_path / name)


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.mp4", "frames"])
def test_a_range_and_its_record(tmp_path, name):
    path = saved(tmp_path, name)
    whole, part = InputClip(path), InputClip(f"{path}@2:5")
    assert part.count == 3
    assert (part.frames(1, 2) == whole.frames(3, 2)).all()
    assert part.record == {"sha256": whole.sha256, "range": [2, 5]}
    assert (InputClip(f"{path}@3:").count, InputClip(f"{path}@:3").count) == (4, 3)
    for wrong in ("@5:2", "@3:3", "@7:", "@0:8"):
        with pytest.raises(InputError, match="of 7 frames: expected a range within them"):
            InputClip(f"{path}{wrong}")


def test_a_folder_is_in_the_order_of_its_numbers(tmp_path):
    assert (InputClip(photos(tmp_path / "photos")).frames(0, 12) == drawn(12)).all()


def test_names_of_the_same_number_have_one_order(tmp_path, monkeypatch):
    """`1.png` and `01.png` count alike: the file system's order of them is not the clip's."""
    for name, frame in zip(("01.png", "1.png", "2.png"), FRAMES, strict=False):
        Image.fromarray(frame).save(tmp_path / name)
    for order in itertools.permutations(("01.png", "1.png", "2.png")):
        monkeypatch.setattr("zs2.video.decoders.os.listdir", lambda folder, order=order: list(order))
        assert (InputClip(tmp_path).frames(0, 3) == FRAMES[:3]).all()


def test_a_picture_that_lasts_longer_is_repeated(tmp_path):
    """Clips of zs2 store equal frames once; so do others, at a rate of their own."""
    held = FRAMES[[0, 1, 1, 1, 2]]
    for name in ("a.webp", "a.png", "a.gif"):
        Clip(held, 30, {"fps": 30}).save(tmp_path / name)
        assert InputClip(tmp_path / name).count == 5
    images = [Image.fromarray(frame) for frame in FRAMES[:3]]
    images[0].save(tmp_path / "other.webp", save_all=True, append_images=images[1:], duration=[70, 80, 210])
    other = InputClip(tmp_path / "other.webp")
    assert other.count == 5
    assert other.fps == pytest.approx(1000 / 70)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
@pytest.mark.parametrize("fps", [7, 8, 12, 15, "23.976", 24, 30, 50])
def test_a_rate_that_a_file_rounds_repeats_no_picture(tmp_path, ending, fps):
    """Without the settings of zs2, as other programs write such files."""
    frames = np.random.default_rng(0).integers(0, 255, (60, 4, 4, 3), np.uint8)
    held = np.repeat(frames[:12], [1, 2, 5] * 4, axis=0)
    for name, shown in (("even", frames), ("held", held)):
        Clip(shown, fps).save(tmp_path / f"{name}.{ending}", metadata=False)
        clip = InputClip(tmp_path / f"{name}.{ending}")
        assert clip.count == len(shown)
        assert clip.fps == pytest.approx(float(fps), rel=0.01)
        if ending != "gif":
            assert (clip.frames(0, len(shown)) == shown).all()


@pytest.mark.parametrize(
    ("name", "lasting", "repeats"),
    [
        ("a.gif", [100, 120, 100, 200], [1, 1, 1, 2]),  # more than a unit longer: no rounding
        ("a.gif", [100, 150, 150, 150], [1, 1, 2, 2]),
        ("a.gif", [30, 30, 40, 30, 30, 40, 1000], [1, 1, 1, 1, 1, 1, 30]),
        ("a.gif", [30, 30, 30, 30, 40, 40, 40], [1] * 7),
        ("a.webp", [100, 110, 110, 150, 130], [1, 1, 1, 2, 1]),
        ("a.webp", [33, 34, 33, 100, 33, 67], [1, 1, 1, 3, 1, 2]),
        ("a.png", [40, 4000], [1, 100]),
    ],
)
def test_pictures_that_last_differently_keep_their_times(tmp_path, name, lasting, repeats):
    images = [Image.fromarray(frame) for frame in drawn(len(lasting))]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=lasting)
    clip = InputClip(tmp_path / name)
    frames = clip.frames(0, clip.count).astype(int)
    changes = np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 15
    assert np.diff([-1, *np.flatnonzero(changes), len(frames) - 1]).tolist() == repeats


def with_a_default_image(path: Path) -> int:
    """A PNG whose first picture is for viewers that show no animations. Returns: the frame of FRAMES that is first."""
    images = [Image.fromarray(frame) for frame in FRAMES]
    images[0].save(path, save_all=True, append_images=images[1:], default_image=True, duration=125)
    return 1


def cut_without_encoding(path: Path) -> int:
    """A video whose first frames are decoded only because later ones need them. Returns: as above."""
    av, first = pytest.importorskip("av"), 3
    whole = saved(path.parent, "whole.mp4")
    with av.open(str(whole)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                skipped = int(first / 8 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - skipped, packet.dts - skipped, stream
                after.mux(packet)
    return first


@pytest.mark.parametrize(
    ("name", "write", "levels"), [("a.png", with_a_default_image, 0), ("a.mp4", cut_without_encoding, 10)]
)
def test_pictures_that_no_player_shows_are_no_frames(tmp_path, name, write, levels):
    shown = FRAMES[write(tmp_path / name) :]
    clip = InputClip(tmp_path / name)
    assert clip.count == len(shown)
    for first, count in ((0, len(shown)), (2, 2), (0, 1)):
        assert np.abs(clip.frames(first, count).astype(int) - shown[first : first + count]).max() <= levels


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", None])
def test_one_picture_is_as_many_frames_as_are_asked_for(tmp_path, name):
    picture = Image.fromarray(FRAMES[3])
    if name is not None:
        picture.save(tmp_path / name)
    clip = InputClip(picture if name is None else tmp_path / name)
    assert clip.count is None
    frames = clip.frames(90, 3)
    assert frames.shape == (3, 24, 32, 3)
    assert (frames == frames[0]).all()
    clip.check_length(None, "source")
    with pytest.raises(InputError, match="one picture has no range"):
        InputClip(f"{tmp_path / name}@0:1") if name else InputClip(_ranged_picture(tmp_path))


def _ranged_picture(folder: Path) -> str:
    Image.fromarray(FRAMES[0]).save(folder / "b.png")
    return f"{folder / 'b.png'}@0:1"


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png", exif=exif)
    clip = InputClip(tmp_path / "a.png")
    assert clip.shape == (32, 24)
    assert (clip.frames(0, 1)[0] == np.rot90(FRAMES[0], -1)).all()


def test_the_picture_of_a_photo_with_several_is_the_first(tmp_path):
    """As phones write them: a JPEG with a smaller picture, or a map of brightness, behind it (MPO)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo, other = Image.fromarray(FRAMES[0]), Image.fromarray(FRAMES[3][::2, ::2])
    photo.save(tmp_path / "plain.jpg", exif=exif)
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[other], exif=exif)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.jpg").write_bytes((tmp_path / "phone.jpg").read_bytes())
    plain, phone, folder = (InputClip(tmp_path / name) for name in ("plain.jpg", "phone.jpg", "folder"))
    assert (phone.count, phone.shape, phone.fps, folder.count) == (None, (32, 24), None, 1)
    for clip in (phone, folder):
        assert (clip.frames(0, 1) == plain.frames(0, 1)).all()


def cut_out(alpha: int = 0, frame: int = 0) -> Image.Image:
    """A picture with a corner of this alpha."""
    picture = Image.fromarray(FRAMES[frame]).convert("RGBA")
    picture.paste((9, 9, 9, alpha), (0, 0, 5, 5))
    return picture


def warned(path: Path | Image.Image) -> list[str]:
    with collected() as found, warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's
        clip = InputClip(path)
        for first in (0, (clip.count or 2) - 1, 0):
            clip.frames(first, 1)
    return found


@pytest.mark.parametrize("name", ["a.png", "palette.png", "grey.png", "a.webp", "a.gif", "many.webp", "many.gif", "b"])
def test_transparency_is_ignored_with_one_warning(tmp_path, name):
    path, one = tmp_path / name, cut_out(100 if name == "a.png" else 0)
    if name == "b":
        path.mkdir()
        Image.fromarray(FRAMES[0]).save(path / "1.png")
        for number in "23":
            one.save(path / f"{number}.png")
    elif name.startswith("many"):
        one.save(path, save_all=True, append_images=[cut_out(frame=1)], disposal=2, duration=125, lossless=True)
    else:
        one.convert({"palette.png": "P", "grey.png": "LA"}.get(name, "RGBA")).save(path)
    message = f"{path} is partly transparent: expected opaque pictures, so the colours beneath are used; lay it over a"
    assert [text.startswith(message) for text in warned(path)] == [True]
    assert [text.startswith("Image is partly transparent") for text in warned(one)] == [True]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "a", "opaque.png", "opaque.webp", "composed.gif"])
def test_opaque_pictures_are_not_called_transparent(tmp_path, name):
    """Animations keep pixels of the picture before under transparent ones: in the end no pixel is."""
    if name.startswith("a"):
        frames = np.repeat(FRAMES[:1], 7, axis=0)
        for i in range(7):
            frames[i, i : i + 9, 3 * i : 3 * i + 9] = FRAMES[i, :9, :9]
        Clip(frames[[0, 0, 1, 2, 2, 3, 4, 5, 6]], 8, {"fps": 8}).save(tmp_path / name)
    elif name == "composed.gif":
        pictures = [Image.fromarray(FRAMES[0]).quantize(64), cut_out(frame=0).convert("RGBA"), cut_out(frame=1)]
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], disposal=1, duration=100)
        assert b"!\xf9\x04\x05" in (tmp_path / name).read_bytes()  # a picture with transparent pixels
    else:
        cut_out(255).save(tmp_path / name)
    assert warned(tmp_path / name) == []


@pytest.mark.parametrize("kind", ["folder", "animation"])
def test_a_transparent_frame_that_is_not_used_gives_no_warning(tmp_path, kind):
    pictures = [cut_out(), Image.fromarray(FRAMES[1]).convert("RGBA"), Image.fromarray(FRAMES[2]).convert("RGBA")]
    path = tmp_path / "a.webp"
    if kind == "folder":
        (path := tmp_path / "a").mkdir()
        for number, picture in enumerate(pictures):
            picture.save(path / f"{number}.png")
    else:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    assert warned(f"{path}@1:3") == []
    assert len(warned(f"{path}@0:2")) == len(warned(path)) == 1


def test_the_middle_is_taken_and_resized():
    half = np.zeros((20, 80, 3), np.uint8)
    half[:, 26:54] = 200  # the middle square, and what is resampled around it
    clip = InputClip(half)
    assert (clip.frames(0, 1, (40, 40)) == 200).all()
    assert clip.fitting((40, 40)) == "ndarray is 80x20: its middle 20x20 is resized to 40x40"
    assert clip.fitting((40, 160)) == "ndarray is 80x20: resized to 160x40"
    assert clip.fitting((20, 80)) == ""
    assert InputClip(half).frames(0, 1, (20, 80)).shape == (1, 20, 80, 3)


@pytest.mark.parametrize("sides", [(29, 480, 448), (123, 1000, 448), (480, 58, 448)])  # at scale · side > height
def test_the_middle_ends_where_the_picture_does(sides):
    height, width, side = sides
    assert InputClip(np.zeros((height, width, 3), np.uint8)).frames(0, 1, (side, side)).shape == (1, side, side, 3)


@pytest.mark.parametrize("resample", Image.Resampling)
@pytest.mark.parametrize("box", [None, (3.25, 1.5, 60.75, 30.5)])
def test_two_passes_are_one_call_of_pillow(resample, box):
    """Of pictures that every version of Pillow resizes in the order of version 12. Others: test_scorer.py."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    if resample == Image.Resampling.NEAREST:
        box = None
    expected = np.asarray(Image.fromarray(picture).resize((20, 28), resample, box))
    np.testing.assert_array_equal(resized(picture, (28, 20), resample, box), expected)


def test_fewer_frames_than_the_clip_has():
    message = "source Clip has 7 frames, the clip has 8: expected at least as many"
    with pytest.raises(InputError, match=message):
        InputClip(CLIP).check_length(8, "source")
    InputClip(CLIP).check_length(7, "source")


def test_a_file_that_changes_is_refused(tmp_path):
    path = saved(tmp_path, "a.webp")
    clip = InputClip(path)
    clip.frames(0, 1)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="was changed after it was opened"):
        clip.frames(1, 1)


def test_a_file_that_is_gone_has_no_digest(tmp_path):
    path = saved(tmp_path, "a.webp")
    clip = InputClip(path)
    path.unlink()
    with pytest.raises(InputError, match="was changed after it was opened"):
        _ = clip.sha256


def test_no_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(photos(tmp_path / "photos"))
    assert InputClip(".").count == 12
    with pytest.raises(InputError, match="'': no such file: expected a folder of pictures"):
        InputClip("")


def test_the_same_frames_have_the_same_digest_and_others_another():
    assert InputClip(FRAMES).sha256 == InputClip(CLIP).sha256 == InputClip(FRAMES.copy()).sha256
    assert InputClip(FRAMES[:3]).sha256 != InputClip(FRAMES[:4]).sha256


def deep(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path)


WRONG = {
    "missing.webp": (None, "no such file: expected a folder of pictures, or"),
    "text.png": (lambda path: path.write_text("text"), "can't be read .*: expected a folder of pictures"),
    "cut.webp": (lambda path: path.write_bytes(saved(path.parent, "whole.webp").read_bytes()[:700]), "can't be read"),
    "cut.mp4": (lambda path: path.write_bytes(saved(path.parent, "whole.mp4").read_bytes()[:900]), "can't be read"),
    "list.mp4": (lambda path: path.write_text("#EXTM3U\nother.mp4"), "can't be read"),
    "empty": (lambda path: path.mkdir(), "0 pictures in it: expected from 1"),
    "deep.png": (deep, "its mode is I;16: expected 8 bits a channel"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:.*")
def test_a_wrong_file_is_one_line(tmp_path, name):
    write, message = WRONG[name]
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        InputClip(tmp_path / name).frames(0, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FRAMES.astype(np.float32), r"an array of float32 \(7, 24, 32, 3\): expected uint8"),
        (FRAMES[..., 0], r"an array of uint8 \(7, 24, 32\)"),
        (7, "7: expected a path, a Clip, a picture or an array"),
    ],
)
def test_what_is_no_clip_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        InputClip(source)


def test_pictures_of_several_sizes_are_refused(tmp_path):
    folder = photos(tmp_path / "photos")
    Image.fromarray(drawn(1, 16, 16)[0]).save(folder / "shot 3.png")
    with pytest.raises(InputError, match="frame 3 is 16x16: expected 32x24, as the first one"):
        InputClip(folder).frames(2, 3)
