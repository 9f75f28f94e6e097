"""`python -m zs2.sample`: prompts to clips."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.command import command
from zs2.config import DEFAULT_MODEL
from zs2.errors import InputError
from zs2.options import EXAMPLE, lines, parser
from zs2.request import Request

if TYPE_CHECKING:
    from zs2.pipeline import ZS2

METHOD: tuple[str, ...] = ("attn", "mu", "noise", "lam", "alpha", "motion", "renoise")
REQUEST = tuple(field.name for field in fields(Request))
REPLAY = (
    "replay",
    "model",
    "prediction",
    "lora",
    "device",
    "latents",
    "out",
    "sheet",
)  # what --replay can be given with


def prompts(given: dict[str, Any]) -> list[str | list[str]]:
    """The prompt of each clip. Raises: InputError if there are several sources, or none with a model of one's own."""
    sources = [name for name in ("prompt", "prompts", "travel") if name in given]
    if len(sources) > 1:
        raise InputError(f"{' and '.join(sources)} are given: expected one of a prompt, --prompts and --travel")
    if "prompts" in given:
        return [*lines(given["prompts"])]
    if "travel" in given:
        return [lines(given["travel"])]
    if "prompt" not in given and Path(given.get("model", DEFAULT_MODEL)) != Path(DEFAULT_MODEL):
        raise InputError("no prompt: give one (only the default model has an example)")
    return [given.get("prompt", EXAMPLE)]


def requests(given: dict[str, Any]) -> Iterator[tuple[str, Request]]:
    """Every clip to be made: what to add to the name of its file, and its request."""
    common = {name: given[name] for name in REQUEST if name in given and name not in ("prompt", "seed", "latents")}
    if "size" in given:
        common["width"], common["height"] = given["size"]
    if "latents" in given:
        common["latents"] = latents(given["latents"])
        common.setdefault("frames", len(common["latents"]))
    texts, numbers = prompts(given), given.get("seed", [0])
    for i, text in enumerate(texts, 1):
        for seed in numbers:
            prompt_mark = f"-p{i:0{len(str(len(texts)))}}" if len(texts) > 1 else ""
            seed_mark = f"-s{seed}" if len(numbers) > 1 else ""
            yield prompt_mark + seed_mark, Request(text, seed=seed, **common)


def latents(file: str) -> Any:
    """The tensor `latents` of a safetensors file. Raises: InputError if there is none."""
    from zs2.weights import read_tensors

    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file of latents")
    tensors = read_tensors([path])
    if "latents" not in tensors or tensors["latents"].ndim != 4:
        raise InputError(
            f"{file}: expected a tensor `latents` (frames, 4, h, w), got "
            f"{ {name: tuple(tensor.shape) for name, tensor in tensors.items()} }"
        )
    return tensors["latents"]


def outputs(given: dict[str, Any], marks: Sequence[str], fps: int) -> list[Path]:
    """The file of each clip, checked before anything is sampled."""
    from zs2.video import check_output

    if "out" in given:
        base = Path(given["out"])
    else:
        taken = [int(m[0]) for p in Path("out").glob("*") if (m := re.match(r"\d{5,9}", p.name, re.ASCII))]
        base = Path("out") / f"{max(taken, default=0) + 1:05}.gif"
    if not base.name:
        raise InputError(f"--out {given['out']!r} names no file: expected one such as clip.gif")
    return [check_output(base.with_name(base.stem + mark + base.suffix) if mark else base, fps) for mark in marks]


