"""From the options of `python -m zs2.ablate` to the study that they ask for, and to a process's part of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL, is_hub_id
from zs2.errors import InputError, choose, whole
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, Method
from zs2.sampling.request import DEFAULTS, OPTIONS, Request
from zs2.study.cells import STUDY_LAM, STUDY_MU, Cell, grid, merge, preset, reference
from zs2.study.prompts import default_prompts, read_prompts
from zs2.study.study import Study
from zs2.system.devices import DTYPES
from zs2.version import __version__
from zs2.video.clip import FPS_MAX

METHOD = ("preset", "noise", "attn", "lam", "mu", "alpha")  # the options that choose cells
SAMPLING = tuple(name for name in OPTIONS if name != "frames")
SETTINGS = (*SAMPLING, "frames", "fps", "dtype")


def cells(given: Mapping[str, Any]) -> list[Cell]:
    """The cells of the presets and of the grid that are asked for.

    Raises: InputError for values out of range, and for several values where a preset takes one.
    """
    gridded = "noise" in given or "attn" in given
    presets = given.get("preset", [] if gridded else ["paper"])
    noise, attn = given.get("noise", ["dnm"]), given.get("attn", ["tma"])
    lam, mu, alpha = given.get("lam", [STUDY_LAM]), given.get("mu", [STUDY_MU]), given.get("alpha", [None])
    for a, m, n, x, y in product(attn, mu, noise, lam, alpha):
        Method(a, m, n, x, y)  # checks them
    for name, values in (("lam", lam), ("mu", mu)):
        if presets and len(values) > 1:
            hint = "a run of its own for the grid" if gridded else "--noise or --attn, for a grid"
            raise InputError(f"{name} has {len(values)} values: a preset takes one; give {hint}")
    if "alpha" in given and not gridded:
        raise InputError("alpha is of a grid: give --noise mixed or --noise progressive, too")
    found = [cell for name in presets for cell in preset(name, lam[0], mu[0])]
    effect = {
        "lam": "paper" in presets
        or "mu" in presets
        or (gridded and any("lam" in NOISE_MODELS[name].defaults for name in noise)),
        "mu": "paper" in presets
        or "lambda" in presets
        or (gridded and any("mu" in ATTENTION_KINDS[name].defaults for name in attn)),
        "alpha": any("alpha" in NOISE_MODELS[name].defaults for name in noise),
    }
    for name, used in effect.items():
        if name in given and not used:
            warnings.warn(f"{name} has no effect on these cells", stacklevel=2)
    return merge([*found, *(grid(noise, attn, lam, mu, alpha) if gridded else [])])


def plan(given: Mapping[str, Any], known: Study | None) -> Study:
    """The study that the options ask for; what they leave open is as in the study that is there, if one is.

    What only the model can say is as in that study, too, or else None and, for the size, 0.
    Raises: InputError for what can't be meant.
    """
    model = str(given.get("model", known.model if known else DEFAULT_MODEL))
    own = Path(model) == Path(DEFAULT_MODEL)
    if known and "model" not in given and not own and not is_hub_id(model):
        raise InputError(f"the study in {given['out']} is of the model {model!r}: give that with --model")
    if known and known.lora and "lora" not in given:
        raise InputError(f"the study in {given['out']} is of a model with LoRA: give the same with --lora")
    usual: dict[str, Any] = {**DEFAULTS, "fps": 8, "dtype": DTYPES[0]}
    if own:
        usual |= {"steps": 25, "guidance": 5.0}  # as its card says
    said = {name: given.get(name, getattr(known, name) if known else usual[name]) for name in SETTINGS}
    width, height = given.get("size", (known.width, known.height) if known else (0, 0))
    if "size" in given:
        whole("width", width, 1)
        whole("height", height, 1)
    prompts = given.get("prompts", known.prompts if known else default_prompts(model))
    if isinstance(prompts, str):
        prompts = read_prompts(prompts)
    seeds = given.get("seeds", known.seeds if known else (0, 1))
    chosen = list(known.cells) if known and not any(name in given for name in METHOD) else cells(given)
    frames = whole("frames", said["frames"], 1)
    rest = {name: said[name] for name in SAMPLING}
    for prompt, seed in product(prompts, seeds):
        checked = Request(prompt.text, frames=frames, seed=seed, **rest)
    for cell in chosen:
        Method(**cell.method).settings(checked.steps, from_latents=False)  # text2video-zero needs two steps
    return Study(
        zs2=__version__,
        model=model,
        weights=known.weights if known else None,
        frames=frames,
        **{name: getattr(checked, name) for name in SAMPLING},
        width=width,
        height=height,
        fps=whole("fps", said["fps"], 1, FPS_MAX),
        dtype=choose("dtype", said["dtype"], DTYPES),
        chunk=min(frames, whole("chunk", given.get("chunk", known.chunk if known else frames), 1)),
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        full=reference(chosen).id,
        cells=tuple(chosen),
        lora=known.lora if known else None,
    )


def division(given: Mapping[str, Any]) -> tuple[int, int]:
    """Which part of the work this process does, from 0, and of how many: --shard, divided again by torchrun."""
    index, count = given.get("shard", (0, 1))
    said = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = (int(value) for value in said.values())
        if not 0 <= rank < world:
            raise ValueError
    except ValueError:
        got = ", ".join(f"{name}={value}" for name, value in said.items())
        raise InputError(f"the environment has {got}: expected those of torchrun, or neither: unset them") from None
    return index * world + rank, count * world
