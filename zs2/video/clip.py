"""Clips: frames with the settings that made them. A clip is saved whole or not at all, and can be opened again."""

from __future__ import annotations

import base64
import io
import os
from functools import partial
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zs2.errors import InputError, brief, counted, did_you_mean
from zs2.system.json_files import parse_json
from zs2.system.regular_files import check_regular
from zs2.video.contact_sheet import contact_sheet
from zs2.video.encoding import FPS_MAX, Encoding, Rate, forward, frame_rate
from zs2.video.formats import (
    LOSSY,
    READERS,
    SETTINGS_MAX,
    WRITERS,
    Frames,
    frame_file,
    frames_in_time,
    read_frames,
    settings_file,
    true_ending,
    write_apng,
)
from zs2.video.metadata import png_text
from zs2.video.opening import check_repeats
from zs2.video.outputs import Output, check_output, is_frame_folder

SHOWN_WIDTH = 256  # pixels of a clip in a notebook, at most, if it is enlarged
SHOWN_BYTES = 64 * 2**20  # of the frames of a clip that plays in a notebook


class Clip:
    """A finished video.

    Args:
        frames: uint8 (F, H, W, 3), RGB, F ≥ 1.
        fps: frames a second, 0.01 to 1000, also a Fraction, or a text such as `24000/1001`.
        settings: how the clip was made, a JSON object. Every file of the clip stores it; `read_settings` reads it.
            Of `fps`, if it is there, `quality`, `crf` and `loop` a file stores its own values.
    Raises: InputError for any other frames, rate or settings.
    """

    def __init__(self, frames: Frames, fps: Rate | float | str = 8, settings: dict[str, Any] | None = None) -> None:
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
            got = f"{frames.dtype} of shape {frames.shape}"
            raise InputError(f"frames are {got}: expected a uint8 array (F, H, W, 3) of at least one RGB frame")
        self.frames = np.ascontiguousarray(frames)
        self.fps = frame_rate(fps)
        self.settings = _checked(settings)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Clip:
        """Open a clip that `Clip.save` wrote without loss: a .webp, .png or .apng file, or a folder of PNG files.

        The frames are those that were saved. A picture that lasts longer than one frame is repeated; a still picture is
        repeated as often as the `frames` of its settings say. The rate is the `fps` of the settings. Where the times in
        the file do not fit that rate, it is the slowest rate that they fit.

        Raises: InputError for GIF, MP4 and WebP with a quality, which are lossy, for what `Clip.save` did not write,
            and for pictures whose size is not the one in the settings, such as a contact sheet.
        """
        path = Path(path)
        ending = true_ending(path)
        if ending in LOSSY:
            again = f"zs2 sample --replay {path.name} --out {path.stem}.webp makes the clip again"
            raise InputError(
                f"{path}: {ending} is lossy: expected .webp, .png, .apng or a folder of PNG files; {again}"
            )
        settings = read_settings(path)
        if ending == ".json" or (path.is_dir() and not is_frame_folder(path)):
            raise InputError(f"{path}: no clip: expected .webp, .png, .apng or a folder 0000.png, 0001.png, …")
        if settings.get("quality") is not None:
            raise InputError(f"{path}: it is lossy, of quality {settings['quality']}: expected one without --quality")
        numbers = {key: value for key, value in settings.items() if type(value) is int}
        try:
            pictures, ends = read_frames(path)
        except Exception as error:  # a broken file makes a decoder raise anything
            raise InputError(f"{path}: can't be read ({error}): expected a clip of zs2") from error
        height, width = pictures.shape[1:3]
        if (numbers.get("height", height), numbers.get("width", width)) != (height, width):
            raise InputError(
                f"{path} is {width}x{height}, its settings say {numbers.get('width')}x{numbers.get('height')}: "
                "expected a clip as zs2 wrote it, not a contact sheet"
            )
        try:
            rates = [frame_rate(settings.get("fps"))]
        except InputError:
            rates = []
        if not ends:
            count = 1 if path.is_dir() else max(1, numbers.get("frames", 1))
            return cls(_repeated(path, pictures, [count] * len(pictures)), rates[0] if rates else 8, settings)
        for rate in (*rates, *range(1, FPS_MAX + 1)):
            if counts := frames_in_time(ends, rate):
                return cls(forward(_repeated(path, pictures, counts), settings), rate, settings)
        raise InputError(f"{path}: a picture in it lasts no time: expected a clip of zs2")

    def __repr__(self) -> str:
        count, height, width = self.frames.shape[:3]
        return f"Clip({counted(count, 'frame')} of {width}x{height} at {self.fps} fps)"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Any:
        """What a notebook shows: an animated PNG, enlarged if it is small; of a long clip its contact sheet.

        include, exclude: the arguments of IPython's protocol, not used.
        """
        content, width = io.BytesIO(), self.frames.shape[2]
        if self.frames.nbytes <= SHOWN_BYTES:
            write_apng(self.frames, Encoding(self.fps), "", content)
        else:
            self.sheet().save(content, format="PNG")
        picture = {"text/plain": repr(self), "image/png": base64.b64encode(content.getvalue()).decode()}
        return picture, {"image/png": {"width": width * max(1, SHOWN_WIDTH // width)}}

    def save(
        self,
        path: str | os.PathLike[str],
        sheet: bool = False,
        json: bool = True,
        overwrite: bool = False,
        *,
        quality: int | None = None,
        crf: int | None = None,
        loop: str | None = None,
        metadata: bool = True,
    ) -> list[Path]:
        """Write the clip, looping forever, in the format of the path's ending, and return the paths written.

            .gif         256 colours a frame, not dithered, because dither noise flickers. GIF counts hundredths of a
                         second: every frame starts at its time, rounded, so two frames may differ by one hundredth
            .webp        lossless, or with a quality lossy; time in milliseconds, rounded likewise
            .png, .apng  an animated PNG, lossless; time likewise
            .mp4         H.264 in 4:2:0, BT.709, so width and height must be even; needs `pip install 'zs2[video]'`
            (no ending)  a folder of 0000.png, 0001.png, …

        In GIF, WebP and animated PNG equal frames in a row become one picture that lasts as long (several, if that is
        longer than a picture can). A clip whose frames are all equal becomes a still picture; only GIF keeps its time.

        The same frames and settings give the same bytes. All files are written under temporary names before any is
        renamed, the JSON last: where there is a new JSON, the clip is whole.

        Args:
            json: also write the settings to a file of their own (clip.gif.json).
            sheet: also write a contact sheet (clip.gif.sheet.png).
            overwrite: whether files of these names are replaced. Of a folder, only an earlier clip is.
            quality: of a lossy WebP, 0 to 100.
            crf: of an MP4, 0 (best) to 51; 17 by default.
            loop: `pingpong` writes the frames back again, in the file only.
            metadata: whether the settings are in the files. Without them there is no JSON, no replay and no `open`.
        Raises: InputError as `check_output` does, for a value out of range, and for an odd size in MP4; OSError if
            writing fails.
        Warns: of an option without effect on this format.
        """
        encoding = Encoding(self.fps, quality, crf, loop, metadata)
        path = check_output(path, self.fps, overwrite=overwrite)
        return self.write(Output.at(path, overwrite=overwrite), encoding, sheet=sheet, json=json)

    def write(self, output: Output, encoding: Encoding | None = None, *, sheet: bool, json: bool = True) -> list[Path]:
        """Write the clip to an output that was checked; see `save`. Without an encoding, at the clip's rate."""
        ending = output.path.suffix.lower()
        encoding = (Encoding(self.fps) if encoding is None else encoding).in_effect(ending, len(self.frames))
        if ending == ".mp4" and (self.frames.shape[1] % 2 or self.frames.shape[2] % 2):
            raise InputError(
                f"{output.path}: MP4 needs an even width and height, got {self!r}: use .webp, .png or .gif"
            )
        settings = encoding.settings(self.settings)
        text = dumps(settings) if encoding.metadata else ""  # ASCII: no format can take it for another encoding
        return output.write(
            partial(WRITERS[ending], self.frames, encoding, text),
            partial(self.sheet().save, format="PNG", pnginfo=png_text(text)) if sheet else None,
            partial(Path.write_bytes, data=settings_file(settings)) if json and text else None,
        )

    def sheet(self, columns: int | None = None, tile: int | None = None) -> Image.Image:
        """The contact sheet, as `contact_sheet` describes it."""
        return contact_sheet(self.frames, columns, tile)


def _repeated(path: Path, pictures: Frames, counts: list[int]) -> Frames:
    """Pictures, each as often as it stands for a frame. Raises: InputError for more than a clip can hold."""
    try:
        check_repeats(sum(counts), *pictures.shape[:3])
    except ValueError as error:
        raise InputError(f"{path}: {error}: expected a clip of zs2") from error
    return pictures if max(counts) == 1 else np.repeat(pictures, counts, axis=0)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a clip, from its JSON or from the clip itself: any file or folder that `Clip.save` writes.

    Raises: InputError if there is no such file, or nothing in it that `Clip.save` could have written.
    """
    path = Path(path)
    file = frame_file(path, 0) if os.path.isdir(path) else path  # not Path.is_dir, which fails for a name too long
    ending = true_ending(file)
    if ending not in READERS:
        named = file.suffix.lower()
        what = f"its content is of another kind, {ending!r}" if named in READERS else f"unknown clip ending {named!r}"
        hint = "" if named in READERS else did_you_mean(named, tuple(READERS))
        raise InputError(f"{path}: {what}: expected one of {', '.join(READERS)}{hint}")
    if os.path.exists(file):
        check_regular(file)
    else:
        near = sorted(file.parent.glob("*.json")) if os.path.isdir(file.parent) else []
        hint = did_you_mean(str(file), [*map(str, near)], 0.8)
        raise InputError(f"{file}: no such file: expected a clip, or its JSON{hint}")
    try:
        text = READERS[ending](file)
    except InputError:
        raise
    except Exception as error:  # a broken file makes a decoder raise anything
        raise InputError(f"{path}: can't be read ({error}): expected a clip of zs2, or its JSON") from error
    try:
        if text is None or len(text) > SETTINGS_MAX:
            raise ValueError("none, or too long")
        return _checked(parse_json("they", text))
    except ValueError as error:
        raise InputError(f"{path}: no settings of zs2 in it ({error}): expected a clip of zs2, or its JSON") from error


def _checked(settings: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of the settings as JSON gives them back (tuples are lists, keys are strings)."""
    settings = {} if settings is None else settings
    try:
        text = dumps(settings, allow_nan=False)
        dumps(settings, ensure_ascii=False).encode()  # half a surrogate pair can't be written as UTF-8
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the settings can't be written as JSON ({error})") from error
    if not isinstance(settings, dict) or len(text) > SETTINGS_MAX:
        got = f"{brief(settings)}, {counted(len(text), 'character')}"
        raise InputError(f"the settings are {got}: expected a JSON object of at most {SETTINGS_MAX} characters")
    return dict(loads(text))