def replayed(file: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that made a clip, from its settings; what --replay can be given with wins."""
    from zs2.video import read_settings

    others = [name for name in given if name not in REPLAY]
    if others:
        warnings.warn(f"--replay takes all settings from its file: {', '.join(others)} has no effect", stacklevel=2)
    made = read_settings(Path(file))
    try:
        options = {name: made[name] for name in (*METHOD, *REQUEST, "fps", "dtype", "device")}
        options["made"] = {name: made[name] for name in ("model", "weights", "lora", "versions", "latents")}
    except KeyError as error:
        raise InputError(f"{file}: these are not the settings of a clip of zs2: {error} is missing") from error
    for name in needed(made):
        if made[name] is None:
            raise InputError(f"{file}: {name} is null, but has an effect with the other settings: expected a value")
    for name, kind in {"weights": dict, "versions": dict, "device": str, "dtype": str}.items():
        if not isinstance(made[name], kind):
            raise InputError(f"{file}: {name} is {made[name]!r}: these are not the settings of a clip of zs2")
    for name in ("mu", "lam", "alpha"):
        if not isinstance(made[name], int | float | None):
            raise InputError(f"{file}: {name} is {made[name]!r}: expected a number")
    if options.pop("latents") is not None and "latents" not in given:
        raise InputError(f"{file}: this clip started from given latents: give the same --latents")
    options = {name: value for name, value in options.items() if value is not None}
    options["seed"] = [options.get("seed", 0)]
    options["size"] = (options.pop("width"), options.pop("height"))
    return options | {name: given[name] for name in REPLAY if name in given}


def needed(made: dict[str, Any]) -> list[str]:
    """The settings that decide a clip of this variant: what has no effect is null."""
    from zs2.method import effects

    names = ["prompt", "negative_prompt", "frames", "steps", "guidance", "width", "height", "fps"]
    names += ["attn", "dtype", "device", "weights", "versions"]
    effect = effects(str(made["attn"]), str(made["noise"]))
    return [*names, *(effect if made["latents"] is None else effect & {"mu"}), *["seed"] * (made["latents"] is None)]


def warn_without_effect(given: dict[str, Any], paths: Sequence[Path]) -> None:
    """Warn of options that change nothing, given the others. The library warns of those of a variant."""
    if "latents" in given:
        unused = [name for name in METHOD[2:] if name in given]  # of the seed, the library warns
        if unused:
            warnings.warn(f"{', '.join(unused)}: no effect where latents are given", stacklevel=2)
    elif given.get("frames") == 1:
        unused = [name for name in METHOD if name in given]
        if unused:
            warnings.warn(f"{', '.join(unused)}: no effect on a single frame", stacklevel=2)
    if "fps" in given and not paths[0].suffix:
        warnings.warn("fps: no effect on a folder of PNG files", stacklevel=2)


def check_replay(model: ZS2, made: dict[str, Any], request: Request, fps: int) -> None:
    """Raise InputError if a replay has other weights or latents; warn of other versions."""
    now = model.settings(request, fps)
    if made["weights"] != now["weights"]:
        parts = [part for part, digest in now["weights"].items() if made["weights"].get(part) != digest]
        differ = f"{', '.join(parts)} differ"
        raise InputError(f"the clip was made with other weights, those of {made['model']} ({differ}): give its --model")
    if made["lora"] != now["lora"]:
        raise InputError(f"the clip was made with LoRA {made['lora']}, not {now['lora']}: give the same --lora")
    if made["latents"] != now["latents"]:
        raise InputError("the clip was made from other latents: give the same --latents")
    if made["versions"] != now["versions"]:
        warnings.warn(f"made with {made['versions']}, now {now['versions']}: the clip may differ", stacklevel=2)


def run(given: dict[str, Any]) -> None:
    """Make all the clips. What is wrong with the options is said before the model is loaded."""
    if "replay" in given:
        given = replayed(given["replay"], given)
    jobs = list(requests(given))
    fps = given.get("fps", 8)
    paths = outputs(given, [mark for mark, _ in jobs], fps)
    if "made" not in given:
        warn_without_effect(given, paths)

    from zs2.pipeline import ZS2
    from zs2.progress import progress
    from zs2.video import Clip

    options = {name: given[name] for name in (*METHOD, "device", "dtype", "prediction", "lora") if name in given}
    model = ZS2.from_pretrained(given.get("model", DEFAULT_MODEL), **options)
    for _, request in jobs:
        model.check(request)
        if "made" in given:
            check_replay(model, given["made"], request, fps)
    for number, ((_, request), path) in enumerate(zip(jobs, paths, strict=True), 1):
        label = "sampling" if len(jobs) == 1 else f"clip {number} of {len(jobs)}"
        for step in progress(model.sample(request), request.steps, label):
            final = step.latents
        clip = Clip(model.decode(final), fps, model.settings(request, fps))
        for written in clip.save(path, sheet=given.get("sheet", True)):
            print(written)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, as `zs2.command.command` says."""
    return command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
