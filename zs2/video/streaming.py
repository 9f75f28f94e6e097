"""Writing a clip while it is sampled, frame by frame, without holding it: MP4 or a folder of PNG files."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zs2.system.atomic import write_all
from zs2.video.clip import Clip, companions
from zs2.video.contact_sheet import shown_frames
from zs2.video.formats import Frames, png_text, remux_mp4, write_folder, write_mp4

STREAMED = (".mp4", "")  # endings of the formats that are written frame by frame


class UntilInterrupted:
    """Frames until they end, or until Ctrl-C. Use it in the main thread.

    While a frame is being sampled, Ctrl-C ends it at once. While a frame is being written, it is finished first.

    Attributes: count: how many frames came. interrupted: whether Ctrl-C was pressed.
    """

    def __init__(self, frames: Iterable[Frames]) -> None:
        self.frames, self.count, self.interrupted, self._sampling = frames, 0, False, False

    def __iter__(self) -> Iterator[Frames]:
        before = signal.signal(signal.SIGINT, self._signalled)
        frames = iter(self.frames)
        try:
            while not self.interrupted:
                self._sampling = True
                frame = next(frames, None)
                self._sampling = False
                if frame is None:
                    return
                self.count += 1
                yield frame
        except KeyboardInterrupt:
            if not self.interrupted:
                raise
        finally:
            self._sampling = False
            signal.signal(signal.SIGINT, before)

    def _signalled(self, *_: object) -> None:
        self.interrupted = True
        if self._sampling:
            raise KeyboardInterrupt


def save(
    frames: Iterable[Frames], total: int, path: Path, fps: int, settings: Callable[[], dict[str, Any]], *, sheet: bool
) -> tuple[list[Path], bool]:
    """Write frames (H, W, 3) as they come; the files are those of `Clip.save`, under temporary names until the end.

    Ctrl-C ends the clip after the frames that came. Its settings are then those of the shorter clip. Any other error
    leaves no file.

    Args:
        total: how many frames there will be.
        settings: returns the settings of the whole clip. It is called when the first frame is there.
        sheet: also write a contact sheet, of at most 60 frames, which are held until the end.
    Returns: the paths written, and whether the clip is whole.
    Raises: KeyboardInterrupt if no frame came before Ctrl-C.
    """
    until = UntilInterrupted(frames)
    shown, held = set(shown_frames(total)), []
    final: dict[str, Any] = {}  # the settings of the clip as it is written

    def incoming() -> Iterator[Frames]:
        for frame in until:
            if sheet and until.count - 1 in shown:
                held.append(frame)
            yield frame
        if not until.count:
            raise KeyboardInterrupt

    def write_clip(target: Path) -> None:
        writer, rewrite = (write_mp4, remux_mp4) if path.suffix else (write_folder, _rewrite_folder)
        others = incoming()
        first = next(others)
        final.update(settings())
        writer(chain([first], others), fps, dumps(final), target)
        if until.count < total:
            final["frames"] = until.count
            if isinstance(final["prompt"], list):
                final["prompt"] = final["prompt"][: until.count]
            rewrite(target, dumps(final))

    def write_sheet(target: Path) -> None:
        Clip(np.stack(held), fps, final).sheet().save(target, format="PNG", pnginfo=png_text(dumps(final)))

    def write_settings(target: Path) -> None:
        target.write_bytes((dumps(final, indent=2, ensure_ascii=False) + "\n").encode())

    json_path, sheet_path = companions(path)
    jobs: dict[Path, Callable[[Path], object]] = {path: write_clip}
    if sheet:
        jobs[sheet_path] = write_sheet
    jobs[json_path] = write_settings
    write_all(jobs, record=json_path)
    return list(jobs), until.count == total


def _rewrite_folder(folder: Path, text: str) -> None:
    """Give a folder of PNG files other settings."""
    for file in folder.iterdir():
        with Image.open(file) as image:
            image.load()
        image.save(file, format="PNG", pnginfo=png_text(text))
