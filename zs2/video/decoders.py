"""The kinds of files that a clip is read from: pictures in a folder, animations, videos.

A file may be a stranger's: how large and how many its pictures are is checked before they are decoded. The decoders
raise anything for a broken file; reading.py makes one error of it.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zs2.errors import InputError
from zs2.system.json_files import parse_json
from zs2.system.regular_files import check_regular
from zs2.video.encoding import frame_rate
from zs2.video.formats import LEAST_BYTES, Frames, pyav, read_image, true_ending
from zs2.video.opening import PICTURE_MAX, check_bytes, check_repeats, open_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ANIMATED = ("PNG", "WEBP", "GIF")  # a phone's JPEG may hold other pictures, too: its first one is the picture
PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
VIDEOS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska"}  # FFmpeg's names
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")  # modes of more than 8 bits a channel, which Pillow would clip
MOST_FILES = 10**6  # of a folder
ORIENTATION = 0x0112  # in Exif


class Decoder(ABC):
    """The frames of some files.

    Attributes:
        count: the number of frames; None for one picture, which stands for any number.
        is_transparent: whether a picture that was decoded so far is not opaque.
        clear: the numbers of frames that are known not to be opaque before they are decoded.
        shape: height and width. fps: frames a second; None if there is no time in it. files: those that are read.
    """

    count: int | None = None
    fps: float | None = None
    is_transparent: bool = False
    clear: frozenset[int] = frozenset()
    shape: tuple[int, int]
    files: list[Path]

    @abstractmethod
    def begin(self, index: int) -> tuple[int, Iterator[Frames]]:
        """Frames in order, uint8 (H, W, 3), and the index of the first of them, which is at most `index`."""


class Pictures(Decoder):
    """The pictures in a folder, in the order of the numbers in their names; or one picture."""

    def __init__(self, path: Path) -> None:
        if os.path.isdir(path):
            self.files = _pictures(path)
            self.count = len(self.files)
        else:
            self.files = [path]
        with open_image(self.files[0], FORMATS) as image:
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            self.shape = image.size if turned else image.size[::-1]
            self.clear = frozenset([0] if self.count is None and is_transparent(image) else [])

    def begin(self, index: int) -> tuple[int, Iterator[Frames]]:
        """As in `Decoder`."""
        return index, (self._picture(self.files[i]) for i in range(index, len(self.files)))

    def _picture(self, path: Path) -> Frames:
        with open_image(path, FORMATS) as image:
            self.is_transparent |= is_transparent(image)
            return rgb(ImageOps.exif_transpose(image))


class Animation(Decoder):
    """The pictures of a GIF, WebP or PNG. One that lasts longer than a frame is repeated.

    The rate is that in the settings of a clip of zs2; in other files it follows from their times: see `paced`.
    """

    def __init__(self, path: Path) -> None:
        self.files = [path]
        with open_image(path, FORMATS) as image:
            number, size = getattr(image, "n_frames", 1), image.size
            if number * LEAST_BYTES > path.stat().st_size:
                raise ValueError(f"it says that it has {number} pictures, which don't fit into its size")
            self.shape = size[::-1]
            check_bytes(number, *self.shape)
            self.numbers = range(bool(image.info.get("default_image")), number)  # not the picture of other viewers
            lasting, seen = [], []  # milliseconds; whether each is transparent
            for index in self.numbers:
                image.seek(index)
                image.load()
                lasting.append(float(image.info.get("duration", 0)))
                seen.append(is_transparent(image))
            unit = 10 if image.format == "GIF" else 1
        self.fps, self.repeats = _own_rate(path), [1] * len(self.numbers)
        if self.fps is not None:
            self.repeats = _repeats(np.cumsum(lasting) * self.fps / 1000)
        elif min(lasting) > 0:
            time, frames = paced(np.array(lasting), unit)
            self.fps, self.repeats = 1000 / time, _repeats(np.cumsum(frames))
        self.count = sum(self.repeats)
        self.clear = frozenset(np.flatnonzero(np.repeat(seen, self.repeats)).tolist())
        check_repeats(self.count, len(self.numbers), *self.shape)

    def begin(self, index: int) -> tuple[int, Iterator[Frames]]:
        """As in `Decoder`."""
        return 0, chain.from_iterable(map(repeat, self._pictures(), self.repeats))

    def _pictures(self) -> Iterator[Frames]:
        with open_image(self.files[0], FORMATS) as image:
            for index in self.numbers:
                image.seek(index)
                yield rgb(image)


class Video(Decoder):
    """The pictures of a video that FFmpeg reads. kind: its name of the format."""

    def __init__(self, path: Path, kind: str) -> None:
        self.files, self.kind = [path], kind
        with self._container() as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > PICTURE_MAX:
                raise ValueError(f"it is {stream.width}x{stream.height}: expected at most {PICTURE_MAX} pixels")
            # A video that was cut without encoding it again also has packets that are decoded, but not shown.
            packets = (packet for packet in container.demux(stream) if packet.dts is not None)
            self.count = sum(1 for packet in packets if not packet.is_discard)
            self.fps = float(stream.average_rate) if stream.average_rate else None
        first = next(self._pictures(), None)
        if first is None:
            raise ValueError("no picture in it")
        self.shape = first.shape[0], first.shape[1]

    def begin(self, index: int) -> tuple[int, Iterator[Frames]]:
        """As in `Decoder`."""
        return 0, self._pictures()

    def _pictures(self) -> Iterator[Frames]:
        with self._container() as container:
            for frame in container.decode(video=0):
                if frame.width * frame.height > PICTURE_MAX:
                    raise ValueError(f"a picture is {frame.width}x{frame.height}")
                turns = getattr(frame, "rotation", 0) // 90
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))

    def _container(self) -> Any:
        # Without a format, FFmpeg would take a playlist for a video and open the files that it names.
        return pyav().open(str(self.files[0].absolute()), format=self.kind)


class Memory(Decoder):
    """An array, uint8 (F, H, W, 3), or (H, W, 3) for one picture."""

    def __init__(self, array: Frames, fps: float | None = None, *, is_transparent: bool = False) -> None:
        self.count = len(array) if array.ndim == 4 else None
        self.array = np.ascontiguousarray(array if array.ndim == 4 else array[None])
        self.shape, self.fps, self.files = self.array.shape[1:3], fps, []
        self.is_transparent = is_transparent

    def begin(self, index: int) -> tuple[int, Iterator[Frames]]:
        """As in `Decoder`."""
        return index, iter(self.array[index:])


def decoder(path: Path) -> Decoder:
    """The decoder of a file or folder. Raises: InputError for no regular file; what a decoder raises."""
    if not os.path.isdir(path):
        check_regular(path)
        if kind := VIDEOS.get(true_ending(path)):
            return Video(path, kind)
        with open_image(path, FORMATS) as image:
            if image.format in ANIMATED and getattr(image, "n_frames", 1) > 1:
                return Animation(path)
    return Pictures(path)


def paced(lasting: NDArray[np.float64], unit: int) -> tuple[float, NDArray[np.float64]]:
    """The time of one frame, and how many frames each picture of an animation lasts, perhaps a fraction.

    A file counts time in whole units. Pictures that last as long as the shortest one, to a unit, are one frame each: at
    30 frames a second a GIF has 30, 30, 40, … ms. If all pictures fit one rate, to a unit, they last whole frames.

    lasting: how long each picture is shown, in ms, above 0. unit: ms.
    """
    near = lasting <= lasting.min() + unit
    time = float(lasting[near].mean())
    whole = np.where(near, 1.0, np.round(lasting / time))
    even = float(lasting.sum() / whole.sum())  # `time` is off where held pictures have more of the long frames
    if np.abs(lasting - whole * even).max() <= unit:
        return even, whole
    return time, np.where(near, 1.0, lasting / time)


def _repeats(ends: NDArray[np.float64]) -> list[int]:
    """How often each picture is a frame, at least once. ends: when it ends, in frames, perhaps between two."""
    repeats: list[int] = np.maximum(np.diff(np.round(ends).astype(np.int64), prepend=0), 1).tolist()
    return repeats


def is_transparent(image: Image.Image) -> bool:
    """Whether some of a picture is not opaque. That of an animation is composed of those before it."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def rgb(image: Image.Image) -> Frames:
    """A picture as uint8 (H, W, 3), as if it were opaque. Raises: ValueError for more than 8 bits a channel."""
    if image.mode in DEEP:
        raise ValueError(f"its mode is {image.mode}: expected 8 bits a channel")
    opaque = image.convert("RGBA") if image.mode == "P" else image  # Pillow warns of a palette with transparency
    return np.asarray(opaque.convert("RGB"))


def _pictures(folder: Path) -> list[Path]:
    # Sorted by name first, so that 1.png and 01.png, which count as equal below, have an order.
    names = [name for name in sorted(os.listdir(folder)) if Path(name).suffix.lower() in PICTURES and name[0] != "."]
    if not 1 <= len(names) <= MOST_FILES:
        raise InputError(f"{folder}: {len(names)} pictures in it: expected from 1 to {MOST_FILES}")

    def order(name: str) -> list[Any]:
        parts = re.split(r"([0-9]{1,18})", name)  # texts and numbers in turns
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return [folder / name for name in sorted(names, key=order)]


def _own_rate(path: Path) -> float | None:
    try:
        return float(frame_rate(parse_json("they", read_image(path) or "{}").get("fps")))
    except ValueError:
        return None
