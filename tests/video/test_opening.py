"""Pictures that say they are large, or many: they are refused before they are decoded."""

from __future__ import annotations

import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zs2.errors import InputError
from zs2.video.clip import Clip, read_settings
from zs2.video.opening import webp_size


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, pictures: int, settings: bytes = b'{"frames": 100000}') -> bytes:
    """A PNG of at most 200 bytes, whatever it says."""
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if pictures:
        parts += [chunk(b"acTL", struct.pack(">II", pictures, 0))]
        parts += [chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 8, 0, 0))]
    parts += [chunk(b"tEXt", b"zs2\0" + settings), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(width: int, height: int) -> bytes:
    content = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (width - 1).to_bytes(3, "little")
    content += (height - 1).to_bytes(3, "little") + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("many.png", png(64, 64, 100_000), "100000 pictures, which don't fit into its size"),
        ("large.png", png(2**30, 2**30, 0), "pixels"),
        ("wide.png", png(2**14, 2**13, 0), "16384x8192: expected at most 67108864 pixels"),
        ("large.webp", webp(16384, 16384), "16384x16384: expected at most 67108864 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_that_says_it_is_large_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError, match=words):
        Clip.open(tmp_path / name)
    assert time.process_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_a_still_that_stands_for_too_many_frames_is_refused(tmp_path):
    for frames in (10**5, 10**9, 2**62):
        (file,) = Clip(np.zeros((1, 64, 64, 3), np.uint8), 8, {"frames": frames}).save(
            tmp_path / f"{frames}.png", json=False
        )
        with pytest.raises(
            InputError,
            match=r"frames of 64x64 are more than 4 GiB|pictures are said to be 100000 frames, of more than 256 MiB",
        ):
            Clip.open(file)


def test_a_picture_that_lasts_for_hours_is_refused(tmp_path):
    """At 1000 frames a second its frames would be millions."""
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    options = {"save_all": True, "append_images": pictures[1:], "duration": [2**23 - 1, 1], "lossless": True}
    exif = Image.Exif()
    exif[0x010E] = '{"fps": 1000}'
    pictures[0].save(tmp_path / "x.webp", exif=exif, **options)
    with pytest.raises(InputError, match="8388608 frames of 64x64 are more than 4 GiB"):
        Clip.open(tmp_path / "x.webp")


def test_the_size_of_a_webp_is_in_its_head(tmp_path):
    for size in ((1, 1), (640, 3), (16383, 1)):
        for lossless in (True, False):
            Image.new("RGB", size).save(tmp_path / "x.webp", lossless=lossless)
            assert webp_size((tmp_path / "x.webp").read_bytes()[:32]) == size
        other = Image.new("RGB", size, "red")
        Image.new("RGB", size).save(tmp_path / "x.webp", save_all=True, append_images=[other], lossless=True)
        assert webp_size((tmp_path / "x.webp").read_bytes()[:32]) == size
    assert webp_size(png(3, 3, 0)[:32]) == (0, 0)


def test_what_is_no_regular_file_is_no_clip(tmp_path):
    Clip(np.zeros((2, 8, 8, 3), np.uint8), 8, {}).save(tmp_path / "clip")
    (tmp_path / "clip" / "0001.png").unlink()
    (tmp_path / "clip" / "0001.png").symlink_to("/dev/zero")
    (tmp_path / "x.webp").symlink_to("/dev/zero")
    begin = time.process_time()
    for path in ("clip", "x.webp"):
        with pytest.raises(InputError):
            Clip.open(tmp_path / path)
    with pytest.raises(InputError):
        read_settings(Path("/dev/zero"))
    assert time.process_time() - begin < 2
