"""From the options of `python -m zs2.sample` to its clips: their requests and their files. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.equal_motion import check_target, searched
from zs2.cli.prompt_files import line_options, read_prompt_file, read_travel_file
from zs2.errors import InputError, choose, together, warn, warn_of_each
from zs2.method import METHOD, PARAMETERS, Method, effects, replaced
from zs2.sampling.request import FAST, INPUTS, OPTIONS, Request, usual
from zs2.system.devices import AUTO, DTYPES
from zs2.version import revision_text

if TYPE_CHECKING:
    from zs2.video.encoding import Encoding, Rate
    from zs2.video.outputs import Output

TIMEOUT_MAX = 10**7  # seconds, four months
REQUEST = tuple(field.name for field in fields(Request))
Prompts = list[tuple[str | list[str] | dict[int, str], dict[str, Any], str]]


def prompts(options: Mapping[str, Any], own: OwnSettings) -> Prompts:
    """The prompt of each clip, by default the checkpoint's example, and the options of its line in a file of prompts,
    with the name of that line. For prompt travel the prompt is a list of one a frame, or a schedule by frames.

    Raises: InputError for several sources of prompts, or for none with a checkpoint that has no example.
    """
    sources = [name for name in ("prompt", "prompts", "travel") if name in options]
    if len(sources) > 1:
        raise InputError(f"{' and '.join(sources)} are given: expected one of a prompt, --prompts and --travel")
    if "prompts" in options:
        return [(line.text, line_options(line), line.where) for line in read_prompt_file(options["prompts"])]
    if "travel" in options:
        return [(read_travel_file(options["travel"]), {}, "")]
    if "prompt" in options:
        return [(options["prompt"], {}, "")]
    if not own.prompts:
        raise InputError("no prompt: give one (this model has no example of its own)")
    return [(own.prompts[0], {}, "")]


def clip_requests(options: Mapping[str, Any], own: OwnSettings) -> list[tuple[str, Request]]:
    """Each clip of the options. What they leave open is as the checkpoint's own settings have it. Warns of prompts
    that name nothing that the checkpoint knows.

    Returns: the suffix that tells its file from those of the other clips, such as `-p1-s0`, and its request.
    Raises: InputError for a value out of range.
    """
    with together():
        return list(_requests(options, own))


def _requests(options: Mapping[str, Any], own: OwnSettings) -> Iterator[tuple[str, Request]]:
    shared = {name: options[name] for name in REQUEST if name in options and name not in ("prompt", "seed", "latents")}
    fast = fast_settings(options)
    if "size" in options:
        shared["width"], shared["height"] = options["size"]
    if "latents" in options:
        shared["latents"] = read_latents(options["latents"])
        shared.setdefault("frames", len(shared["latents"]))
    for name in (name for name in INPUTS if name in shared):
        from zs2.video.reading import opened

        shared[name] = opened(shared[name], several=OPTIONS[name].several)  # once for all clips
    texts, seeds = prompts(options, own), options.get("seed", [0])
    for number, (text, of_line, where) in enumerate(texts, 1):
        for seed in [of_line["seed"]] if "seed" in of_line else seeds:
            prompt_suffix = f"-p{number:0{len(str(len(texts)))}}" if len(texts) > 1 else ""
            seed_suffix = f"-s{seed}" if len(seeds) > 1 else ""
            asked = shared | {"seed": seed} | of_line
            usually = own.request_with(asked) | fast
            try:
                request = Request(text, **usually | usual(asked) | asked)
            except InputError as error:
                if not where or _is_of_all(error, usually | usual(shared) | shared):
                    raise
                raise InputError(f"{where}: {error}") from error
            if request.guidance != 0:
                own.warn_of_unknown_things(request.words)
            yield prompt_suffix + seed_suffix, request


def _is_of_all(error: InputError, settings: Mapping[str, Any]) -> bool:
    """Whether an error is one of the options of all clips, not of a line's."""
    try:
        Request("", **settings)
    except InputError as other:
        return str(other) == str(error)
    return False


