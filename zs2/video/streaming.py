"""Writing a clip while it is sampled, frame by frame, without holding it: MP4 or a folder of PNG files.

However a stream ends, its finished frames are a whole clip: by itself, by a signal, on a full disk, with too little
memory. Only a killed process leaves them unfinished, in the folder that unfinished.py describes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from zs2.errors import LostProcess
from zs2.system.stopping import Deferred
from zs2.video.contact_sheet import shown_frames
from zs2.video.encoding import Encoding
from zs2.video.formats import Frames
from zs2.video.outputs import Output
from zs2.video.unfinished import InUse, Unfinished, finish, shortened

STREAMED = (".mp4", "")  # endings of the formats that are written frame by frame


@dataclass(frozen=True)
class Saved:
    """How a stream was saved.

    files: the paths written. kept: where its frames are. count: how many there are.
    ended: what ended the stream before its end, or the signal that came while the whole clip was finished; else None.
    """

    files: list[Path]
    kept: Path
    count: int
    ended: BaseException | None


@contextlib.contextmanager
def begun(output: Output) -> Iterator[Unfinished]:
    """The folder of the unfinished clip, locked; of the next number, if another process has begun a clip of this one.

    Raises: InputError if another process is writing the clip.
    """
    with contextlib.ExitStack() as stack:
        path = output.name()
        while True:
            try:
                work = stack.enter_context(Unfinished(path))
                break
            except InUse:
                before, path = path, output.name()
                if path == before:
                    raise
        yield work


def save(
    frames: Iterable[Frames],
    total: int,
    output: Output,
    encoding: Encoding,
    settings: Callable[[], dict[str, Any]],
    *,
    sheet: bool,
    first: int = 0,
    resumable: bool = False,
) -> Saved:
    """Write frames (H, W, 3) as they come; the files are those of `Clip.save`.

    A signal ends the clip after the frames that came; while a frame is written, that is finished first. An error in
    sampling or writing ends it, too. The settings are then those of the shorter clip. After the end of another process
    of the group, and where the clip can't be finished, the frames stay in the folder of its name + `.part`.

    Args:
        total: how many frames the clip will have.
        encoding: of the file; the frames are in the order in which they come, and its settings are in it.
        settings: returns the settings of the whole clip. It is called when the first frame is there.
        sheet: also write a contact sheet, of at most 60 frames, which are held until the end.
        first: how many frames are there already, from a stream that is resumed; `frames` begins with the next.
        resumable: whether a stream that ends early stays resumable.
    Raises: what ended the stream, if there is no frame; InputError if another process is writing this clip.
    """
    shown, held = shown_frames(total), dict[int, Frames]()
    final: dict[str, Any] = {}  # the settings of the clip as it is written
    ended: BaseException | None = None
    with Deferred() as signals, begun(output) as work:
        if not first:
            work.clear()
        incoming, index = iter(frames), first
        try:
            while True:
                with signals.raising():
                    frame = next(incoming, None)
                if frame is None:
                    break
                if not final:
                    final = encoding.settings(settings())
                    work.begin(frame, encoding, dumps(final), resumable=resumable)
                work.add(index, frame)
                if sheet and index in shown:
                    held[index] = frame
                index += 1
        except (Exception, KeyboardInterrupt) as error:
            ended = error
        count = work.settle()
        if not count:
            work.remove()
            if ended is not None:
                raise ended
        if isinstance(ended, LostProcess):
            return Saved([], work.kept, count, ended)
        keep = resumable and count < total
        try:
            final = encoding.settings(shortened(final or settings(), count))
            files = finish(
                work,
                Output.at(work.target, overwrite=output.overwrite, instead=True),
                encoding,
                final,
                held,
                sheet=sheet,
                keep=keep,
                shown=shown,
            )
        except OSError as error:
            return Saved([], work.kept, count, ended or error)
        if not keep:
            work.remove()
    return Saved(files, files[0], count, signals.stopped if count == total else ended)
