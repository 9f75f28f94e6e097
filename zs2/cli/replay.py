"""`--replay`, and `replay` in Python: from the recorded settings of a clip to the clip. No torch at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.checkpoints.locate import former
from zs2.cli.derived_options import LOADING, flag
from zs2.cli.sample_requests import REQUEST
from zs2.errors import InputError, check_keywords, warn
from zs2.method import ATTENTION_KINDS, FILES, METHOD, PARAMETERS, Method, effects, replaced
from zs2.sampling.prompt_syntax import read_as, texts_of
from zs2.sampling.request import DEFAULTS, INPUTS, OPTIONS, STATED, UNSTATED, Request
from zs2.version import revision_text
from zs2.video.encoding import ENDINGS, frame_rate

if TYPE_CHECKING:
    from zs2.video.clip import Clip

CONTEXTS = ("context", "negative_context")
# Settings that were added later, with the value of the clips that do not record them.
ADDED = {name: None for name, option in OPTIONS.items() if option.unstated is not STATED} | UNSTATED
ADDED |= dict.fromkeys(("controlnet", "embeddings", "vae", "travel_mode", "revision", "part_of", *CONTEXTS, *ENDINGS))

# The options that may stand beside --replay. They decide where and how the clip is made, not which clip it is.
ALLOWED = (
    "replay",
    "model",
    *LOADING,
    "device",
    "latents",
    *CONTEXTS,
    *INPUTS,
    *FILES,
    "stream",
    "state_device",
    "resumable",
    "resume",
    "process_timeout",
    "dry_run",
    "out",
    "overwrite",
    "sheet",
    "metadata",
)

TENSORS = ("latents", *CONTEXTS)

# Settings that are not options: the clip is made again only if they are the same, or nearly so if a warning says.
COMPARED = (
    *("model", "weights", "vae", "lora", "embeddings", "controlnet", "revision", "versions", *TENSORS),
    *("processes", "device", *INPUTS, *FILES),
)


def with_replay(options: dict[str, Any]) -> dict[str, Any]:
    """The options; with --replay, those of its clip, and as `recorded` the settings that `check_replay` compares."""
    return replay_options(options["replay"], options) if "replay" in options else options


def replay_options(file: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that made the clip of a file, and those beside --replay. Warns of options that have no effect.

    Raises: InputError if the file does not hold the settings of a clip.
    """
    from zs2.video.clip import read_settings

    ignored = [name for name in options if name not in ALLOWED]
    if ignored:
        warn(f"--replay takes all settings from its file: {', '.join(ignored)} has no effect")
    settings = dict.fromkeys(PARAMETERS) | ADDED | read_settings(Path(file))  # parameters of the method may be newer
    try:
        replayed = {name: settings[name] for name in (*METHOD, *REQUEST, "fps", *ENDINGS, "dtype", "device", "compile")}
        replayed["recorded"] = {name: settings[name] for name in COMPARED}
    except KeyError as error:
        raise InputError(f"{file}: these are not the settings of a clip of zs2: {error} is missing") from error
    check_settings(file, settings)
    if replayed.pop("latents") is not None and "latents" not in options:
        raise InputError(f"{file}: this clip started from given latents: give the same --latents")
    for name in CONTEXTS:
        if replayed.pop(name) is not None and name not in options:
            raise InputError(
                f"{file}: this clip was made from a {name}: give the same in Python, replay(model, file, {name}=…)"
            )
    for name in INPUTS:
        if replayed.pop(name) is not None and name not in options:
            raise InputError(f"{file}: this clip was made from an input: give the same {flag(name)}")
    for name in FILES:
        if replayed.pop(name) is not None and name not in options:
            raise InputError(
                f"{file}: this clip was made with a {name}: give the same, {flag(name)} FILE of zs2 sample, or "
                f"replay(model, file, {name}=…)"
            )
    replayed["prompt_syntax"] = read_as(_texts(settings), replayed["prompt_syntax"])  # also where None is an error now
    replayed = {name: value for name, value in replayed.items() if value is not None}
    replayed["seed"] = [replayed.get("seed", 0)]
    replayed["size"] = (replayed.pop("width"), replayed.pop("height"))
    return replayed | {name: options[name] for name in ALLOWED if name in options}


def replay(model: Any, file: str | os.PathLike[str], **given: Any) -> Clip:
    """Make the clip of a file again, in Python: bit for bit on the same machine.

    Args:
        model: the `ZS2` that made it; the method is that of the clip.
        given: what settings have only a digest of, as it was given: latents, contexts, a flow, and the inputs of guided
            clips.
    Raises: InputError as --replay does, and for a model of another dtype; TypeError for other keywords.
    """
    check_keywords("replay()", given, {"replay()": (*TENSORS, *INPUTS, *FILES)})
    options = replay_options(os.fspath(file), given)
    dtype, compiled = str(model.dtype).removeprefix("torch."), model.unet.compiled is not None
    if (options["dtype"], options["compile"]) != (dtype, compiled):
        raise InputError(
            f"{file}: made with dtype {options['dtype']} and compile {options['compile']}, the model has {dtype} and "
            f"{compiled}: load it so"
        )
    from zs2.sampling.decoding import decode_frames
    from zs2.sampling.sampler import Sampler
    from zs2.video.clip import Clip

    width, height = options["size"]
    names = [name for name in REQUEST if name in options and name not in ("prompt", "seed")]
    more = {name: options[name] for name in names} | {"width": width, "height": height, "seed": options["seed"][0]}
    variant, fps = model.variant(), frame_rate(options["fps"])
    variant._use(Method(**{name: options[name] for name in METHOD if name in options}))  # and nothing of the model's
    plan = variant.plan(Request(options["prompt"], **more))
    settings = variant.settings(plan, fps)
    check_replay(options["recorded"], settings)
    for step in Sampler(plan).steps():
        latents = step.latents
    return Clip(decode_frames(plan, latents), fps, settings)