def own_in_effect(options: Mapping[str, Any], own: OwnSettings) -> list[str]:
    """The names of the checkpoint's own settings that decide something of these clips."""
    fast = fast_settings(options) | usual(options)
    names = [name for name in (*own.request_with(options), *own.method) if name not in options and name not in fast]
    defaults = Method()
    effect = effects(options.get("attn", defaults.attn), options.get("noise", defaults.noise))
    if "latents" in options or options.get("frames") == 1:
        effect = set()
    return [name for name in names if name in own.request or name in effect]


def check_method(options: Mapping[str, Any], clips: Sequence[Request] = ()) -> None:
    """Raise InputError for a wrong value of the method or the dtype, which torch is not needed to see."""
    method = Method(**{name: options[name] for name in METHOD if name in options})
    if "motion_target" in options:
        check_target(options["motion_target"])
        name = searched(method.noise)
        if (other := replaced(method.noise_parameters).get(str(name))) is not None:
            raise InputError(f"motion_target finds {name}, which has no effect beside {other}: leave --{other} out")
        if name is None or name in options:
            nothing = f"noise model {method.noise!r} has nothing to find: give another --noise"
            raise InputError(f"motion_target: {nothing if name is None else f'it finds {name}: leave --{name} out'}")
        if len(clips) != 1 or clips[0].latents is not None or clips[0].frames in (None, 1):
            raise InputError("motion_target finds a value for one clip of several frames: give one prompt and seed")
    choose("dtype", options.get("dtype", AUTO), DTYPES)


def fast_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `--fast`, if it is there, without the one that has no effect on a single step."""
    unused = "deep_cache" if options.get("steps") == 1 else None
    return {name: value for name, value in FAST.items() if name != unused} if "fast" in options else {}


def read_latents(file: str) -> Any:
    """The tensor `latents` of a safetensors file. Raises: InputError if there is none."""
    from zs2.checkpoints.tensor_files import read_tensors

    path = Path(file)
    if not os.path.isfile(path):  # also a name that is too long
        raise InputError(f"{file}: no such file of latents")
    tensors = read_tensors([path])
    if "latents" not in tensors or tensors["latents"].ndim != 4:
        raise InputError(
            f"{file}: expected a tensor `latents` (frames, c, h, w), got "
            f"{ {name: tuple(tensor.shape) for name, tensor in tensors.items()} }"
        )
    return tensors["latents"]


def outputs(options: Mapping[str, Any], suffixes: Sequence[str], fps: Rate) -> list[Output]:
    """Where each clip goes: to `--out`, or to the next free number in out/, with its suffix.

    The number is chosen when the first clip is written. So two commands never have the same, and none is taken for
    nothing.

    Raises: InputError for a name that can't be written, or is taken.
    """
    from zs2.system.atomic import SUFFIX
    from zs2.video.outputs import Output, check_outputs, existing, next_number, taken
    from zs2.video.unfinished import Unfinished

    def numbered() -> Path:
        return Path("out") / f"{next_number(Path('out')):05}{'.mp4' if 'stream' in options else '.gif'}"

    def with_suffix(path: Path, suffix: str) -> Path:
        return path.with_name(path.stem + suffix + path.suffix)

    overwrite = "overwrite" in options or "resume" in options  # then the clip there is the beginning of this one
    base = Path(options["out"]) if "out" in options else numbered()
    if not base.name:
        raise InputError(f"--out {options['out']!r} names no file: expected one such as clip.gif")
    paths = [with_suffix(base, suffix) for suffix in suffixes]
    there = check_outputs(paths, fps, base)
    may_be_there = overwrite or "skip_existing" in options
    if there and not may_be_there and not ("stream" in options and Unfinished(there[0]).is_resumable):
        raise taken(there, base)
    if "out" in options:
        return [Output.at(path, overwrite=overwrite, instead=True) for path in paths]
    chosen: list[Path] = []

    def free(suffix: str) -> Path:
        path = with_suffix(chosen[-1], suffix) if chosen else None
        if path is None or existing(path) or path.with_name(path.name + SUFFIX).exists():
            chosen.append(numbered())
        return with_suffix(chosen[-1], suffix)

    return [Output(path, partial(free, suffix)) for path, suffix in zip(paths, suffixes, strict=True)]


def check_timeout(options: Mapping[str, Any]) -> None:
    """Raise InputError for a --process-timeout that is no time."""
    seconds = options.get("process_timeout", 1)
    if not 0 < seconds <= TIMEOUT_MAX:
        raise InputError(f"--process-timeout is {seconds:g}: expected seconds, above 0 and up to {TIMEOUT_MAX}")


def _is_of_noise(setting: str) -> bool:
    """Whether a setting of the method is one of the initial noises."""
    return setting == "noise" or (setting in PARAMETERS and PARAMETERS[setting].of == "noise")


UNCOMPARED = ("versions", "processes", "device", "chunk")  # settings that change a clip's last bits at most


def has_clip(path: Path, settings: Mapping[str, Any], request: Request, *, overwrite: bool) -> bool:
    """Whether a clip of these settings is there, for --skip-existing. Warns of one of another revision.

    Args:
        overwrite: whether a clip of other settings, or of another revision, is made again.
        request: the clip's. What it leaves to the checkpoint was left to it in files that are too old to say.
    Raises: InputError for a clip of other settings otherwise, and for a file that is no clip.
    """
    from zs2.sampling.resume import differing
    from zs2.video.clip import read_settings
    from zs2.video.outputs import existing, exists, taken

    if existing(path) is None:
        return False
    if not overwrite and not exists(path):  # only what goes with a clip
        raise taken([path], path)
    try:
        left = [name for name, one in OPTIONS.items() if one.unstated is None and getattr(request, name) is None]
        found = {name: settings[name] for name in left} | read_settings(path)
    except InputError:
        if overwrite:
            return False
        raise
    differ = [name for name in differing(found, settings) if name not in UNCOMPARED]
    if overwrite:
        return not differ
    if others := [name for name in differ if name != "revision"]:
        raise InputError(
            f"{path} is there, made with another {', '.join(others)}: expected the same, another --out, or --overwrite"
        )
    warn_of_revision(path, found, settings)
    return True


def warn_of_revision(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Warn of a clip that stays, but was made by another revision than it would be now."""
    before, now = (revision_text(one.get("revision")) for one in (found, settings))
    if before != now:
        more = f"was made by {before} of what zs2 computes, now it is {now}: --overwrite makes such clips again"
        warn_of_each("clip", str(path), more)


