"""The inputs of a study: the clips and pictures that guide all of its clips. No torch here.

    DIR/inputs/NAME.webp      the frames of an input that the clips had, at their size: for the report

study.json has their digests. To go on, a study needs the same inputs again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.sampling.request import INPUTS
from zs2.video.clip import Clip
from zs2.video.reading import InputClip, input_clip

if TYPE_CHECKING:
    from zs2.study.study import Study


def opened(options: Mapping[str, Any]) -> dict[str, InputClip]:
    """The inputs that the options name, opened. Raises: InputError for one that can't be read."""
    return {name: input_clip(options[name]) for name in INPUTS if name in options}


def input_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/inputs/NAME.webp."""
    return Path(folder, "inputs", f"{name}.webp")


def write_inputs(folder: str | os.PathLike[str], study: Study, clips: Mapping[str, InputClip]) -> None:
    """Write the frames of a study's inputs, each whole or not at all. What is there stays."""
    for name, clip in clips.items():
        file = input_file(folder, name)
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            frames = clip.frames(0, 1 if name == "first_frame" else study.frames, (study.height, study.width))
            Clip(frames, study.fps, {"fps": study.fps, "frames": study.frames}).save(file, json=False, overwrite=True)


def record_text(record: Mapping[str, Any]) -> str:
    """What study.json says of an input, as words."""
    first, end = record["range"] or (0, None)
    frames = "" if record["range"] is None else f", frames from {first}" + ("" if end is None else f" to {end - 1}")
    return f"SHA-256 {record['sha256'][:12]}{frames}"
