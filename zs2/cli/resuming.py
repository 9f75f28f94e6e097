"""`--resumable` and `--resume`: where a stream goes on. What it keeps: sampling/resume.py, video/unfinished.py."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.cli.command import say
from zs2.cli.sample_requests import warn_of_revision
from zs2.errors import InputError, counted

if TYPE_CHECKING:
    from zs2.sampling.plan import SamplingPlan
    from zs2.sampling.resume import ResumeFile

FINISHED = -1  # instead of a number of frames
SHORTENED = {"frames", "prompt", "part_of"}  # the settings of a clip that differ in its beginning


def is_resumable(options: Mapping[str, Any]) -> bool:
    """Whether the stream is kept so that it can go on."""
    return "resumable" in options or "resume" in options


def check_resumable(options: Mapping[str, Any]) -> None:
    """Raise InputError for options that do not go with --resumable or --resume."""
    for name in ("resumable", "resume"):
        if name in options and "stream" not in options:
            raise InputError(f"--{name} is for streams: add --stream")
    if "resume" in options and "out" not in options:
        raise InputError("--resume needs the --out of the stream that goes on")
    if "resume" in options and "overwrite" in options:
        raise InputError("--resume and --overwrite: expected one, to go on or to begin anew")


def first_frame(plan: SamplingPlan, path: Path, file: ResumeFile, settings: dict[str, Any], resume: bool) -> int:
    """The frame from which a stream goes on; 0 if it begins; FINISHED if its clip is there.

    Args: settings: those of the whole clip. resume: whether to go on.
    Raises: InputError if the stream that is there is another one, or lacks frames, or if the disk has too little space.
    """
    from zs2.sampling.resume import differences, differing
    from zs2.system.free_memory import amount
    from zs2.video.formats import frame_file
    from zs2.video.outputs import existing, taken
    from zs2.video.unfinished import Unfinished

    work = Unfinished(path)
    there = _settings(path) if resume else None
    if there is not None and not work.is_resumable and {*differing(there, settings)} <= {"revision"}:
        warn_of_revision(path, there, settings)
        say(f"{path} is finished: {counted(plan.request.frames or 0, 'frame')}")
        return FINISHED
    file.settings = settings
    first = file.finished() if resume else 0
    if there is not None and (other := differences(*map(_without_length, (there, settings)))):
        raise InputError(f"{path} is another clip, with {other}, not the beginning of this one: choose another --out")
    if resume and existing(path) and not _is_part(there, settings):
        raise taken([path], path)
    if first:
        missing = next((i for i in range(first) if not frame_file(work.frames, i).is_file()), None)
        if missing is not None:
            raise InputError(f"{work.folder} lacks frame {missing} of {first}: begin anew with --overwrite")
        say(f"going on from frame {first} of {plan.request.frames}")
    elif resume:
        say(f"nothing to resume at {work.folder}: the clip begins")
    need, parent = plan.resume_bytes, next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free + (work.resume.stat().st_size if first else 0)
    if 2 * need > free:
        raise InputError(
            f"--resumable needs {amount(2 * need)} on the disk (a file of {amount(need)}, twice while it is replaced), "
            f"{amount(free)} are free: choose another place, or leave --resumable"
        )
    return first


def _is_part(there: dict[str, Any] | None, settings: dict[str, Any]) -> bool:
    """Whether a clip, by its settings, is the beginning of the one with these settings."""
    from zs2.sampling.resume import differing
    from zs2.video.unfinished import shortened

    if there is None or type(there.get("frames")) is not int:
        return False
    part = shortened(settings, there["frames"])
    return not differing({"part_of": part.get("part_of")} | there, part)  # clips of before do not say it


def _without_length(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a clip has in common with its beginning."""
    return {name: value for name, value in settings.items() if name not in SHORTENED}


def _settings(path: Path) -> dict[str, Any] | None:
    """The settings in a clip; None if there is none."""
    from zs2.video.clip import read_settings

    try:
        return read_settings(path)
    except InputError:
        return None
