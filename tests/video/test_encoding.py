"""The options of a clip's file: rates that are no whole numbers, lossy files, loops, and what others read in it."""

from __future__ import annotations

import json
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zs2.errors import InputError
from zs2.sample import main
from zs2.video.clip import Clip, read_settings
from zs2.video.encoding import Encoding, frame_rate, start
from zs2.video.metadata import parameters, with_png_text

SETTINGS: dict[str, Any] = {
    "prompt": "red apple (on a table)",
    "negative_prompt": "blurry",
    "frames": 5,
    "steps": 25,
    "sampler": "dpm++",
    "guidance": 5.0,
    "seed": 3,
    "width": 32,
    "height": 16,
    "fps": 8,
    "model": "checkpoint",
    "weights": {"unet": "0123456789abcdef"},
    "clip_skip": 1,
    "versions": {"zs2": "0.1.0"},
}


def frames(count: int = 5) -> np.ndarray:
    """A bar that moves over a slope, uint8 (F, 16, 32, 3)."""
    y, x = np.mgrid[0:16, 0:32]
    slope = np.stack([x * 7, y * 12, 255 - x * 5], axis=-1)
    return np.stack([np.where((x // 6 == k)[..., None], 255 - slope, slope) for k in range(count)]).astype(np.uint8)


def played(path: Path) -> tuple[np.ndarray, list[float]]:
    """The pictures of a file and how long each lasts, in ms."""
    pictures, durations = [], []
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(image.info.get("duration", 0))
    return np.stack(pictures), durations


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (8, 8),
        (8.0, 8),
        ("8", 8),
        ("29.97", Fraction(2997, 100)),
        (29.97, Fraction(2997, 100)),
        ("24000/1001", Fraction(24000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (0.5, Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("16/2", 8),
        (0.01, Fraction(1, 100)),
        (1000, 1000),
    ],
)
def test_rates_are_read(given: Any, rate: Any) -> None:
    got = frame_rate(given)
    assert (got, type(got)) == (rate, type(rate))
    assert frame_rate(str(got)) == got


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "apng", "mp4"])
@pytest.mark.parametrize("fps", ["29.97", "24000/1001", "0.5"])
def test_files_have_rates_that_are_no_whole_numbers(tmp_path: Path, ending: str, fps: str) -> None:
    rate = Fraction(fps)
    path = tmp_path / f"clip.{ending}"
    clip = Clip(frames(), fps, SETTINGS | {"fps": str(rate)})
    clip.save(path)
    assert repr(clip) == f"Clip(5 frames of 32x16 at {rate} fps)"
    assert read_settings(path)["fps"] == str(rate)
    if ending == "mp4":
        av = pytest.importorskip("av")
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            times = sorted(
                packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None
            )
            assert stream.average_rate == rate
        assert times == [k / rate for k in range(5)]
        return
    unit = 10 if ending == "gif" else 1  # ms
    _, durations = played(path)
    ends = np.cumsum(durations)
    for k, end in enumerate(ends, 1):
        assert abs(end - 1000 * k / rate) <= unit / 2
    if ending != "gif":
        again = Clip.open(path)
        assert again.fps == rate
        assert np.array_equal(again.frames, clip.frames)


def test_a_start_is_rounded_half_up() -> None:
    """As whole rates always were: the sum of integers alone."""
    for fps in (1, 3, 8, 12, 24, 30, 50, 333, 1000):
        for units in (100, 1000):
            for index in range(200):
                assert start(index, fps, units) == (2 * index * units + fps) // (2 * fps)


# --- quality and crf --------------------------------------------------------------------------------------------------


def test_a_quality_makes_a_webp_lossy_and_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(frames(4) + rng.normal(0, 20, (4, 16, 32, 3)), 0, 255).astype(np.uint8)
    clip, sizes = Clip(noisy, 8, SETTINGS | {"frames": 4}), []
    for quality in (None, 90, 20):
        path = tmp_path / f"{quality}.webp"
        clip.save(path, quality=quality)
        sizes.append(path.stat().st_size)
        assert read_settings(path).get("quality") == quality
        error = np.abs(played(path)[0].astype(int) - noisy).mean()
        assert (error == 0) == (quality is None)
        assert error < 40
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(InputError, match="it is lossy, of quality 90: expected one without --quality"):
        Clip.open(tmp_path / "90.webp")


def test_crf_decides_the_size_of_an_mp4(tmp_path: Path) -> None:
    pytest.importorskip("av")
    rng = np.random.default_rng(0)
    clip, found = Clip(rng.integers(0, 255, (4, 64, 64, 3)).astype(np.uint8), 8, SETTINGS), {}
    for crf in (None, 17, 0, 40):
        path = tmp_path / f"{crf}.mp4"
        clip.save(path, crf=crf)
        found[crf] = path.stat().st_size
        assert read_settings(path).get("crf") == crf
    assert found[40] < found[17] < found[0]
    assert abs(found[None] - found[17]) < 50  # the settings alone differ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 101}, "quality is 101: expected from 0 to 100"),
        ({"quality": 80.5}, "quality is 80.5: expected a whole number"),
        ({"crf": 52}, "crf is 52: expected from 0 to 51"),
        ({"crf": -1}, "crf is -1"),
        ({"loop": "back"}, "unknown loop 'back': expected one of pingpong"),
        ({"metadata": 1}, "metadata is 1: expected true or false"),
    ],
)
def test_a_value_out_of_range_is_named_and_nothing_is_written(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Clip(frames()).save(tmp_path / "clip.webp", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip.gif", {"quality": 80}, "quality: no effect on .gif (only on .webp)"),
        ("clip.webp", {"crf": 20}, "crf: no effect on .webp (only on .mp4)"),
        ("clip", {"loop": "pingpong"}, "loop: no effect on a folder of PNG files"),
        ("short.webp", {"loop": "pingpong"}, "loop: no effect on fewer than 3 frames, got 2"),
    ],
)
def test_an_option_without_effect_warns_and_is_not_recorded(
    tmp_path: Path, name: str, options: Any, message: str
) -> None:
    clip = Clip(frames(2 if name.startswith("short") else 3), 8, SETTINGS)
    with pytest.warns(UserWarning, match=re.escape(message)):
        clip.save(tmp_path / name, **options)
    assert not options.keys() & read_settings(tmp_path / name).keys()
    assert len(list((tmp_path / name).iterdir()) if (tmp_path / name).is_dir() else played(tmp_path / name)[0]) in (
        2,
        3,
    )


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "mp4"])
@pytest.mark.parametrize("count", [3, 5])
def test_pingpong_goes_back_in_the_file_only(tmp_path: Path, ending: str, count: int) -> None:
    path = tmp_path / f"clip.{ending}"
    clip = Clip(frames(count), 8, SETTINGS | {"frames": count})
    clip.save(path, loop="pingpong")
    order = [*range(count), *range(count - 2, 0, -1)]
    assert read_settings(path)["loop"] == "pingpong"
    assert len(clip.frames) == count
    if ending == "mp4":
        with pytest.importorskip("av").open(str(path)) as container:
            pictures = np.stack([image.to_ndarray(format="rgb24") for image in container.decode(video=0)])
    else:
        pictures, _ = played(path)
    assert len(pictures) == len(order)
    nearest = [int(np.abs(clip.frames.astype(int) - picture).mean(axis=(1, 2, 3)).argmin()) for picture in pictures]
    assert nearest == order
    if ending in ("webp", "png"):
        again = Clip.open(path)
        assert np.array_equal(again.frames, clip.frames)
        assert again.save(tmp_path / f"again.{ending}", loop="pingpong")
        assert (tmp_path / f"again.{ending}").read_bytes() == path.read_bytes()


