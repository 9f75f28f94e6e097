"""`python -m zs2.sample`: prompts to clips."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.cli.command import command
from zs2.cli.sample_options import EXAMPLE, lines, parser
from zs2.errors import InputError
from zs2.sampling.request import FAST, Request

if TYPE_CHECKING:
    from zs2.pipeline import ZS2
    from zs2.sampling.frame_parallel import Group
    from zs2.sampling.plan import SamplingPlan

METHOD: tuple[str, ...] = ("attn", "mu", "noise", "lam", "alpha", "motion", "renoise")
REQUEST = tuple(field.name for field in fields(Request))
LATER: dict[str, Any] = {
    "sampler": "ddim",
    "guidance_interval": [0, 1],
    "deep_cache": 1,
}  # as clips were that do not say
REPLAY = (
    "replay",
    "model",
    "prediction",
    "lora",
    "device",
    "latents",
    "stream",
    "state_device",
    "dry_run",
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
    if "fast" in given:
        common = fast(given) | common
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


def fast(given: dict[str, Any]) -> dict[str, Any]:
    """What `--fast` stands for, but for what has no effect with what is given."""
    unused = "deep_cache" if given.get("steps") == 1 else None
    return {name: value for name, value in FAST.items() if name != unused}


def latents(file: str) -> Any:
    """The tensor `latents` of a safetensors file. Raises: InputError if there is none."""
    from zs2.checkpoints.tensor_files import read_tensors

    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file of latents")
    tensors = read_tensors([path])
    if "latents" not in tensors or tensors["latents"].ndim != 4:
        raise InputError(
            f"{file}: expected a tensor `latents` (frames, c, h, w), got "
            f"{ {name: tuple(tensor.shape) for name, tensor in tensors.items()} }"
        )
    return tensors["latents"]


def outputs(given: dict[str, Any], marks: Sequence[str], fps: int) -> list[Path]:
    """The file of each clip, checked before anything is sampled."""
    from zs2.video.clip import check_output

    if "out" in given:
        base = Path(given["out"])
    else:
        taken = [int(m[0]) for p in Path("out").glob("*") if (m := re.match(r"\d{5,9}", p.name, re.ASCII))]
        base = Path("out") / f"{max(taken, default=0) + 1:05}{'.mp4' if 'stream' in given else '.gif'}"
    if not base.name:
        raise InputError(f"--out {given['out']!r} names no file: expected one such as clip.gif")
    return [check_output(base.with_name(base.stem + mark + base.suffix) if mark else base, fps) for mark in marks]


def replayed(file: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that made a clip, from its settings; what --replay can be given with wins."""
    from zs2.video.clip import read_settings

    others = [name for name in given if name not in REPLAY]
    if others:
        warnings.warn(f"--replay takes all settings from its file: {', '.join(others)} has no effect", stacklevel=2)
    made = LATER | read_settings(Path(file))
    try:
        options = {name: made[name] for name in (*METHOD, *REQUEST, "fps", "dtype", "device")}
        options["made"] = {
            name: made[name] for name in ("model", "weights", "lora", "versions", "latents", "processes", "device")
        }
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

    names = ["prompt", "negative_prompt", "frames", "steps", "sampler", "guidance", "guidance_interval", "deep_cache"]
    names += ["width", "height", "fps", "chunk", "attn", "dtype", "device", "weights", "versions"]
    effect = effects(str(made["attn"]), str(made["noise"]))
    return [*names, *(effect if made["latents"] is None else effect & {"mu"}), *["seed"] * (made["latents"] is None)]


def check_stream(path: Path, size: tuple[int, int] | None = None) -> None:
    """Raise InputError for a format that can't be written frame by frame, or can't hold frames of such a size."""
    from zs2.video.streaming import STREAMED

    ending = path.suffix.lower()
    if ending not in STREAMED:
        raise InputError(f"{path}: {ending} needs all frames at once: stream to .mp4, or to a folder of PNG files")
    if ending and size is not None and (size[0] % 2 or size[1] % 2):
        raise InputError(
            f"{path}: MP4 needs an even width and height, got {size[0]}x{size[1]}: use a folder of PNG files"
        )


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
    if "state_device" in given and "stream" not in given:
        warnings.warn("state_device: no effect without --stream", stacklevel=2)


