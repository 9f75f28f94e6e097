"""Opening pictures that a stranger may have made: how large they are is known before they are decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from zs2.system.regular_files import check_regular

PICTURE_MAX = 2**26  # pixels of a picture that is opened: 8192²
CLIP_MAX = 2**32  # bytes of the frames of a clip that is opened
# Of those of a clip whose pictures last longer than one frame; or 16 times its pictures, if that is more.
REPEATED_MAX = 2**28


def check_bytes(count: int, height: int, width: int) -> None:
    """Raise ValueError if so many frames are more than a clip can hold in memory."""
    if count * height * width * 3 > CLIP_MAX:
        raise ValueError(f"{count} frames of {width}x{height} are more than {CLIP_MAX >> 30} GiB")


def check_repeats(count: int, pictures: int, height: int, width: int) -> None:
    """Raise ValueError if a few pictures stand for more frames than a clip can hold, or for very many."""
    check_bytes(count, height, width)
    if count * height * width * 3 > max(REPEATED_MAX, 16 * pictures * height * width * 3):
        raise ValueError(
            f"its {pictures} pictures are said to be {count} frames, of more than {REPEATED_MAX >> 20} MiB"
        )


def open_image(path: Path, formats: tuple[str, ...]) -> Image.Image:
    """Open a picture, whose size is checked before it is decoded. Raises: ValueError; InputError for no regular file;
    what Pillow raises for a broken file."""
    check_regular(path)
    with open(path, "rb") as file:
        _check_size(*webp_size(file.read(32)))  # Pillow decodes a WebP file when it opens it
    image = Image.open(path, formats=formats)
    _check_size(*image.size)
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > PICTURE_MAX:
        raise ValueError(f"it is {width}x{height}: expected at most {PICTURE_MAX} pixels")


def webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of a WebP file, from its first 32 bytes; (0, 0) for another file.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
