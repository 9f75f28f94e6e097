"""A clip that is written while it is made, and never held: MP4 or a folder of PNG files, whole or not at all."""

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
from zs2.video.clip import SHEET_FRAMES, Clip, beside
from zs2.video.formats import Frames, png_text, remux_mp4, write_folder, write_mp4

STREAMED = (".mp4", "")


class UntilInterrupted:
    """Frames until they end, or until Ctrl-C (in the main thread). count: how many came. interrupted: whether it was.

    While a frame is being made Ctrl-C ends it at once; while one is being written, that is finished first.
    """

    def __init__(self, frames: Iterable[Frames]) -> None:
        self.frames, self.count, self.interrupted, self._making = frames, 0, False, False

    def __iter__(self) -> Iterator[Frames]:
        before = signal.signal(signal.SIGINT, self._signalled)
        frames = iter(self.frames)
        try:
            while not self.interrupted:
                self._making = True
                frame = next(frames, None)
                self._making = False
                if frame is None:
                    return
                self.count += 1
                yield frame
        except KeyboardInterrupt:
            if not self.interrupted:
                raise
        finally:
            self._making = False
            signal.signal(signal.SIGINT, before)

    def _signalled(self, *_: object) -> None:
        self.interrupted = True
        if self._making:
            raise KeyboardInterrupt


def save(
    frames: Iterable[Frames], total: int, path: Path, fps: int, settings: Callable[[], dict[str, Any]], *, sheet: bool
) -> tuple[list[Path], bool]:
    """Write frames (H, W, 3) as they come, as `Clip.save` would have: under temporary names until all is there.

    Ctrl-C ends the clip with the frames that are there; its settings say how many, and are those of the shorter clip.
    Whatever else is raised leaves no file. The sheet is made of at most 60 frames, which are kept until then.

    Args: total: how many there will be. settings: gives those of the whole clip, asked when the first frame is there.
    Returns: the paths written, and whether the clip is whole. Raises: KeyboardInterrupt if there is no frame yet.
    """
    until, kept = UntilInterrupted(frames), []
    shown = set(np.linspace(0, total - 1, min(total, SHEET_FRAMES)).round().astype(int).tolist())
    told: dict[str, Any] = {}

    def coming() -> Iterator[Frames]:
        for frame in until:
            if sheet and until.count - 1 in shown:
                kept.append(frame)
            yield frame
        if not until.count:
            raise KeyboardInterrupt

    def write(target: Path) -> None:
        writer, rewrite = (write_mp4, remux_mp4) if path.suffix else (write_folder, _rewrite_folder)
        others = coming()
        first = next(others)
        told.update(settings())
        writer(chain([first], others), fps, dumps(told), target)
        if until.count < total:
            told["frames"] = until.count
            if isinstance(told["prompt"], list):
                told["prompt"] = told["prompt"][: until.count]
            rewrite(target, dumps(told))

    def write_sheet(target: Path) -> None:
        Clip(np.stack(kept), fps, told).sheet().save(target, format="PNG", pnginfo=png_text(dumps(told)))

    def write_json(target: Path) -> None:
        target.write_bytes((dumps(told, indent=2, ensure_ascii=False) + "\n").encode())

    json_path, sheet_path = beside(path)
    jobs: dict[Path, Callable[[Path], object]] = {path: write}
    if sheet:
        jobs[sheet_path] = write_sheet
    jobs[json_path] = write_json
    write_all(jobs, record=json_path)
    return list(jobs), until.count == total


def _rewrite_folder(folder: Path, text: str) -> None:
    for file in folder.iterdir():
        with Image.open(file) as image:
            image.load()
        image.save(file, format="PNG", pnginfo=png_text(text))