def test_pingpong_of_equal_frames_opens_as_it_was(tmp_path: Path) -> None:
    for order in ([0, 0, 1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0, 1]):
        clip = Clip(frames(2)[order], 8, SETTINGS | {"frames": len(order)})
        clip.save(tmp_path / "clip.webp", loop="pingpong", overwrite=True)
        assert np.array_equal(Clip.open(tmp_path / "clip.webp").frames, clip.frames), order


def test_a_clip_that_is_saved_again_has_the_settings_of_its_new_file(tmp_path: Path) -> None:
    """Not the loop, quality, crf or rate of the file that it came from."""
    clip = Clip(frames(), 8, SETTINGS | {"fps": 8, "frames": 5})
    clip.save(tmp_path / "there-and-back.webp", loop="pingpong")
    Clip.open(tmp_path / "there-and-back.webp").save(tmp_path / "again.webp")
    assert np.array_equal(Clip.open(tmp_path / "again.webp").frames, clip.frames)
    assert "loop" not in read_settings(tmp_path / "again.webp")

    for rate in (4, "24000/1001", 8):
        Clip(clip.frames, rate, clip.settings | {"fps": "fast" if rate == 8 else 8}).save(
            tmp_path / "other-rate.webp", overwrite=True
        )
        opened = Clip.open(tmp_path / "other-rate.webp")
        assert (repr(opened), opened.settings["fps"]) == (f"Clip(5 frames of 32x16 at {rate} fps)", rate)

    clip.save(tmp_path / "lossy.webp", quality=50)
    other = Clip(clip.frames, "9/2", read_settings(tmp_path / "lossy.webp") | {"crf": 3})
    for name in ("other.png", "other"):
        other.save(tmp_path / name)
        assert read_settings(tmp_path / name) == clip.settings | {"fps": "9/2"}
        assert np.array_equal(Clip.open(tmp_path / name).frames, clip.frames)
        assert Clip.open(tmp_path / name).fps == Fraction(9, 2)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, [r"red apple \(on a table\)", "Negative prompt: blurry"]),
        ({"prompt_syntax": "a1111"}, ["red apple (on a table)", "Negative prompt: blurry"]),
        ({"negative_prompt": ""}, [r"red apple \(on a table\)"]),
        ({"prompt": ["熊猫", "fox"], "negative_prompt": ""}, ["熊猫"]),
        ({"prompt": {"0": "a", "4": "b"}, "negative_prompt": "x"}, ["a", "Negative prompt: x"]),
        ({"prompt": r"a\b [c]", "negative_prompt": ""}, [r"a\\b \[c\]"]),
    ],
)
def test_parameters_are_the_text_of_a1111(changes: dict[str, Any], lines: list[str]) -> None:
    end = (
        "Steps: 25, Sampler: DPM++ 2M, CFG scale: 5, Seed: 3, Size: 32x16, Model hash: 0123456789, Model: checkpoint, "
        "Clip skip: 2, Version: zs2 0.1.0"
    )
    assert parameters(SETTINGS | changes).split("\n") == [*lines, end]


