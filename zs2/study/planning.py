"""From the options of `python -m zs2.ablate` to the study that they ask for, and to a process's part of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from zs2.checkpoints.hub import DEFAULT_MODEL, choose_files, is_hub_id
from zs2.checkpoints.locate import full_name, local_path, locate
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.command import say
from zs2.cli.derived_options import flag
from zs2.errors import InputError, choose, together, warn, whole
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, PARAMETERS, Method
from zs2.sampling.request import DEFAULTS, INPUTS, OPTIONS, Request, check_for_model, usual
from zs2.study.cells import (
    FULL,
    NUMBERS,
    PRESETS,
    STUDY_LAM,
    STUDY_MU,
    Cell,
    grid,
    kinds_with,
    merge,
    preset,
    reference,
)
from zs2.study.inputs import Inputs, opened
from zs2.study.model_prompts import reproduced
from zs2.study.prompts import Prompt, default_prompts, read_prompts
from zs2.study.stored import check_ids
from zs2.study.study import Study, is_finished
from zs2.system.devices import AUTO, DTYPES, auto_dtype, choose_device, choose_dtype, own_device
from zs2.system.json_files import Reader, read_json
from zs2.version import REVISION, __version__, revision_text
from zs2.video.encoding import rate_text

METHOD = ("preset", "noise", "attn", *NUMBERS, "motion_target")  # the options that choose cells


def cells(options: Mapping[str, Any], lam: float = STUDY_LAM) -> list[Cell]:
    """The cells of the presets and of the grid that are asked for. Warns of values without effect.

    lam: λ where the options have none.
    Raises: InputError for values out of range, and for several values where a preset takes one.
    """
    in_grid = "noise" in options or "attn" in options
    presets = options.get("preset", [] if in_grid else ["motion" if "motion_target" in options else "paper"])
    if "motion" in presets and "motion_target" not in options:
        raise InputError("the preset motion compares variants at equal motion: give --motion-target, such as 0.03")
    if "motion_target" in options:
        _check_searched(options, presets)
    noise, attn = options.get("noise", [FULL.noise]), options.get("attn", [FULL.attn])
    lams, mu = options.get("lam", [lam]), options.get("mu", [STUDY_MU])
    more = {name: options.get(name, [None]) for name in NUMBERS if name not in ("lam", "mu", "motion")}
    for a, m, n, x, *values in product(attn, mu, noise, lams, *more.values()):
        Method(a, m, n, x, **dict(zip(more, values, strict=True)))  # checks them
    for name, values in (("lam", lams), ("mu", mu)):
        if presets and len(values) > 1:
            hint = "a run of its own for the grid" if in_grid else "--noise or --attn, for a grid"
            raise InputError(f"{name} has {len(values)} values: a preset takes one; give {hint}")
    for name in more:
        if name in options and not in_grid:
            option = "--attn" if PARAMETERS[name].of == "attention" else "--noise"
            hint = " or ".join(f"{option} {kind}" for kind in kinds_with(name))
            raise InputError(f"{name} is of a grid: give {hint}, too")
    found = [cell for name in presets for cell in preset(name, lams[0], mu[0])]
    effect: set[str] = set().union(*(PRESETS[name].parameters for name in presets))
    if in_grid:
        effect.update(
            *(NOISE_MODELS[name].defaults for name in noise), *(ATTENTION_KINDS[name].defaults for name in attn)
        )
    for name in NUMBERS:
        if name in options and name not in effect:
            warn(f"{name} has no effect on these cells")
    return merge([*found, *(grid(noise, attn, lams, mu, **more) if in_grid else [])])


def _check_searched(options: Mapping[str, Any], presets: Sequence[str]) -> None:
    """Refuse values of what `--motion-target` finds: cells that differ in them alone would become one."""
    for name in ("lam", "alpha"):
        if name in options:
            raise InputError(f"--motion-target finds λ and a: leave {flag(name)} out")
    for name in ("lambda", "reproduce"):
        if name in presets:
            raise InputError(f"--motion-target finds λ, and the preset {name} sweeps it: leave one of them out")


def plan(options: Mapping[str, Any], known: Study | None, own: OwnSettings | None = None) -> Study:
    """The study that the options ask for. What they leave open is as in the study that is there, if there is one, and
    else as in the checkpoint's own settings. Warns of prompts of the options that name nothing that it knows.

    Weights and size that only the model knows are as in that study, too, or else None and 0.
    Raises: InputError for values out of range, and for a model that must be named again.
    """
    model = known.model if known and "model" not in options else full_name(str(options.get("model", DEFAULT_MODEL)))
    own = OwnSettings.of(model) if own is None else own
    if known and "model" not in options and Path(model) != Path(DEFAULT_MODEL) and not is_hub_id(model):
        raise InputError(f"the study in {options['out']} is of the model {model!r}: give that with --model")
    if known and known.lora and "lora" not in options:
        raise InputError(f"the study in {options['out']} is of a model with LoRA: give the same with --lora")
    if known and known.embeddings and "embedding" not in options:
        raise InputError(f"the study in {options['out']} is of a model with embeddings: give the same with --embedding")
    settings: dict[str, Any] = {**DEFAULTS, "fps": 8, "dtype": AUTO, **own.request_with(options), **usual(options)}
    if known:
        settings = {**known.sampling, "fps": known.fps, "dtype": known.dtype}
    for name in INPUTS:
        if settings[name] is not None and name not in options:
            raise InputError(f"the study in {options['out']} has an input: give the same with {flag(name)}")
    settings |= {name: options[name] for name in settings if name in options}
    inputs = opened(options)
    settings |= inputs.shared
    if known and settings["dtype"] == AUTO:
        settings["dtype"] = known.dtype
    width, height = options.get("size", (known.width, known.height) if known else (0, 0))
    if "size" in options:
        whole("width", width, 1)
        whole("height", height, 1)
    prompts = options.get("prompts", known.prompts if known else default_prompts(own))
    if known and "prompts" not in options and any(prompt.inputs for prompt in prompts):
        raise InputError(f"the study in {options['out']} has prompts with inputs of their own: give their file again")
    if not known and not own.prompts and "prompts" not in options and "reproduce" in options.get("preset", ()):
        prompts = reproduced(model, prompts)
    if isinstance(prompts, str):
        prompts = read_prompts(prompts)
    if "prompts" in options:
        own.warn_of_unknown_things([prompt.text for prompt in prompts])
    if not known and "guidance" not in options:
        settings |= _usual_of_own(prompts, inputs)
    seeds = options.get("seeds", known.seeds if known else (0, 1))
    chosen = list(known.cells) if known and not any(name in options for name in METHOD) else None
    chosen = cells(options, _usual_lam(known, own)) if chosen is None else chosen
    with together():
        for (number, prompt), seed in product(enumerate(prompts), seeds):
            values = {name: settings[name] for name in OPTIONS} | inputs.of(number)
            request = Request(prompt.text, seed=seed, **values)  # checks them
    check_ids(chosen)
    for cell in chosen:
        Method(**cell.method).settings(request.steps, from_latents=False)  # some noise models need more than one step
    frames = whole("frames", request.frames, 1)
    return Study(
        zs2=__version__,
        model=model,
        weights=known.weights if known else None,
        sampling={name: getattr(request, name) for name in OPTIONS}
        | {name: inputs.shared[name].record if name in inputs.shared else None for name in INPUTS},
        width=width,
        height=height,
        fps=rate_text(settings["fps"]),
        dtype=choose("dtype", settings["dtype"], DTYPES),
        chunk=min(frames, whole("chunk", options.get("chunk", known.chunk if known else frames), 1)),
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        full=reference(chosen).id,
        cells=tuple(chosen),
        lora=known.lora if known else None,
        embeddings=known.embeddings if known else None,
        controlnet=known.controlnet if known else None,
        compile="compile" in options or bool(known and known.compile),
        revision=known.revision if known else REVISION,
    )


def possible_cells(study: Study, inputs: Inputs, check: Callable[[Cell, int], None]) -> Study:
    """The study with the cells that can be sampled from its inputs. Another one of a preset is left out, with a note.

    check: raises InputError for a cell that can't be sampled for a prompt, which it gets by its number.
    Raises: InputError if the full method, or a cell of a grid, is such another one.
    """
    prompts = {tuple(inputs.of(i)): i for i in range(len(study.prompts))}.values()  # one for each kind of inputs
    found, notes = [], []
    for cell in study.cells:
        try:
            with warnings.catch_warnings():  # those of the clips come when they are made
                warnings.simplefilter("ignore")
                for prompt in prompts:
                    check(cell, prompt)
        except InputError as error:
            if not cell.presets or cell.id == study.full:
                raise
            notes.append(f"{cell.label} is left out: {error}")
        else:
            found.append(cell)
    for note in notes:
        say(note)
    return replace(study, cells=tuple(found), full=reference(found).id)


def without_model(study: Study, inputs: Inputs) -> Study:
    """The study with its `possible_cells`, as far as they are known before the model is loaded."""
    edits = _edits(study.model)

    def check(cell: Cell, prompt: int) -> None:
        given = inputs.of(prompt)
        if edits is not None or "source" not in given:
            frames = 1 if cell.frozen else study.frames
            asked = Request(study.prompts[prompt].text, **{**study.sampling, **given, "frames": frames})
            starts = NOISE_MODELS[cell.noise].start is not None and frames > 1
            check_for_model(asked, bool(edits), True, cell.noise if starts else None)

    return possible_cells(study, inputs, check)


def _edits(model: str) -> bool | None:
    """Whether a model edits by instruction: its UNet also takes the latents of a picture. None if that is unknown, as
    of a single file, or of a model that is not on this machine."""
    path = local_path(model)
    file = None if path is None else path / "unet" / "config.json"
    if file is None or not file.is_file():
        return None
    read = Reader(str(file), read_json(file), {})
    return read.whole("in_channels", 4) == 2 * read.whole("out_channels", 4)


def _usual_of_own(prompts: Sequence[Prompt], inputs: Inputs) -> dict[str, Any]:
    """The defaults of the guided modes that the prompts' own inputs ask for. Raises: InputError if they differ."""
    own = [usual(inputs.of(i)) for i in range(len(prompts))]
    for name in {name for values in own for name in values}:
        without = next((prompt.text for prompt, values in zip(prompts, own, strict=True) if name not in values), None)
        if without is not None:
            raise InputError(
                f"some prompts have a first frame, {without!r} has none, and a study has one guidance: give "
                f"{flag(name)}"
            )
    return own[0]


