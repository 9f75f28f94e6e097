"""An ablation study as a folder: what study.json says, and where clips and measures are. No torch here.

    DIR/study.json            what was asked: settings, prompts, seeds, cells
    DIR/clips/NAME.webp       a clip, lossless, and NAME.json, its settings: where that is, the clip is whole
    DIR/measures/NAME.json    its metrics, with the protocol that they were taken by

NAME is CELL_pPROMPT_sSEED, such as dnm-0.1_tma-0.98_p00_s0; no text of a prompt stands in a path. A study grows by more
cells, prompts and seeds; what decides the clips that are there stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from zs2.errors import InputError
from zs2.study.cells import Cell, merge, reference
from zs2.study.prompts import Prompt
from zs2.system.atomic import write_json
from zs2.system.json_files import read_json


class Job(NamedTuple):
    """One clip of a study."""

    cell: Cell
    prompt: int
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.cell.id}_p{self.prompt:02}_s{self.seed}"

    @property
    def key(self) -> tuple[str, int, int]:
        """What its measures are called: the id of its cell, prompt and seed."""
        return self.cell.id, self.prompt, self.seed


@dataclass(frozen=True)
class Study:
    """What study.json says. The fields of FIXED decide every clip; prompts, seeds and cells may grow.

    full: the id of the cell that the others are compared with. chunk: how many frames are sampled at once.
    threads: of a CPU, which the last bits of a clip depend on: those of the process that began the study.
    """

    zs2: str  # the version that began it
    model: str
    weights: dict[str, str] | None  # SHA-256 of each part
    steps: int
    frames: int
    guidance: float
    width: int
    height: int
    fps: int
    dtype: str
    negative_prompt: str
    chunk: int
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    full: str
    cells: tuple[Cell, ...]
    lora: list[dict[str, Any]] | None = None
    threads: int | None = None
    sampler: str = "ddim"  # what studies do not say that were begun before there was a choice
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache: int = 1

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Study:
        """The study in a folder. Raises: InputError if there is none."""
        file = study_file(folder)
        if not file.exists():
            raise InputError(f"{folder}: no study here (no study.json): python -m zs2.ablate makes one")
        try:
            said = read_json(file)
            said["prompts"] = tuple(Prompt(**prompt) for prompt in said["prompts"])
            said["cells"] = tuple(Cell(**{**cell, "presets": tuple(cell["presets"])}) for cell in said["cells"])
            said["seeds"] = tuple(said["seeds"])
            if "guidance_interval" in said:
                said["guidance_interval"] = tuple(said["guidance_interval"])
            return cls(**said)
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{file}: this is not what zs2.ablate writes ({error}): give another folder") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write study.json, in one go."""
        write_json(study_file(folder), asdict(self))

    def jobs(self) -> Iterator[Job]:
        """All clips, in the order of work: an interrupted run has whole rows, comparable cells of a (seed, prompt)."""
        for seed in self.seeds:
            for prompt in range(len(self.prompts)):
                for cell in self.cells:
                    yield Job(cell, prompt, seed)

    def shard(self, index: int, count: int) -> list[Job]:
        """The clips of one shard of `count`, index from 0: every count-th, each shard with cells of all kinds."""
        cells = max(1, len(self.cells))
        return [job for i, job in enumerate(self.jobs()) if (i // cells + i % cells) % count == index]

    def with_more(self, asked: Study) -> Study:
        """This study and what another run asks for.

        Raises: InputError that names what would change the meaning of the clips that are there.
        """
        for name in FIXED:
            was, now = getattr(self, name), getattr(asked, name)
            if was != now:
                if isinstance(was, dict) and isinstance(now, dict):
                    differ = [part for part in {**was, **now} if was.get(part) != now.get(part)]
                    raise InputError(f"the study's clips are of other weights ({', '.join(differ)} differ): {ANOTHER}")
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


# The weights are compared, not the model's name, which is of a path. The threads are taken over.
GROWING = ("zs2", "model", "prompts", "seeds", "full", "cells", "threads")
FIXED = tuple(field.name for field in fields(Study) if field.name not in GROWING)
ANOTHER = "give another --out for another study"


def study_file(folder: str | os.PathLike[str]) -> Path:
    """DIR/study.json."""
    return Path(folder, "study.json")


def clip_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/clips/NAME.webp, which `Clip.open` reads."""
    return Path(folder, "clips", f"{name}.webp")


def record_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/clips/NAME.json, the clip's settings; where it is, the clip is whole."""
    return Path(folder, "clips", f"{name}.json")


def measures_file(folder: str | os.PathLike[str], name: str) -> Path:
    """DIR/measures/NAME.json."""
    return Path(folder, "measures", f"{name}.json")


def is_made(folder: str | os.PathLike[str], name: str) -> bool:
    """Whether a clip is there, and as long as its file says: a machine that went down may have cut it short."""
    try:
        with open(clip_file(folder, name), "rb") as file:
            head, length = file.read(8), file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return False
    whole = length > 8 and length == 8 + int.from_bytes(head[4:], "little")  # RIFF
    return whole and record_file(folder, name).exists()
