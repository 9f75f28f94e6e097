"""Clips laid out as VBench reads those of its custom mode (Huang et al. 2024, arXiv 2311.17982).

DIR/videos/0000.mp4, …   the clips, in the order in which they are named
DIR/prompts.json         {name: prompt}, for its option --prompt_file
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zs2.errors import InputError
from zs2.evaluation.measure import prompts_of
from zs2.system.atomic import write_json
from zs2.video.clip import Clip

CRF = 8  # of H.264: nearly without loss, since VBench scores flicker and quality


def lay_out(paths: Sequence[str], folder: str | Path) -> list[Path]:
    """Write lossless clips as MP4 files, and their prompts. All are opened before any is written.

    Returns: the folder of the clips, and the file of the prompts.
    Raises: InputError for a file that is no clip, a clip without a prompt or with several, and a folder that holds
        anything; or if MP4 can't be written.
    """
    videos, file = Path(folder, "videos"), Path(folder, "prompts.json")
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise InputError(f"{folder} is there: expected a new folder, or an empty one")
    prompts: dict[str, str] = {}
    for i, path in enumerate(paths):
        clip = Clip.open(path)
        texts = prompts_of(path, clip.settings, len(clip.frames))
        if len(set(texts)) > 1:
            raise InputError(f"{path}: it has several prompts, and VBench reads one a clip: leave it out")
        prompts[f"{i:04}.mp4"] = texts[0]
    videos.mkdir(parents=True, exist_ok=True)
    for name, path in zip(prompts, paths, strict=True):
        clip = Clip.open(path)
        clip.save(videos / name, json=False, crf=CRF)
    write_json(file, prompts)
    return [videos, file]
