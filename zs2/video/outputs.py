"""Where clips go: the names of their files, and the rule that nothing that is there is replaced unless asked for.

A clip may take minutes. So its name is checked before it is made, and again when its files are renamed: if another
process has taken the name meanwhile, the command gives the clip the next free one. Nothing is reserved in advance, so a
process that ends early leaves no name behind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL

from zs2.errors import InputError, did_you_mean
from zs2.system.atomic import check_writable, write_all
from zs2.system.own_files import is_own
from zs2.video.encoding import LONGEST, Rate, frame_rate
from zs2.video.formats import READERS, WRITERS, frame_file, pyav
from zs2.video.metadata import PNG_MARK

GIF_FPS_MAX = 50  # browsers slow a GIF frame of less than 20 ms down to 100 ms

Job = Callable[[Path], object]  # writes one file or folder to a path


@dataclass(frozen=True)
class Output:
    """The place of one clip: its file, or folder of PNG files, and those that go with it.

    Args:
        path: that of the clip, as far as it is known before it is written.
        name: returns the clip's path when its files are there to be renamed; called again if it has been taken.
        overwrite: whether what is there is replaced.
    """

    path: Path
    name: Callable[[], Path]
    overwrite: bool = False

    @classmethod
    def at(cls, path: Path, *, overwrite: bool = False, instead: bool = False) -> Output:
        """An output of this name. instead: take the next free name if it has been taken when the clip is written.

        Writing to it raises InputError if the name is taken otherwise.
        """

        def name() -> Path:
            if not overwrite and existing(path):
                if instead:
                    return free_name(path)
                raise taken([path], path)
            return path

        return cls(path, name, overwrite)

    def write(self, clip: Job, sheet: Job | None, settings: Job | None) -> list[Path]:
        """Write the files of a clip, its settings last, and return their paths. Raises: what the jobs raise; OSError.

        With `overwrite`, the JSON and the sheet of the clip that was there go, even if none is written in their place.
        """
        json_path, sheet_path = companions(self.path)
        jobs = {self.path: clip, sheet_path: sheet, json_path: settings}
        return write_all(
            {path: job for path, job in jobs.items() if job is not None},
            record=json_path if settings else None,
            choose=lambda: self.targets(sheet=sheet is not None, settings=settings is not None),
        )

    def targets(self, *, sheet: bool, settings: bool) -> Mapping[Path, bool]:
        """The paths of a clip's files when they are renamed, and whether what is there is replaced."""
        path = self.name()
        json_path, sheet_path = companions(path)
        wanted = {path: True, sheet_path: sheet, json_path: settings}
        for file, is_written in wanted.items():
            if self.overwrite and not is_written and goes_with(file, path):
                file.unlink()  # it describes the clip that goes
        return {file: self.overwrite for file, is_written in wanted.items() if is_written}


def companions(path: Path) -> tuple[Path, Path]:
    """The files that go with a clip: its JSON and its contact sheet. Two clips never share one."""
    return path.with_name(path.name + ".json"), path.with_name(path.name + ".sheet.png")


def existing(path: Path, names: Iterable[str] | None = None) -> Path | None:
    """The first file of a clip that is there. An empty folder is as good as none.

    names: those in its folder, if they are known.
    """
    for file in (path, *companions(path)):
        if file.name in names if names is not None else exists(file):
            if file == path and not path.suffix and path.is_dir() and not any(path.iterdir()):
                continue
            return file
    return None


def taken(there: Sequence[Path], base: Path) -> InputError:
    """The error that clips are there. base: the name that was asked for, without the suffixes of several clips."""
    others = f", and those of {len(there) - 1} other clips" * (len(there) > 1)
    return InputError(
        f"{existing(there[0]) or there[0]} is there{others}: expected a new name, such as {free_name(base)}; "
        "--overwrite (overwrite=True) replaces what is there"
    )


def free_name(path: Path) -> Path:
    """The next free name like this one: panda-2.gif for panda.gif, whatever its ending or what goes with it."""
    stem = re.sub(r"-\d{1,9}$", "", path.stem)
    names = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
    found = [re.match(rf"{re.escape(stem)}-(\d{{1,9}})(?!\d)", name, re.ASCII) for name in names]
    return path.with_name(f"{stem}-{max((int(m[1]) for m in found if m), default=1) + 1}{path.suffix}")