def check_replay(model: ZS2, made: dict[str, Any], plan: SamplingPlan, fps: int) -> None:
    """Raise InputError if a replay has other weights or latents; warn of other versions, processes or device."""
    now = model.settings(plan, fps)
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
    if made["device"] != now["device"]:
        warnings.warn(f"made on {made['device']}, now on {now['device']}: the clip may differ", stacklevel=2)
    if made["processes"] != now["processes"]:
        warnings.warn(
            f"made by {made['processes']} process(es), not {now['processes']}: last bits may differ", stacklevel=2
        )


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """The options, those of a replay with what made the clip."""
    return replayed(given["replay"], given) if "replay" in given else given


def run(given: dict[str, Any], group: Group | None = None) -> None:
    """Make all the clips, alone or as one of a group of processes, of which the first one writes.

    given: the options, `prepared`.
    What is wrong with the options is said before the model is loaded.
    """
    jobs = list(requests(given))
    fps = given.get("fps", 8)
    paths = outputs(given, [mark for mark, _ in jobs], fps)
    if "stream" in given:
        check_stream(paths[0])
    if "made" not in given:
        warn_without_effect(given, paths)

    from zs2.pipeline import ZS2

    options = {name: given[name] for name in (*METHOD, "device", "dtype", "prediction", "lora") if name in given}
    model = ZS2.from_pretrained(given.get("model", DEFAULT_MODEL), **options)
    memory: dict[str, Any] = {"stream": "stream" in given, "state_device": given.get("state_device")}
    asked = [request for _, request in jobs]
    if "dry_run" in given:
        return print_plans(model, asked, group, memory)
    plans = [model.plan(request, group, **memory) for request in asked]
    for plan in plans:
        if "stream" in given:
            check_stream(paths[0], plan.size[::-1])
        if "made" in given:
            check_replay(model, given["made"], plan, fps)
    for number, (plan, path) in enumerate(zip(plans, paths, strict=True), 1):
        label = "sampling" if len(jobs) == 1 else f"clip {number} of {len(jobs)}"
        make(model, plan, path, fps, label, given)
    return None


def print_plans(model: ZS2, asked: Sequence[Request], group: Group | None, memory: dict[str, Any]) -> None:
    """Print what memory each kind of clip is expected to need. Raises: InputError if it is more than there is."""
    from zs2.sampling.memory import amount, planned_memory
    from zs2.sampling.plan import resolve
    from zs2.system.free_memory import free_memory

    free, plans = free_memory(model.device, 1 if group is None else group.here), set()
    for request in asked:
        failed = None
        try:
            planned = model.plan(request, group, **memory)
        except InputError as error:
            planned, failed = resolve(model.image_model, model.method, request, group, **memory), error
            planned = replace(planned, chunk=request.chunk or 1)
        plan = planned_memory(planned)
        if plan not in plans and (group is None or group.rank == 0):
            print(f"{request.frames} frames, {planned.chunk} at a time:", *plan.lines(), sep="\n")
            print(f"{'free':<10}{'not known' if free is None else amount(free):>10}")
        plans.add(plan)
        if failed is not None:
            raise failed


def make(model: ZS2, plan: SamplingPlan, path: Path, fps: int, label: str, given: dict[str, Any]) -> None:
    """Make one clip, and write it. Raises: KeyboardInterrupt if it was, when a stream's frames are written."""
    from zs2.pipeline import stream_frames
    from zs2.sampling.decoding import decode_frames
    from zs2.sampling.sampler import Sampler
    from zs2.system.background import beside
    from zs2.system.progress import progress
    from zs2.video.clip import Clip

    first, sheet = plan.group is None or plan.group.rank == 0, given.get("sheet", True)
    whole = True
    if first:
        settings = beside(lambda: model.settings(plan, fps))  # which hashes the weights, once
    if "stream" in given:
        from zs2.video.streaming import save

        frames, count = stream_frames(plan), plan.request.frames
        assert count is not None
        if first:
            shown = progress(frames, count, label.replace("sampling", "frames"))
            written, whole = save(shown, count, path, fps, settings, sheet=sheet)
        else:
            for _ in frames:
                pass
    else:
        steps = Sampler(plan).steps()
        for step in progress(steps, plan.request.steps, label) if first else steps:
            final = step.latents
        pixels = decode_frames(plan, final)
        if first:
            written = Clip(pixels, fps, settings()).save(path, sheet=sheet)
    if first:
        for file in written:
            print(file)
    if not whole:
        raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, as `zs2.cli.command.command` says."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:  # torchrun
        from zs2.sampling.frame_parallel import together

        return together(parser(), prepared, run, argv)
    return command(parser(), lambda given: run(prepared(given)), argv)


if __name__ == "__main__":
    sys.exit(main())
