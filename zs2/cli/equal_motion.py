"""`--motion-target`: the value of a noise model's parameter at which clips move as much as is asked for. No torch here.

λ, a and pixels each have a scale from still to most different (`Parameter.strength`), along which motion grows. The
search halves the part of the scale that holds the target. Clips are short, and the same seeds are used at each value.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zs2.cli.command import say
from zs2.cli.derived_options import value_text
from zs2.errors import InputError, brief, counted, warn
from zs2.method import NOISE_MODELS, PARAMETERS
from zs2.sampling.request import INPUTS, Request
from zs2.system.json_files import is_number

if TYPE_CHECKING:
    from zs2.video.formats import Frames

TOLERANCE = 0.02  # of the target: the search ends when it is as near
HALVINGS = 9
SHORT = 8  # frames: no clip of the search has more


@dataclass(frozen=True)
class Found:
    """A value of a parameter, and the motion of clips with it.

    Args: name: of the parameter. motion: the mean over clips. clips: how many had the value.
        spread: the standard error of the mean over clips; None for one clip.
    """

    name: str
    value: Any
    motion: float
    clips: int
    spread: float | None

    def __str__(self) -> str:
        error = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.name} {value_text(self.value)} has motion {self.motion:.3g}{error}"


def is_near(motion: float, target: float) -> bool:
    """Whether a motion counts as the target's."""
    return abs(motion - target) <= TOLERANCE * target


def check_target(target: float) -> float:
    """The target. Raises: InputError if it is no motion."""
    if not is_number(target) or not 0 < target < 1:
        raise InputError(f"motion_target is {brief(target)}: expected a mean change of pixels, above 0 and below 1")
    return target


def searched(noise: str) -> str | None:
    """The parameter of a noise model that decides how much clips move; None if it has none."""
    return next((name for name in NOISE_MODELS[noise].defaults if PARAMETERS[name].strength is not None), None)


def shortened(request: Request) -> Request:
    """A request for the search: of fewer frames, unless it has inputs or prompts of its own for each."""
    if not isinstance(request.prompt, str) or any(getattr(request, name) is not None for name in INPUTS):
        return request
    frames = min(request.frames or SHORT, SHORT)
    return replace(request, frames=frames, chunk=None if request.chunk is None else min(request.chunk, frames))


def find(make: Callable[[Any], Iterable[Frames]], name: str, target: float) -> Found:
    """Find the value of a parameter at which clips have the target motion.

    Args: make: a value → its clips, of two frames or more, the same prompts and seeds for each value. name: of the
        parameter. target: as `motion` measures it.
    Returns: the nearest value that was tried. The error is the difference of its motion to the target. Where motion
        leaps over the target, no value is as near as TOLERANCE: see `is_near`.
    Raises: InputError if the motion of neither end of the scale is on the other side of the target.
    """
    from zs2.video.motion import motion

    strength = PARAMETERS[name].strength
    if strength is None:
        raise InputError(f"{name} is no measure of motion: expected one of {', '.join(scales())}")

    def at(place: float) -> Found:
        value = PARAMETERS[name].check(strength(place))
        with warnings.catch_warnings():  # those of the clip itself come when it is made
            warnings.simplefilter("ignore")
            found = [x for x in map(motion, make(value)) if x is not None]
        spread = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
        return Found(name, value, statistics.fmean(found), len(found), spread)

    low, high = 0.0, 1.0
    still, most = at(low), at(high)
    if not still.motion <= target <= most.motion:
        raise InputError(
            f"motion_target is {target:g}: with this noise, clips have from {still.motion:.3g} ({still.name} at one "
            f"end) to {most.motion:.3g} (at the other): expected a number in between"
        )
    best = min(still, most, key=lambda one: abs(one.motion - target))
    for _ in range(HALVINGS):
        if is_near(best.motion, target):
            break
        middle = (low + high) / 2
        tried = at(middle)
        low, high = (middle, high) if tried.motion < target else (low, middle)
        best = min(best, tried, key=lambda one: abs(one.motion - target))
    return best


def find_for_clip(model: Any, request: Request, target: float, group: Any = None) -> dict[str, Any]:
    """The keyword of `ZS2.variant` with which the clip of a request has the target motion. Prints what was found, and
    warns if that is not as near as TOLERANCE.

    group: the processes that make the clip together. Raises: as `find` does.
    """
    from zs2.sampling.decoding import decode_frames
    from zs2.sampling.sampler import Sampler

    short = shortened(request)

    def make(value: Any) -> Iterator[Frames]:
        plan = model.variant(**{name: value}).plan(short, group)
        for step in Sampler(plan).steps():
            latents = step.latents
        yield decode_frames(plan, latents)

    name = str(searched(model.method.noise))
    found = find(make, name, target)
    if group is None or group.rank == 0:
        say(f"{found} in {counted(short.frames or 0, 'frame')}, where {target:g} is asked for")
        if not is_near(found.motion, target):
            warn(
                f"motion_target is {target:g}: no value of {name} was found with a motion within {TOLERANCE:.0%} of it"
            )
    return {name: found.value}


def scales() -> list[str]:
    """The parameters that decide how much clips move."""
    return [name for name, parameter in PARAMETERS.items() if parameter.strength is not None]
