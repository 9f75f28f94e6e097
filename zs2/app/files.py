"""Files: those of a clip that a visitor can keep, and those that a visitor drops to have a clip's settings again."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zs2.app.clip_options import FPS_MAX
from zs2.app.studio import Studio
from zs2.cli.derived_options import flag
from zs2.cli.replay import origin, replay_options
from zs2.errors import InputError, NotWritten, brief, collected, whole
from zs2.method import FILES, METHOD, Method
from zs2.sampling.request import INPUTS, OF_CONTROLNETS, OPTIONS, Request
from zs2.video.clip import Clip
from zs2.video.encoding import frame_rate
from zs2.video.reading import opened

KINDS = {  # the words on the button, and the end of the file's name
    "GIF": ".gif",
    "WebP (lossless)": ".webp",
    "MP4": ".mp4",
    "contact sheet": ".gif.sheet.png",
    "JSON": ".gif.json",
}
NOT_HERE = ("latents", *FILES)  # files that may decide a clip, and have no control on the page


def folder(root: Path, visitor: str) -> Path:
    """A visitor's folder. Its name can't lead elsewhere, whatever the visitor is called."""
    return root / hashlib.sha256(visitor.encode()).hexdigest()[:32]


def write(clip: Clip, root: Path, visitor: str) -> list[str | None]:
    """Write a clip's files into a folder of the visitor's, instead of those of the visitor's last clip.

    Returns: their paths in the order of KINDS; None for a format that can't hold the clip, or needs what is missing.
        They are all None if the visitor left meanwhile, which removes the folder.
    """
    place = folder(root, visitor)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    stem = name(clip)
    for ending in (".gif", ".webp", ".mp4"):
        try:
            clip.save(place / f"{stem}{ending}", sheet=ending == ".gif", json=ending == ".gif", overwrite=True)
        except InputError:  # an odd size, or no PyAV
            continue
        except NotWritten:  # a full disk, or no folder any more
            break
    paths = [place / f"{stem}{ending}" for ending in KINDS.values()]
    return [str(path) if path.exists() else None for path in paths]


def remove(root: Path, visitor: str) -> None:
    """Remove a visitor's files."""
    shutil.rmtree(folder(root, visitor), ignore_errors=True)


def name(clip: Clip) -> str:
    """The name of a clip's files, such as fox-face-s0."""
    words = re.sub(r"[^a-z0-9]+", "-", str(clip.settings.get("prompt", "")).lower()).strip("-")[:40]
    return f"{words or 'clip'}-s{clip.settings.get('seed') or 0}"


@dataclass(frozen=True)
class Recorded:
    """The settings of a clip.

    Args:
        prompt, seed, size (as 64x64), fps: of the clip.
        method, options: keywords of `Method` and of `Request`.
        notes: what may make another clip of them.
    """

    prompt: str
    seed: int
    size: str
    fps: int
    method: dict[str, Any]
    options: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, file: str, studio: Studio, model: str, inputs: Mapping[str, Any] | None = None) -> Recorded:
        """Read a file that zs2 made. model: the one that is chosen on the page. inputs: the files that are dropped.

        Raises: InputError for any other file, and for a clip that the page can't make.
        """
        found = replay_options(file, dict.fromkeys((*INPUTS, *NOT_HERE), ""))  # without an input it is filled in, too
        if not isinstance(prompt := found["prompt"], str):
            raise InputError("this clip has a prompt for each frame: this page has one; zs2 sample --replay makes it")
        recorded = found["recorded"]
        for name in NOT_HERE:
            if recorded[name] is not None:
                again = f"zs2 sample --replay FILE {flag(name)} {name.upper()}"
                raise InputError(
                    f"this clip was made with a {name} file: this page takes none; `{again}` makes it again"
                )
        if "part_of" in found:
            raise InputError(
                f"this clip is the beginning of one of {brief(found['part_of'])} frames, on which its noise depends: "
                "this page makes whole ones; `zs2 sample --replay FILE` makes it again"
            )
        unused = () if recorded["control"] is not None else OF_CONTROLNETS
        options = {name: found[name] for name in OPTIONS if name in found and name not in (*INPUTS, *unused)}
        method = {name: found[name] for name in METHOD if name in found and name not in FILES}
        width, height = (whole(name, side, 1) for name, side in zip(("width", "height"), found["size"], strict=True))
        with collected():  # of what has no effect: it is shown when the clip is made
            Method(**method)
            request = Request(prompt, **options, **stand_ins(recorded), seed=found["seed"][0])
        studio.limits.check(prompt, options | {"width": width, "height": height})
        rate = float(frame_rate(found["fps"]))
        fps = min(max(round(rate), 1), FPS_MAX)
        others = notes(recorded, studio, model, inputs or {})
        if fps != rate:
            others = (*others, f"{rate:g} frames per second: this page has whole numbers up to {FPS_MAX}")
        return cls(prompt, request.seed, f"{width}x{height}", fps, method, options, others)


def stand_ins(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A picture for each input of a clip's record, which fits a clip of any length: the settings are checked with it,
    because others, or none, may be dropped."""
    picture = np.zeros((1, 1, 3), np.uint8)
    found = {name: value for name in INPUTS if (value := recorded[name]) is not None}
    return {name: [picture] * len(one) if isinstance(one, list) else picture for name, one in found.items()}


def notes(recorded: dict[str, Any], studio: Studio, model: str, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between a clip's record and the page. inputs: the files that are dropped."""
    others = [what for what in ("lora", "embeddings", "vae") if recorded[what]]
    found = [f"made with {what}, which this page does not load: the clip will differ" for what in others]
    loaded = studio.ready(model)
    checkpoint = None if loaded is None else loaded.model.checkpoint
    if checkpoint is not None and recorded["weights"] != checkpoint.digests:
        name = brief(recorded["model"]).strip("'")
        found.append(f"made with other weights, those of {name}: the clip will differ{origin(recorded)}")
    if recorded["controlnet"]:
        found.append("made with a ControlNet: expected the same here, or the clip will differ")
    for name in INPUTS:
        record = opened(inputs[name], several=OPTIONS[name].several).record if name in inputs else None
        if recorded[name] != record:
            how = ("with a", "drop the same one") if record is None else ("with another", "drop that one")
            how = ("without a", "remove the one that is dropped") if recorded[name] is None else how
            found.append(f"made {how[0]} {name.replace('_', ' ')}: {how[1]}, or the clip will differ")
    return tuple(found)
