"""Clips as input: a folder of pictures, GIF, WebP, PNG, a video by PyAV, one picture that is repeated, or an array.

The frames are read when they are needed, a range at a time, so an input may be longer than memory. What kinds of files
there are is in decoders.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from zs2.errors import InputError, brief, counted, warn
from zs2.system.regular_files import file_identity
from zs2.video.clip import Clip
from zs2.video.decoders import PICTURES, VIDEOS, Decoder, Memory, decoder, is_transparent, rgb
from zs2.video.formats import Frames
from zs2.video.resizing import Box, resized

Source: TypeAlias = str | os.PathLike[str] | Clip | Frames | Image.Image

RANGE = re.compile(r"(.+)@([0-9]{0,9}):([0-9]{0,9})", re.DOTALL)
KINDS = f"a folder of pictures, or {', '.join((*PICTURES, *VIDEOS))}"


class InputClip:
    """The frames of an input, read as they are needed.

    Args:
        source: a path, of which `FILE@10:34` takes the frames 10 to 33; a `Clip`; an array, uint8 (F, H, W, 3), or
            (H, W, 3) for one picture; or a picture of Pillow. A single picture stands for any number of frames.
    Attributes:
        name: for messages. count: the number of frames; None for one picture. shape: height and width.
        fps: frames a second; None if there is no time in it.
    Raises: InputError for anything else, and for a file that is missing or can't be read.
    Warns: once, if a picture is not opaque.
    """

    def __init__(self, source: Source) -> None:
        self.range: tuple[int, int | None] | None = None
        if isinstance(source, str | os.PathLike):
            self.name = os.fspath(source)
            path, self.range = _ranged(self.name)
            self._decoder = self._opened(path)
        else:
            self.name, self._decoder = type(source).__name__, _memory(source)
        self.count, self.shape, self.fps = self._decoder.count, self._decoder.shape, self._decoder.fps
        self._first = 0
        if self.range is not None:
            start, end = self.range
            if self.count is None:
                raise InputError(f"{self.name}: one picture has no range of frames: leave the range out")
            if not start < (self.count if end is None else end) <= self.count:
                raise InputError(f"{self.name}: of {counted(self.count, 'frame')}: expected a range within them")
            self._first, self.count = start, (self.count if end is None else end) - start
        self._before = [file_identity(file) for file in self._decoder.files]
        self._next = 0  # the index of the next frame of the file, and the frames from it on
        self._left: Iterator[Frames] = iter(())
        self._has_warned = False
        used = range(self._first, self._first + (1 if self.count is None else self.count))
        self._decoder.is_transparent |= any(index in used for index in self._decoder.clear)
        self._warn_of_transparency()

    def __repr__(self) -> str:
        return f"InputClip({self.name!r})"

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file; of a folder, that of the digests of its pictures; of an array, of its content."""
        if isinstance(self._decoder, Memory):
            array = self._decoder.array
            return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
        self._check_unchanged()  # also that all files are there
        digests = []
        for path in self._decoder.files:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        self._check_unchanged()
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What a clip's settings say of its input: the SHA-256, and the range of frames if there is one."""
        return {"sha256": self.sha256, "range": None if self.range is None else list(self.range)}

    def check_length(self, frames: int | None, what: str) -> None:
        """Raise InputError if the clip to make has more frames. what: the option that names this input."""
        if frames is not None and self.count is not None and self.count < frames:
            raise InputError(
                f"{what} {self.name} has {counted(self.count, 'frame')}, the clip has {frames}: expected at least as "
                f"many (give frames {self.count}, or a longer input)"
            )

    def fitting(self, size: tuple[int, int]) -> str:
        """How the frames are changed to this height and width, as words; empty if they have that size."""
        height, width = self.shape
        if (height, width) == size:
            return ""
        left, top, right, bottom = _middle(height, width, *size)
        cropped = round(right - left), round(bottom - top)
        crop = "" if cropped == (width, height) else f"its middle {cropped[0]}x{cropped[1]} is "
        return f"{self.name} is {width}x{height}: {crop}resized to {size[1]}x{size[0]}"

    def frames(self, first: int, count: int, size: tuple[int, int] | None = None) -> Frames:
        """`count` frames from the frame `first` on, uint8 (count, H, W, 3), RGB.

        size: the height and width to which they are resized, after the middle with that shape was cropped.
        Raises: InputError for a file that can't be read, that ends early, or that was changed after it was opened.
        """
        self._check_unchanged()
        if self.count is None:
            return np.stack([_fitted(self._frame(0), size)]).repeat(count, axis=0)
        return np.stack([_fitted(self._frame(self._first + i), size) for i in range(first, first + count)])

    def _frame(self, index: int) -> Frames:
        """A frame of the whole file. Reading goes on from the frame before, or begins again."""
        try:
            if not 0 < self._next <= index:
                self._next, self._left = self._decoder.begin(index)
            for _ in range(index - self._next):
                next(self._left, None)
            self._next, frame = index + 1, next(self._left, None)
            self._warn_of_transparency()
        except InputError:
            raise
        except Exception as error:  # a broken file makes a decoder raise anything
            raise InputError(f"{self.name}: frame {index} can't be read ({error}): expected {KINDS}") from error
        if frame is None:
            raise InputError(f"{self.name}: it ends before frame {index}: expected {counted(self.count or 1, 'frame')}")
        if frame.shape[:2] != self.shape:
            got, expected = ("x".join(map(str, shape[1::-1])) for shape in (frame.shape, self.shape))
            raise InputError(f"{self.name}: frame {index} is {got}: expected {expected}, as the first one")
        return frame

    def _warn_of_transparency(self) -> None:
        if self._decoder.is_transparent and not self._has_warned:
            self._has_warned = True
            warn(
                f"{self.name} is partly transparent: expected opaque pictures, so the colours beneath are used; lay it "
                "over a background first"
            )

    def _opened(self, path: str) -> Decoder:
        try:
            if not path:  # as a Path it would be the current folder
                raise FileNotFoundError(path)
            return decoder(Path(path))
        except FileNotFoundError as error:
            raise InputError(f"{self.name or repr(path)}: no such file: expected {KINDS}") from error
        except InputError:
            raise
        except Exception as error:  # a broken file makes a decoder raise anything
            raise InputError(f"{self.name}: can't be read ({error}): expected {KINDS}") from error

    def _check_unchanged(self) -> None:
        files = self._decoder.files
        changed = [path for path, before in zip(files, self._before, strict=True) if file_identity(path) != before]
        if changed:
            raise InputError(f"{changed[0]} was changed after it was opened: give the command again")