def check_stream(path: Path, encoding: Encoding, size: tuple[int, int] | None = None) -> None:
    """Check that a file can be written frame by frame, and hold frames of this (width, height), where it is known.

    Raises: InputError if it can't.
    """
    from zs2.video.streaming import STREAMED

    ending = path.suffix.lower()
    if ending not in STREAMED:
        raise InputError(f"{path}: {ending} needs all frames at once: stream to .mp4, or to a folder of PNG files")
    if encoding.loop is not None:
        raise InputError(f"--loop {encoding.loop} needs all frames at once: leave --stream")
    if not encoding.metadata:
        raise InputError("--no-metadata: a stream that is killed needs the settings in its frames: leave --stream")
    if ending and size is not None and (size[0] % 2 or size[1] % 2):
        raise InputError(
            f"{path}: MP4 needs an even width and height, got {size[0]}x{size[1]}: use a folder of PNG files"
        )


def warn_without_effect(options: Mapping[str, Any], path: Path) -> None:
    """Warn of options that change nothing beside the others. (Those of a variant, the library warns of.)

    path: that of a clip.
    """
    if "latents" in options:
        unused = [name for name in METHOD if name in options and _is_of_noise(name)]  # the library warns of the seed
        if unused:
            warn(f"{', '.join(unused)}: no effect where latents are given")
    elif options.get("frames") == 1:
        unused = [name for name in METHOD if name in options]
        if unused:
            warn(f"{', '.join(unused)}: no effect on a single frame")
    if "fps" in options and not path.suffix:
        warn("fps: no effect on a folder of PNG files")
    for name in ("overwrite", "skip_existing"):
        if name in options and "out" not in options:
            warn(f"{name}: no effect without --out")
    if "process_timeout" in options and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        warn("process_timeout: no effect on one process")
    if "state_device" in options and "stream" not in options:
        warn("state_device: no effect without --stream")