def check_settings(file: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError for a setting that is null though it has an effect, or of the wrong type."""
    for name in (one for one in settings_in_effect(settings) if one not in replaced(settings)):
        if settings[name] is None and not (name in PARAMETERS and PARAMETERS[name].unset):
            raise InputError(f"{file}: {name} is null, but has an effect with the other settings: expected a value")
    for name, kind in {"weights": dict, "versions": dict, "device": str, "dtype": str, "compile": bool}.items():
        if not isinstance(settings[name], kind):
            raise InputError(f"{file}: {name} is {settings[name]!r}: these are not the settings of a clip of zs2")
    for name in FILES:
        if not isinstance(settings[name], str | None):
            raise InputError(f"{file}: {name} is {settings[name]!r:.60}: expected a SHA-256")
    for name in (name for name, one in PARAMETERS.items() if one.length == 1 and not one.file):
        value = settings[name]
        values = value if PARAMETERS[name].several and isinstance(value, list) else [value]
        if not all(isinstance(one, int | float | None) for one in values):
            raise InputError(f"{file}: {name} is {value!r}: expected a number")


def _texts(settings: Mapping[str, Any]) -> list[str]:
    """The prompts of a clip, without what is no text."""
    prompt = settings["prompt"]
    texts = texts_of(prompt) if isinstance(prompt, str | list | Mapping) else []
    return [text for text in (*texts, settings["negative_prompt"]) if isinstance(text, str)]


def settings_in_effect(settings: Mapping[str, Any]) -> list[str]:
    """The names of the settings that decide this clip; all others may be null."""
    options = [name for name in OPTIONS if DEFAULTS[name] is not None]  # null: as the checkpoint says
    names = ["prompt", *options, "width", "height", "fps", "chunk", "attn"]
    names += ["dtype", "device", "compile", "weights", "versions"]
    attn = str(settings["attn"])
    if settings["latents"] is None:
        return [*names, "seed", *effects(attn, str(settings["noise"]))]
    return [*names, *ATTENTION_KINDS[attn].defaults]


def check_replay(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the recorded settings of a clip with those of the one that is about to be made.

    Warns of another revision, other versions, another device or number of processes. Raises: InputError for other
    weights, latents or inputs.
    """
    if recorded["vae"] != now["vae"]:
        texts = [_vae_text(settings["vae"]) for settings in (recorded, now)]
        raise InputError(f"the clip was made with {texts[0]}, not with {texts[1]}: give the same --vae, or none")
    if recorded["weights"] != now["weights"]:
        parts = [part for part, digest in now["weights"].items() if recorded["weights"].get(part) != digest]
        raise InputError(
            f"the clip was made with other weights, those of {recorded['model']} ({', '.join(parts)} differ): "
            f"give its --model{origin(recorded)}"
        )
    if recorded["lora"] != now["lora"]:
        raise InputError(f"the clip was made with LoRA {recorded['lora']}, not {now['lora']}: give the same --lora")
    if recorded["embeddings"] != now["embeddings"]:
        raise InputError(
            f"the clip was made with embeddings {recorded['embeddings']}, not {now['embeddings']}: "
            "give the same --embedding"
        )
    if recorded["controlnet"] != now["controlnet"]:
        raise InputError("the clip was made with other ControlNets, or in another order: give the same --control")
    for name in (*TENSORS, *FILES):
        if recorded[name] != now[name]:
            text = f"another {name}: give the same" if recorded[name] else f"no {name}: leave it out"
            raise InputError(f"the clip was made from {text}")
    for name in INPUTS:
        if recorded[name] != now[name]:
            got, expected = (_input_text(settings[name]) for settings in (now, recorded))
            raise InputError(
                f"the clip was made with {expected} as {flag(name)}, not with {got}: give the same, or none"
            )
    if recorded["revision"] != now["revision"]:
        texts = [revision_text(settings["revision"]) for settings in (recorded, now)]
        warn(f"made by {texts[0]} of what zs2 computes, now by {texts[1]}: the clip may differ")
    if recorded["versions"] != now["versions"]:
        warn(f"made with {recorded['versions']}, now {now['versions']}: the clip may differ")
    if recorded["device"] != now["device"]:
        warn(f"made on {recorded['device']}, now on {now['device']}: the clip may differ")
    if recorded["processes"] != now["processes"]:
        warn(f"made by {recorded['processes']} process(es), not {now['processes']}: last bits may differ")


def origin(recorded: Mapping[str, Any]) -> str:
    """Where the weights of a clip are, after a semicolon, if they are a default checkpoint's of before."""
    found = former(str(recorded["model"]))
    return f"; {found}" if found else ""


def _vae_text(vae: Any) -> str:
    """What a clip's settings say of --vae, for an error."""
    return "the model's own VAE" if vae is None else f"the VAE {vae}"


def _input_text(record: Any) -> str:
    """What a clip's settings say of an input, for an error."""
    if isinstance(record, list) and record:
        return " and ".join(map(_input_text, record))
    if not isinstance(record, dict):
        return "no input"
    of = f" (frames {record['range']})" if record.get("range") else ""
    return f"the input of SHA-256 {str(record.get('sha256'))[:12]}…{of}"