@dataclass(frozen=True)
class InputClips:
    """Several inputs of one option, which are used together."""

    clips: tuple[InputClip, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[InputClip]:
        return iter(self.clips)

    @property
    def count(self) -> int | None:
        """The number of frames of the shortest; None if all are single pictures."""
        return min((clip.count for clip in self if clip.count is not None), default=None)

    @property
    def record(self) -> list[dict[str, Any]]:
        """The record of each."""
        return [clip.record for clip in self]

    def check_length(self, frames: int | None, what: str) -> None:
        """As for one input."""
        for clip in self:
            clip.check_length(frames, what)

    def frames(self, first: int, count: int, size: tuple[int, int]) -> Frames:
        """Their frames side by side, uint8 (count, H, clips·W, 3)."""
        return np.concatenate([clip.frames(first, count, size) for clip in self], axis=2)

    def fitting(self, size: tuple[int, int]) -> str:
        """As for one input."""
        return "; ".join(filter(None, (clip.fitting(size) for clip in self)))


def opened(source: Any, *, several: bool = False) -> InputClip | InputClips:
    """An input, or several of one option: a list of sources, or one source. Raises: InputError as `InputClip` does."""
    if not several:
        return input_clip(source)
    if isinstance(source, InputClips):
        return source
    return InputClips(tuple(map(input_clip, source if isinstance(source, list | tuple) else [source])))


def input_clip(source: Source | InputClip) -> InputClip:
    """A source as an input clip: itself if it is one."""
    return source if isinstance(source, InputClip) else InputClip(source)


def _ranged(text: str) -> tuple[str, tuple[int, int | None] | None]:
    """The path and the range in `FILE@10:34`. A file of that very name wins."""
    match = None if os.path.lexists(text) else RANGE.fullmatch(text)
    if match is None:
        return text, None
    return match[1], (int(match[2] or 0), int(match[3]) if match[3] else None)


def _memory(source: Any) -> Memory:
    """The frames of a clip, a picture or an array. Raises: InputError for anything else."""
    fps, transparent = None, False
    if isinstance(source, Clip):
        source, fps = source.frames, float(source.fps)
    elif isinstance(source, Image.Image):
        transparent, source = is_transparent(source), rgb(source)
    if not isinstance(source, np.ndarray):
        raise InputError(f"{brief(source)}: expected a path, a Clip, a picture or an array")
    if source.dtype != np.uint8 or source.ndim not in (3, 4) or source.shape[-1] != 3 or not source.size:
        got = f"an array of {source.dtype} {source.shape}"
        raise InputError(f"{got}: expected uint8 (F, H, W, 3), or (H, W, 3) for one picture")
    return Memory(source, fps, is_transparent=transparent)


def _middle(height: int, width: int, new_height: int, new_width: int) -> Box:
    """The largest middle of a picture that has the shape of another."""
    scale = min(height / new_height, width / new_width)
    left, top = max((width - scale * new_width) / 2, 0), max((height - scale * new_height) / 2, 0)  # rounded up
    return left, top, width - left, height - top


def _fitted(frame: Frames, size: tuple[int, int] | None) -> Frames:
    if size is None or frame.shape[:2] == size:
        return frame
    box = _middle(frame.shape[0], frame.shape[1], *size)
    return resized(frame, size, Image.Resampling.LANCZOS, box)