def check_revision(study: Study, folder: Path) -> None:
    """Raise InputError if clips are missing in a study whose other clips are of another revision: see version.py."""
    if study.revision != REVISION and not all(is_finished(folder, job.name) for job in study.jobs()):
        refuse_another_revision(study, folder)


def refuse_another_revision(study: Study, folder: Path) -> None:
    """Raise InputError if clips of today would be of another revision than those of a study."""
    if study.revision != REVISION:
        before, now = map(revision_text, (study.revision, REVISION))
        raise InputError(
            f"{folder}: its clips were made by {before} of what zs2 computes, now it is {now}, so that new ones would "
            "not compare with them: give another --out for another study"
        )


def with_fetched_settings(options: Mapping[str, Any], study: Study) -> Study:
    """A new study as `plan` has it. A model of the hub is fetched for it, since its own settings are in its folder."""
    if local_path(study.model) is not None:
        return study
    dtype = choose_dtype(study.dtype) or auto_dtype(choose_device(own_device(options.get("device"))))
    wanted = partial(choose_files, variant=options.get("variant"), vae="vae" not in options)
    folder, name = locate(study.model, str(dtype).removeprefix("torch."), wanted)
    return plan(options, None, OwnSettings.read(folder, name))


def _usual_lam(known: Study | None, own: OwnSettings) -> float:
    """λ of new cells: as in the study that is there, or the checkpoint's own, or the authors'."""
    if known:
        full = next(cell for cell in known.cells if cell.id == known.full)
        return STUDY_LAM if full.lam is None else full.lam
    return STUDY_LAM if own.lam is None else own.lam


def division(options: Mapping[str, Any]) -> tuple[int, int]:
    """Which part of the work this process does, from 0, and of how many: --shard, divided again by torchrun.

    Raises: InputError for an environment that is not torchrun's.
    """
    index, count = options.get("shard", (0, 1))
    variables = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = (int(value) for value in variables.values())
        if not 0 <= rank < world:
            raise ValueError
    except ValueError:
        got = ", ".join(f"{name}={value}" for name, value in variables.items())
        raise InputError(f"the environment has {got}: expected those of torchrun, or neither: unset them") from None
    return index * world + rank, count * world