@pytest.mark.parametrize("settings", [{}, {"prompt": 3}, {"prompt": "a"}, {"prompt": [], "negative_prompt": ""}])
def test_settings_of_something_else_have_no_parameters(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert parameters(settings) == ""
    Clip(frames(), 8, settings).save(tmp_path / "clip.png")
    with Image.open(tmp_path / "clip.png") as image:
        assert image.info.get("parameters") is None


def read_parameters(path: Path) -> str | None:
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
        if comment is not None:
            assert comment.startswith(b"UNICODE\0")
            return comment[8:].decode("utf-16-be")
        return image.info.get("parameters")


@pytest.mark.parametrize("name", ["clip.png", "clip.apng", "clip.webp", "clip/0003.png", "clip.png.sheet.png"])
@pytest.mark.parametrize("prompt", ["red apple", "熊猫 🐼"])
def test_pictures_carry_parameters(tmp_path: Path, name: str, prompt: str) -> None:
    settings = SETTINGS | {"prompt": prompt}
    Clip(frames(), 8, settings).save(tmp_path / name.split("/")[0].removesuffix(".sheet.png"), sheet=True)
    assert read_parameters(tmp_path / name) == parameters(settings)
    assert read_settings(tmp_path / name)["prompt"] == prompt


def test_a_frame_with_other_settings_keeps_its_parameters(tmp_path: Path) -> None:
    Clip(frames(), 8, SETTINGS).save(tmp_path / "clip")
    file = tmp_path / "clip" / "0000.png"
    file.write_bytes(with_png_text(file.read_bytes(), json.dumps(SETTINGS | {"frames": 2})))
    assert read_settings(file)["frames"] == 2
    assert read_parameters(file) == parameters(SETTINGS)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["clip.png", "clip.webp", "clip/0000.png"])
