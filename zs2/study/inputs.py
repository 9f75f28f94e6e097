"""The inputs of a study: clips and pictures that guide all of its clips, or those of one prompt. No torch here.

    DIR/inputs/NAME.webp         the frames of an input that all clips had, at their size: for the report
    DIR/inputs/NAME_pPROMPT.webp likewise, of a prompt's own

study.json has their digests. To go on, a study needs the same inputs again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zs2.sampling.request import INPUTS, OPTIONS
from zs2.video import reading
from zs2.video.clip import Clip
from zs2.video.reading import InputClip, InputClips

if TYPE_CHECKING:
    from zs2.study.study import Study

AnyInput: TypeAlias = InputClip | InputClips
OWN = "prompt_inputs"  # among the options: {number of the prompt: {name: path}}


@dataclass(frozen=True)
class Inputs:
    """The inputs of a study by name, open: shared by all clips, and each prompt's own, by the number of the prompt."""

    shared: Mapping[str, AnyInput] = field(default_factory=dict)
    own: Mapping[int, Mapping[str, AnyInput]] = field(default_factory=dict)

    def of(self, prompt: int) -> dict[str, AnyInput]:
        """Those of a prompt's clips. Its own go before the shared ones."""
        return {**self.shared, **self.own.get(prompt, {})}


def opened(options: Mapping[str, Any]) -> Inputs:
    """The inputs that the options name. Raises: InputError for one that can't be read."""

    def clips(named: Mapping[str, Any]) -> dict[str, AnyInput]:
        return {name: reading.opened(value, several=OPTIONS[name].several) for name, value in named.items()}

    own = {i: clips(named) for i, named in options.get(OWN, {}).items()}
    return Inputs(clips({name: options[name] for name in INPUTS if name in options}), own)


def digest(clip: AnyInput) -> str:
    """The SHA-256 of an input and its range, as study.json has it for a prompt's own."""
    if isinstance(clip, InputClips):
        return "+".join(map(digest, clip))
    first, end = clip.range or (None, None)
    return clip.sha256 if clip.range is None else f"{clip.sha256}@{first}:{'' if end is None else end}"


def input_file(folder: str | os.PathLike[str], name: str, prompt: int) -> Path | None:
    """The file of an input of a prompt's clips: the prompt's own, or else the shared one; None if there is none."""
    files = [Path(folder, "inputs", f"{stem}.webp") for stem in (f"{name}_p{prompt:02}", name)]
    return next(filter(Path.exists, files), None)


def write_inputs(folder: str | os.PathLike[str], study: Study, inputs: Inputs) -> None:
    """Write the frames of a study's inputs, each whole or not at all. What is there stays."""
    for stem, clip in _named(inputs):
        file = Path(folder, "inputs", f"{stem}.webp")
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            count = 1 if stem.startswith("first_frame") else study.frames
            frames = clip.frames(0, count, (study.height, study.width))
            Clip(frames, study.fps, {"fps": study.fps, "frames": count}).save(file, json=False, overwrite=True)


def _named(inputs: Inputs) -> Iterator[tuple[str, AnyInput]]:
    yield from inputs.shared.items()
    for prompt, own in inputs.own.items():
        yield from ((f"{name}_p{prompt:02}", clip) for name, clip in own.items())


def record_text(record: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """What study.json says of an input, or of several, as words."""
    if not isinstance(record, Mapping):
        return "; ".join(map(record_text, record))
    first, end = record["range"] or (0, None)
    frames = "" if record["range"] is None else f", frames from {first}" + ("" if end is None else f" to {end - 1}")
    return f"SHA-256 {record['sha256'][:12]}{frames}"
