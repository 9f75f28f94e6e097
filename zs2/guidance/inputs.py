"""How the inputs of a request go together, and their defaults. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zs2.errors import InputError, brief, warn
from zs2.guidance.interval import GUIDED

STRENGTH = 0.8  # as in diffusers
SOURCE_LATENTS = ("sample", "mean")  # which latents of a source: drawn from the VAE's distribution, or its mean
IMAGE_GUIDANCE = 1.5  # as in diffusers
# Where the noise of a first frame comes from: its DDIM inversion at the clip's guidance, each step solved by iteration;
# its DDIM inversion at guidance 1; or the seed.
FIRST_NOISES = MATCHED, INVERTED, DRAWN = ("matched", "inverted", "drawn")


def skipped_steps(steps: int, strength: float) -> int:
    """How many of the first steps a source of this strength leaves out, as in diffusers."""
    return steps - min(int(steps * strength), steps)


def check_inputs(changed: Mapping[str, Any], steps: int) -> None:
    """Check the options of a request that differ from their defaults, as far as the model does not count.

    Raises: InputError for a strength out of range, and for inputs that do not go together. Warns of options without
        effect.
    """
    strength = changed.get("strength", STRENGTH)
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength:g}: expected above 0, which is the source itself, up to 1")
    if "source" in changed and "strength" in changed:  # without it, a model that edits takes all steps
        _check_strength(strength, steps)
    if "first_frame" in changed and "source" in changed:
        raise InputError("first_frame and source: expected one of them")
    if "first_frame" in changed and "latents" in changed:
        raise InputError("first_frame and latents: expected one of them, since frame 0 has a noise of its own")
    for name, needed in (("strength", "source"), ("source_latents", "source"), ("first_frame_noise", "first_frame")):
        if name in changed and needed not in changed and changed[name] != INVERTED:  # which old files say of any clip
            warn(f"{name} has no effect without {needed}")


def _check_strength(strength: float, steps: int) -> None:
    if skipped_steps(steps, strength) == steps:
        raise InputError(f"strength {strength:g} of {steps} steps leaves no step to do: expected more of either")


def check_for_model(request: Any, edits: bool, guided: bool, noise: str | None) -> None:
    """Check the same options of a `Request` for a model.

    Args:
        edits: whether it edits by instruction. guided: whether a step has more than one branch.
        noise: the name of a noise model that needs the sampler, or None.
    Raises: InputError for inputs that the model or the noise can't take, and for a strength without a step. Warns of
        options without effect.
    """
    changed = request.changed
    if edits and "source" not in changed:
        raise InputError(
            "this model edits a clip by an instruction: give the clip as source, the instruction as prompt"
        )
    if "source" in changed and not edits:
        _check_strength(request.strength, request.steps)
    for name in ("first_frame", "control"):
        if edits and name in changed:
            raise InputError(f"this model edits a clip, so it takes no {name}: leave it out")
    if edits and changed.get("guidance") == 0:
        raise InputError("guidance 0 leaves out the instruction of an editing model: expected another guidance")
    if noise is not None and ("first_frame" in changed or ("source" in changed and not edits)):
        name = "first_frame" if "first_frame" in changed else "source"
        raise InputError(f"{name} with {noise} noise, which makes frames from frame 0: expected another noise model")
    if "source" in changed and "latents" in changed and not edits:
        raise InputError("source and latents: expected one of them, since the source's latents are drawn before noise")
    kind = "on an editing model" if edits else "on a model that does not edit by instruction"
    unused = dict.fromkeys(("strength", "source_latents") if edits else ("image_guidance",), kind)
    if edits and changed.get("guidance") == 1:
        unused["image_guidance"] = "at guidance 1"
    elif edits and not guided:
        names = ("guidance", "guidance_interval", "negative_prompt")
        unused |= dict.fromkeys(names, "on an editing model at an image_guidance below 1")
    for name, where in unused.items():
        if name in changed:
            warn(f"{name} has no effect {where}")
    if "source" in changed and not edits:
        _check_intervals(request)


def _check_intervals(request: Any) -> None:
    """Raise InputError for an interval without a step that the source's strength leaves."""
    steps = request.steps
    begin = skipped_steps(steps, request.strength)
    done = range(begin, steps)
    intervals = [("control_interval", one.interval) for one in request.controls if one.is_unused(done, steps)]
    if request.guidance_interval != GUIDED and all(request.guided(step) == 1 for step in done):
        intervals.append(("guidance_interval", request.guidance_interval))
    for name, (start, end) in intervals:
        raise InputError(
            f"{name} {start:g},{end:g} holds none of the steps {begin + 1} to {steps} of {steps}, which strength "
            f"{request.strength:g} leaves: expected a later or wider one, or a larger strength"
        )


def check_contexts(request: Any) -> None:
    """Check contexts that are given instead of prompts, as far as the model does not count. request: a `Request`.

    Raises: InputError for what is no tensor. Warns of options without effect.
    """
    for name in ("context", "negative_context"):
        if (value := getattr(request, name)) is not None and not hasattr(getattr(value, "context", value), "ndim"):
            raise InputError(f"{name} is {brief(value)}: expected a tensor (n, c) or (rows, n, c), or an Encoded")
    unused = []
    if request.context is not None:
        unused += [("prompt", "a context is given")] if request.prompt else []
        unused += [("clip_skip", "a context is given")] if request.clip_skip else []
        unused += [("context", "the guidance is 0")] if request.guidance == 0 else []
    if request.negative_context is not None:
        unused += [("negative prompt", "a negative context is given")] if request.negative_prompt else []
        unused += [("negative context", "the guidance is 1")] if request.guidance == 1 else []
    for name, where in unused:
        warn(f"the {name} has no effect where {where}")
