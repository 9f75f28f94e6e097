"""The folder of a clip that is being streamed: `clip.mp4.part`, beside where the clip will be.

    .zs2-lock            its process holds it locked, so that a living one can be told from a dead one
    clip.mp4             the clip so far, playable at any moment but for its last frame (fragmented)
    .zs2-whole           the same in the encoding that the clip will have; no MP4 before its end
    clip/0000.png …      the frames so far, if the clip is a folder of PNG files, or can be resumed
    resume.safetensors   with --resumable: the states to go on from; see sampling/resume.py
    .zs2-spare           bytes to give up when the disk is full, so that the clip can be finished
    .zs2-ready, …        the finished files, for a moment, and what they replace

The folder goes when the clip is finished. A killed process leaves it, and a stopped one if the clip can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from json import dumps
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from zs2.errors import InputError, warn
from zs2.method import NOISE_MODELS
from zs2.system.atomic import SUFFIX, NoLocks, rename_all, try_lock, writing
from zs2.video.clip import Clip
from zs2.video.encoding import Encoding
from zs2.video.formats import (
    Frames,
    Mp4Writer,
    count_mp4,
    frame_file,
    remux_mp4,
    settings_file,
    write_mp4,
    write_png,
)
from zs2.video.metadata import png_text, with_png_text
from zs2.video.outputs import Output, companions

RESUME = "resume.safetensors"
OWN = ".zs2-"  # begins the names in the folder that no clip has
OWN_LOCK = f"{OWN}lock"
SPARE = 1 << 16  # bytes, besides those of one frame


class InUse(InputError):
    """Another process is writing this clip."""


class Unfinished:
    """The folder of one clip. Use it in `with` to write: the folder is then made, and locked.

    Args: target: the clip's path.
    Attributes: folder: the folder. frames: that of the PNG files. resume: the file of the states.
    Raises: InputError if another process is writing the clip.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(target.name + SUFFIX)
        self.frames, self.resume = self.folder / target.stem, self.folder / RESUME
        self._playable, self._whole = self.folder / target.name, self.folder / f"{OWN}whole"
        self._part, self._spare = self.folder / f"{OWN}frame", self.folder / f"{OWN}spare"
        self._writers: list[Mp4Writer] = []
        self._text = ""  # the settings in what was written here; before `begin`, none
        self._failed = False
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Unfinished:
        with writing(self.target), contextlib.suppress(NoLocks):
            while self._lock is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = try_lock(self.folder / OWN_LOCK)
                if self._lock is None and self.folder.is_dir():
                    raise InUse(f"{self.folder}: another process is writing this clip: choose another --out")
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove all that is in the folder but the lock."""
        for path in sorted(self.folder.iterdir()):
            if path.name != OWN_LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def is_ours(self) -> bool:
        """Whether the folder holds what is listed above, and nothing else."""
        known = {self.target.stem, self.target.name, RESUME, RESUME + SUFFIX}
        known |= {OWN + name for name in ("lock", "whole", "spare", "frame", "ready", "sheet", "json", "old")}
        return (self.folder / OWN_LOCK).is_file() and {path.name for path in self.folder.iterdir()} <= known

    @property
    def is_alive(self) -> bool:
        """Whether a process is writing it now."""
        try:
            lock = try_lock(self.folder / OWN_LOCK)
        except NoLocks:
            return False
        if lock is not None:
            lock.close()
        return lock is None

    @property
    def is_resumable(self) -> bool:
        """Whether a stream can go on from it."""
        return self.resume.is_file()

    @property
    def kept(self) -> Path:
        """Where the frames so far are: an MP4, or a folder of PNG files."""
        return self._playable if self._playable.is_file() else self.frames

    def count(self) -> int:
        """How many whole frames are in it."""
        if self._playable.is_file():
            return count_mp4(self._playable)
        count = 0
        while frame_file(self.frames, count).is_file():
            count += 1
        return count

    def read(self, index: int) -> Frames:
        """A frame (H, W, 3) of the PNG files."""
        with Image.open(frame_file(self.frames, index), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))

    # --- writing ------------------------------------------------------------------------------------------------------

    def begin(self, frame: Frames, encoding: Encoding, text: str, *, resumable: bool) -> None:
        """Prepare for frames like this one. text: the settings of the whole clip."""
        self._text = text
        with contextlib.suppress(OSError):  # no room at all, or a limit on the size of a file
            self._spare.write_bytes(os.urandom(frame.nbytes + SPARE))
        with writing(self.target):
            if self.target.suffix and not resumable:
                self._writers.append(Mp4Writer(self._playable, encoding, text, fragmented=True))
                self._writers.append(Mp4Writer(self._whole, encoding, text))
            else:
                self.frames.mkdir(exist_ok=True)

    def add(self, index: int, frame: Frames) -> None:
        """Write a frame. Raises: NotWritten, and what an allocator raises."""
        try:
            with writing(self.target):
                for writer in self._writers:
                    writer.add(frame)
                if not self._writers:
                    write_png(frame, self._text, self._part)
                    os.replace(self._part, frame_file(self.frames, index))
        except BaseException:
            self._failed = True
            raise

    def settle(self) -> int:
        """End the writing, make room on a full disk, and return how many frames there are. Raises: OSError."""
        for path in (self._spare, self._part):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / f"{OWN}old", ignore_errors=True)
        if self._writers and not self._failed:
            with contextlib.suppress(OSError):
                self._writers[1].flush()
                self._writers[1].container.close()
                return self._writers[1].count
        self._whole.unlink(missing_ok=True)
        self._close()
        return self.count()

    def _close(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError, ValueError):
                writer.container.close()
        self._writers.clear()

    def prepare(self, encoding: Encoding, count: int, text: str, *, keep: bool) -> Path:
        """Make the clip of the first `count` frames in this folder, after `settle`.

        Args: text: its settings. keep: whether the frames stay, so that the clip can be resumed.
        Returns: where it is. Raises: OSError.
        """
        ready = self.folder / f"{OWN}ready"
        shutil.rmtree(ready, ignore_errors=True) if ready.is_dir() else ready.unlink(missing_ok=True)
        same = self._text == text
        if self.target.suffix and self.frames.is_dir():
            write_mp4(map(self.read, range(count)), encoding, text, ready)
        elif self.target.suffix:
            source = self._whole if self._whole.is_file() else self._playable
            if same and source == self._whole:
                return source
            remux_mp4(source, text, ready)
        elif same and not keep:
            return self.frames
        else:
            folder = ready if keep else self.frames
            folder.mkdir(exist_ok=True)
            for index in range(count):
                file = frame_file(self.frames, index)
                self._part.write_bytes(with_png_text(file.read_bytes(), text))
                os.replace(self._part, frame_file(folder, index))
            return folder
        return ready


def shortened(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """The settings of a clip's first `count` frames.

    Where noises depend on the number of frames, or latents were given for all, `part_of` says how many those are.
    """
    if count == settings["frames"]:
        return settings
    prompt = settings["prompt"]
    if isinstance(prompt, list):
        prompt = prompt[:count]
    elif isinstance(prompt, dict):  # a schedule, by frame; of later frames the next one counts if it is interpolated
        keys, is_linear = [*prompt], settings.get("travel_mode") != "cut"
        kept = [key for before, key in pairwise(keys) if int(key) < count or (is_linear and int(before) < count - 1)]
        prompt = {key: prompt[key] for key in keys[:1] + kept}
    short, noise = settings | {"frames": count, "prompt": prompt}, settings.get("noise")
    needs_frames = noise is not None and (noise not in NOISE_MODELS or NOISE_MODELS[noise].needs_frames)
    if needs_frames or settings.get("latents") is not None:
        short["part_of"] = settings.get("part_of") or settings["frames"]
    return short


def finish(
    work: Unfinished,
    output: Output,
    encoding: Encoding,
    final: dict[str, Any],
    held: dict[int, Frames],
    *,
    sheet: bool,
    keep: bool,
    shown: Sequence[int] = (),
) -> list[Path]:
    """Make the clip of all frames in its folder. All files are there before the first is renamed.

    Args:
        output: where the clip goes.
        final: the clip's settings.
        sheet: also make a contact sheet, of the frames `shown`, of which some are held.
        keep: leave all in the folder, so that the clip can be resumed.
    Returns: the paths written. Raises: NotWritten. Warns of a sheet that can't be written.
    """
    count, text = final["frames"], dumps(final)
    with writing(work.target):
        ready = {work.target: work.prepare(encoding, count, text, keep=keep)}
    json_path, sheet_path = companions(work.target)
    tiles = [held[index] if index in held else work.read(index) for index in shown if sheet and index < count]
    if tiles:
        image, sheet_file = Clip(np.stack(tiles), encoding.fps, final).sheet(), work.folder / f"{OWN}sheet"
        try:
            image.save(sheet_file, format="PNG", pnginfo=png_text(text))
            ready[sheet_path] = sheet_file
        except OSError as error:  # a full disk, say, that still has room for the rest
            warn(f"{sheet_path} can't be written ({error.strerror or error})")
            sheet_file.unlink(missing_ok=True)
    ready[json_path] = work.folder / f"{OWN}json"
    with writing(json_path):
        ready[json_path].write_bytes(settings_file(final))
        (work.folder / f"{OWN}old").mkdir()
    return rename_all(
        ready, work.folder / f"{OWN}old", json_path, lambda: output.targets(sheet=sheet_path in ready, settings=True)
    )
