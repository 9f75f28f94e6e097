"""An ablation study as a folder: what study.json says, and where clips and measures are. No torch here.

    DIR/study.json            what was asked: settings, prompts, seeds, cells
    DIR/clips/NAME.webp       a clip, lossless, and NAME.webp.json, its settings: where that is, it is whole
    DIR/inputs/NAME.webp      the clips and pictures that guide them, if there are any
    DIR/measures/NAME.json    its metrics, and the protocol that they were measured by

NAME is CELL_pPROMPT_sSEED, such as dnm-0.1_tma-0.98_p00_s0. No text of a prompt is part of a path. A study grows by
more cells, prompts and seeds. The settings that decide the clips in it stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from zs2.cli.command import program
from zs2.errors import InputError
from zs2.sampling.request import INPUTS
from zs2.study.cells import Cell, merge, reference
from zs2.study.prompts import Prompt
from zs2.study.stored import read_study
from zs2.system.atomic import write_json
from zs2.system.regular_files import check_regular
from zs2.video.outputs import check_output


class Job(NamedTuple):
    """One clip of a study."""

    cell: Cell
    prompt: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.cell.id}_p{self.prompt:02}_s{self.seed}"

    @property
    def key(self) -> tuple[str, int, int]:
        """The key of its measures: the id of its cell, prompt and seed."""
        return self.cell.id, self.prompt, self.seed


@dataclass(frozen=True)
class Study:
    """The content of study.json.

    Args:
        zs2, revision: the version that began it, and the revision of all its clips; see version.py.
        model: its name. weights: the SHA-256 of each part; None before the model is loaded.
        sampling: the sampling options of all clips, by name: see OPTIONS in sampling/request.py.
        width, height: of the pictures, in pixels. fps: frames a second of the clips, see `rate_text`.
        dtype: of the networks; `auto` before the model is loaded.
        chunk: how many frames are sampled at once.
        prompts, seeds, cells: each cell is sampled for each prompt and seed.
        full: the id of the cell that the others are compared with.
        lora: what was merged into the weights. embeddings: the textual inversions that were added.
        controlnet: the ControlNets that steer the clips.
        compile: whether the UNet is compiled.
        threads: of the CPU in the process that began the study, since the last bits of a clip depend on their number.
    """

    zs2: str
    model: str
    weights: dict[str, str] | None
    sampling: dict[str, Any]
    width: int
    height: int
    fps: int | str
    dtype: str
    chunk: int
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    full: str
    cells: tuple[Cell, ...]
    lora: list[dict[str, Any]] | None = None
    embeddings: list[dict[str, Any]] | None = None
    controlnet: list[dict[str, Any]] | None = None
    compile: bool = False
    threads: int | None = None
    revision: int | None = None

    @property
    def frames(self) -> int:
        """How many frames a clip has."""
        return int(self.sampling["frames"])

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that decide every clip. The others, GROWING, may change as the study goes on."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in GROWING}
        return self.sampling | {name: value for name, value in values.items() if name != "sampling"}

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Study:
        """The study in a folder. Raises: InputError if there is none, or study.json is not what `write` writes."""
        file = study_file(folder)
        if not os.path.exists(file):  # also a name that is too long
            raise InputError(f"{folder}: no study here (no study.json): {program('ablate')} makes one")
        try:
            return cls(**read_study(file))
        except InputError as error:
            raise InputError(f"{file}: this is not what zs2.ablate writes ({error}): give another folder") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write study.json, whole or not at all."""
        stored = asdict(self)
        stored["prompts"] = [
            {"text": one.text, "set": one.set} | ({"inputs": dict(one.inputs)} if one.inputs else {})
            for one in self.prompts
        ]
        write_json(study_file(folder), stored.pop("sampling") | stored)

    def jobs(self) -> Iterator[Job]:
        """All clips, in the order of work: an interrupted run has all cells of most pairs of seed and prompt."""
        for seed in self.seeds:
            for prompt in range(len(self.prompts)):
                for cell in self.cells:
                    yield Job(cell, prompt, seed)

    def shard(self, index: int, count: int) -> list[Job]:
        """The clips of one shard of `count`, index from 0. Each takes every count-th clip, of all cells alike."""
        cells = max(1, len(self.cells))
        return [job for i, job in enumerate(self.jobs()) if (i // cells + i % cells) % count == index]

    def with_more(self, asked: Study) -> Study:
        """This study together with what another run asks for.

        Raises: InputError that names what would change the meaning of the clips in it.
        """
        now_fixed = asked.fixed
        for name, was in self.fixed.items():
            now = now_fixed[name]
            if was != now:
                if name == "weights" and isinstance(was, dict) and isinstance(now, dict):
                    differ = [part for part in {**was, **now} if was.get(part) != now.get(part)]
                    raise InputError(f"the study's clips are of other weights ({', '.join(differ)} differ): {ANOTHER}")
                if name in INPUTS:
                    raise InputError(f"the study's clips have another {name} (its file or range differs): {ANOTHER}")
                raise InputError(f"{name} is {was!r} in this study, now {now!r}: {ANOTHER}")
        for i, (one, other) in enumerate(zip(self.prompts, asked.prompts, strict=False)):
            if one != other:
                raise InputError(
                    f"prompt {i} is {one} in this study, now {other}: add new ones at the end, or {ANOTHER}"
                )
        cells = tuple(merge((*self.cells, *asked.cells)))
        return replace(
            self,
            prompts=max(self.prompts, asked.prompts, key=len),
            seeds=(*self.seeds, *(seed for seed in asked.seeds if seed not in self.seeds)),
            full=reference(cells).id,
            cells=cells,
        )


# The model's name depends on its path, so only the weights are compared. The threads are those of the first process.
GROWING = ("zs2", "revision", "model", "prompts", "seeds", "full", "cells", "threads")
ANOTHER = "give another --out for another study"


def study_file(folder: str | os.PathLike[str]) -> Path:
    """DIR/study.json."""
    return Path(folder, "study.json")


def folders(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """DIR/clips and DIR/measures."""
    return Path(folder, "clips"), Path(folder, "measures")


def clip_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/clips/NAME.webp, which `Clip.open` reads."""
    return Path(folder, "clips", f"{name}.webp")


def check_folder(folder: Path) -> None:
    """Raise InputError if clips can't be written into a study's folder."""
    check_output(clip_file(folder, "any"), 1)


def record_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/clips/NAME.webp.json, the clip's settings. Where it is, the clip is whole. Older studies have NAME.json."""
    old = Path(folder, "clips", f"{name}.json")
    return old if old.exists() else Path(folder, "clips", f"{name}.webp.json")


def measures_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/measures/NAME.json."""
    return Path(folder, "measures", f"{name}.json")


def files_of(folder: Path) -> frozenset[str]:
    """The names in a folder, which may be missing. (To look for a million files one by one takes seconds.)"""
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def is_finished(folder: str | os.PathLike[str], name: str) -> bool:
    """Whether a clip is there, and as long as its file says: a machine that went down may have cut it short."""
    try:
        check_regular(clip_file(folder, name))
        with open(clip_file(folder, name), "rb") as file:
            head, length = file.read(8), file.seek(0, os.SEEK_END)
    except (FileNotFoundError, InputError):
        return False
    whole = length > 8 and length == 8 + int.from_bytes(head[4:], "little")  # RIFF
    return whole and record_file(folder, name).exists()