def next_number(folder: Path) -> int:
    """One more than the highest number that begins a name in a folder, such as 7 of 00007-s3.gif."""
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    return max((int(m[0]) for name in names if (m := re.match(r"\d{5,9}", name, re.ASCII))), default=0) + 1


def check_output(path: str | os.PathLike[str], fps: Rate, *, overwrite: bool = False) -> Path:
    """Check an output before its clip is sampled, leaving no trace, and return it as a Path.

    Raises: InputError for an unknown ending, a missing PyAV, a GIF faster than browsers play, an animated PNG slower
        than an old Pillow writes, a place that can't be written, a folder where a file should be or the reverse, a
        folder that holds anything but an earlier clip, and without `overwrite` for a clip that is there.
    """
    path = Path(path)
    if check_outputs([path], fps, path) and not overwrite:
        raise taken([path], path)
    return path


def check_outputs(paths: Sequence[Path], fps: Rate, base: Path) -> list[Path]:
    """Check the outputs of clips, all in one folder and with one ending, as `check_output` does with `overwrite`.

    However many there are, the folder is read once and written once.

    Args: base: the name without the suffixes of several clips.
    Returns: those of the clips that are there.
    """
    _check_format(base, fps)
    ending, folder = base.suffix.lower(), base.parent
    try:
        longest = max(paths, key=lambda path: len(os.fsencode(path.name)))
        exists(companions(longest)[1])  # raises for a name that is too long
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        for path in paths:
            for file in (path, *companions(path)):
                if file.name in names and file.is_dir() and (ending or file != path):
                    raise InputError(f"output {file} is a folder: expected a file or a new name; choose another name")
            if not ending and path.name in names and not is_frame_folder(path):
                raise InputError(
                    f"output {path} holds other things than a clip's frames: choose a new name, or add .gif"
                )
        parent = next(one for one in base.parents if os.path.lexists(one))
        if not parent.is_dir():
            raise InputError(f"output {base}: {parent} is not a folder: choose another place")
        check_writable(parent)
    except OSError as error:
        raise InputError(f"output {base} can't be written ({error.strerror or error}): choose another place") from error
    return [path for path in paths if existing(path, names)]


def _check_format(path: Path, fps: Rate) -> None:
    """Check a name and its ending. Raises: InputError as `check_output` does."""
    ending = path.suffix.lower()
    frame_rate(fps)
    if path.name == ".." or path.name.lower() in WRITERS:  # no name at all, or nothing but an ending
        raise InputError(f"output {str(path)!r} names no file: expected one such as clip.gif")
    if ending not in WRITERS:
        known = [one for one in WRITERS if one]
        folder = f"or none, which is a folder of PNG files{did_you_mean(ending, known)}"
        raise InputError(f"{path}: unknown output ending {ending!r}: expected one of {', '.join(known)}, {folder}")
    if ending == ".mp4":
        pyav()
    if ending == ".gif" and fps > GIF_FPS_MAX:
        raise InputError(
            f"{path}: browsers play a GIF at {GIF_FPS_MAX} fps at most, got {fps}: use .webp, .png or .mp4"
        )
    if ending in (".png", ".apng") and fps * LONGEST < 1000 and [*map(int, PIL.__version__.split(".")[:2])] < [12, 1]:
        raise InputError(
            f"{path}: Pillow {PIL.__version__} writes no picture of more than {LONGEST / 1000:g} s, got {fps} fps: use "
            ".webp or .gif, or Pillow 12.1"
        )


def exists(path: Path) -> bool:
    """Whether something has this name. Raises: OSError for a name that nothing can have, such as one too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder is an earlier clip and nothing else: 0000.png, 0001.png, …, each with settings in it."""
    files = set(folder.iterdir()) if folder.is_dir() else {folder}
    if files != {frame_file(folder, index) for index in range(len(files))}:
        return False
    return all(is_own(file, PNG_MARK) for file in files)


def goes_with(file: Path, clip: Path) -> bool:
    """Whether zs2 wrote the JSON or the sheet of a clip: its settings are the clip's, or name a version of zs2."""
    try:
        first = frame_file(clip, 0) if clip.is_dir() else clip
        settings, those = (json.loads(READERS[one.suffix.lower()](one) or "") for one in (file, first))
        return bool(settings == those or "zs2" in settings["versions"])
    except Exception:  # no such file, or a broken one
        return False