def test_a_public_parser_reads_parameters(tmp_path: Path, name: str) -> None:
    """sd-parsers, which knows the formats of a dozen tools."""
    from sd_parsers import ParserManager

    Clip(frames(), 8, SETTINGS | {"prompt": "熊猫, (x:1.2)\nred", "prompt_syntax": "a1111"}).save(
        tmp_path / name.split("/")[0]
    )
    info = ParserManager().parse(tmp_path / name)
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters == {"cfg_scale": "5", "seed": "3", "steps": "25"}
    assert (sampler.model.name, sampler.model.hash) == ("checkpoint", "0123456789")
    assert [prompt.value for prompt in info.prompts] == ["熊猫, (x:1.2)\nred"]
    assert [prompt.value for prompt in info.negative_prompts] == ["blurry"]
    assert info.metadata == {"Size": "32x16", "Clip skip": "2", "Version": "zs2 0.1.0"}


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png", "clip.mp4", "clip"])
def test_without_metadata_no_file_has_the_prompt(tmp_path: Path, name: str) -> None:
    if name.endswith("mp4"):
        pytest.importorskip("av")
    clip = Clip(frames(), 8, SETTINGS)
    written = clip.save(tmp_path / name, sheet=True, metadata=False)
    assert [path.name for path in written] == [name, f"{name}.sheet.png"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for file in files:
        content = file.read_bytes()
        assert not any(word in content for word in (b"zs2", b"apple", b"checkpoint", b"Steps", b"a\0p\0p\0l", b"tEXt"))
    with pytest.raises(InputError, match="no settings of zs2 in it"):
        read_settings(tmp_path / name)
    assert len(files) == (6 if name == "clip" else 2)


def test_the_encoding_of_settings() -> None:
    settings = SETTINGS | {"quality": 80, "loop": "pingpong", "fps": "24000/1001"}
    found = Encoding.of(settings)
    assert found == Encoding(Fraction(24000, 1001), quality=80, loop="pingpong")
    assert Encoding.of({}) == Encoding()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.in_effect(".webp", 5).recorded() == {"quality": 80, "loop": "pingpong"}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_records_and_replays_them(
    tmp_path: Path, narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "a.webp", tmp_path / "b.webp"
    model = ["--model", str(narrow), "--device", "cpu"]
    words = [*model, "red apple", "--steps", "1", "--frames", "3", "--fps", "24000/1001"]
    kinds = ["--quality", "60", "--loop", "pingpong"]
    assert main([*words, *kinds, "--out", str(out)]) == 0
    settings = read_settings(out)
    assert {name: settings[name] for name in ("fps", "quality", "loop")} == {
        "fps": "24000/1001",
        "quality": 60,
        "loop": "pingpong",
    }
    assert len(played(out)[0]) == 4
    assert main(["--replay", str(out), *model, "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert main([*words, *kinds, "--out", str(out), "--skip-existing"]) == 0
    assert main([*words, "--out", str(out), "--skip-existing"]) == 2
    assert "made with another quality, loop" in capsys.readouterr().err
    assert main(["--replay", str(out), *model, "--out", str(tmp_path / "c.png"), "--no-metadata"]) == 0
    assert "quality: no effect on .png" in capsys.readouterr().err
    assert not (tmp_path / "c.png.json").exists()
    assert len(played(tmp_path / "c.png")[0]) == 4


def test_a_short_clip_among_others_drops_its_own_loop_alone(
    tmp_path: Path, narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\nrocket --frames 2\nrose --frames 1\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--model", str(narrow), "--device", "cpu", "--steps", "1"]
    words += ["--frames", "3", "--loop", "pingpong", "--no-sheet", "--out", str(tmp_path / "a.webp")]
    assert main([*words, "--dry-run"]) == 0
    assert "loop: no effect on 2 clips of fewer than 3 frames" in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().err.count("loop: no effect") == 1
    assert [len(played(tmp_path / f"a-p{number}.webp")[0]) for number in (1, 2)] == [4, 2]
    assert [read_settings(tmp_path / f"a-p{number}.webp").get("loop") for number in (1, 2)] == ["pingpong", None]
    assert main([*words, "--skip-existing"]) == 0
    assert "3 of 3 clips are there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fps", "1/0"], "fps is 1/0: expected frames a second"),
        (["--fps", "1e999999999"], "fps is 1e999999999: expected frames a second"),  # at once
        (["--quality", "101"], "quality is 101"),
        (["--loop", "back", "--out", "a.webp"], "unknown loop 'back'"),
        (["--stream", "--loop", "pingpong"], "--loop pingpong needs all frames at once"),
        (["--stream", "--no-metadata"], "--no-metadata: a stream that is killed needs the settings"),
        (["--fps", "101/2"], "browsers play a GIF at 50 fps at most, got 101/2"),
    ],
)
def test_the_command_refuses_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["red apple", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
