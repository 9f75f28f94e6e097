"""What dead processes left where clips are about to be written: it is named, and cleared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zs2.errors import InputError, counted
from zs2.system.atomic import SUFFIX, remove_unfinished
from zs2.video.clip import read_settings
from zs2.video.encoding import Encoding
from zs2.video.outputs import Output, companions, existing
from zs2.video.unfinished import OWN, Unfinished, finish, shortened


def clear_leftovers(targets: Sequence[Path], *, resume: bool = False, overwrite: bool = False) -> list[str]:
    """Clear what dead processes left where clips are about to be written.

    Temporary files go. So does the folder of an unfinished clip that is a target, if it can't be resumed. Another
    clip's finished frames become that clip.

    Args: resume, overwrite: whether unfinished clips that can be resumed go on, or go.
    Returns: what was there and what became of it, a line each.
    Raises: InputError for a target that another process is writing, or that can be resumed and is not asked to.
    """
    lines = [line for target in targets if (line := _cleared(Unfinished(target), resume, overwrite))]
    for folder in sorted({target.parent for target in targets}):
        lines += [f"removed {path}, which a killed process left" for path in remove_unfinished(folder)]
        for path in sorted(folder.glob(f"?*{SUFFIX}")):
            work = Unfinished(path.with_name(path.name.removesuffix(SUFFIX)))
            if work.target not in targets and work.is_ours and not work.is_alive:
                lines.append(_rescued(work))
    return lines


def _cleared(work: Unfinished, resume: bool, overwrite: bool) -> str:
    """Clear the folder of a clip that is about to be written. Returns: what was done, or nothing."""
    if not os.path.lexists(work.folder):
        return ""
    if not work.is_ours and not (work.folder.is_dir() and not any(work.folder.iterdir())):
        raise InputError(f"{work.folder} is in the way, and not an unfinished clip: choose another --out")
    if work.is_alive:
        raise InputError(f"another process is writing {work.target}, in {work.folder}: choose another --out")
    _complete(work)
    what = f"the first {counted(work.count(), 'frame')} of a clip"
    if work.is_resumable and not resume and not overwrite:
        raise InputError(f"{work.folder} has {what}: go on with --resume, or begin anew with --overwrite")
    if work.is_resumable and not overwrite:
        return ""
    work.remove()
    return f"removed {work.folder}, which a killed process left, with {what}"


def _complete(work: Unfinished) -> None:
    """Rename the settings and the sheet of a clip whose process was killed when it had renamed the clip alone."""
    json_path, sheet_path = companions(work.target)
    for source, target in ((work.folder / f"{OWN}sheet", sheet_path), (work.folder / f"{OWN}json", json_path)):
        if source.is_file() and os.path.lexists(work.target) and not os.path.lexists(json_path):
            os.replace(source, target)


def _rescued(work: Unfinished) -> str:
    """Make a clip of the frames that a dead process left, if nothing has its name. Returns: what was done."""
    _complete(work)
    count = work.count()
    frames = counted(count, "frame")
    if work.is_resumable and count:
        return f"{work.folder} has the first {frames} of a clip: go on with --resume, or delete it"
    if not count:
        work.remove()
        return f"removed {work.folder}, which a killed process left, without frames"
    if existing(work.target):
        return f"{work.folder}, which a killed process left, has {frames} in {work.kept}: move or delete it"
    try:
        with work:
            settings = shortened(read_settings(work.kept), work.settle())
            finish(work, Output.at(work.target), Encoding.of(settings), settings, {}, sheet=False, keep=False)
        work.remove()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{work.folder}, which a killed process left, can't be made a clip ({error}): move or delete it"
    return f"{work.folder}, which a killed process left, is now {work.target}: {frames}"
