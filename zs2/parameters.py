"""The parameters of the method: their names, their ranges, their help, and the range of a seed. No torch here.

A parameter is one row of PARAMETERS and one field of `Method` (method.py). A study varies only those that a `Cell` has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zs2.errors import InputError, brief, whole
from zs2.system.json_files import is_number
from zs2.system.registry import Registry, load

LAM_MAX = math.sqrt(math.e)  # λ of independent noises: see noise/models.py
SEED_MAX = 2**32 - 1  # torch's CPU generator uses 32 bits: larger seeds would repeat smaller ones


def check_seed(seed: object) -> int:
    """The seed as an int. Raises: InputError for one that torch's CPU generator would not tell from a smaller one."""
    if isinstance(seed, int) and seed > SEED_MAX:
        raise InputError(
            f"seed is {brief(seed)}: expected from 0 to {SEED_MAX}, since torch's CPU generator has 32 bits; other "
            f"tools that seed it make the same first frame with {seed % 2**32}"
        )
    return whole("seed", seed, 0, SEED_MAX)


@dataclass(frozen=True)
class Parameter:
    """A parameter of the method.

    Args:
        name: the keyword of `Method`, and the option of the command line.
        symbol: its sign in tables.
        check: returns the value to keep, or raises InputError.
        help: one line, without the default.
        length: how many numbers make up a value. number: their type.
        several: what a list of numbers is in place of one, such as "one for each level"; empty if it can't be one.
        unset: what the default None means.
        of: `attention` or `noise`. A kind has only parameters of its own table, so that no name means two values.
        strength: for a parameter that decides how much frames differ: a place from 0 (still) to 1 → the value, rounded.
        idle: for one without effect on few frames or steps: (value, frames, steps) → a text that says so, or "".
        at_steps: for a parameter that depends on the number of steps: (value or None, steps) → the value in effect.
        file: whether a value is the content of a file, named by its path. It has a `digest`, which is what settings of
            a clip have, and to make the clip again it must be given again. A study and the page can't take it.
        instead_of: the parameters that have no effect beside a value of this one.
    """

    name: str
    symbol: str
    check: Callable[[Any], Any]
    help: str
    length: int = 1
    number: type = float
    several: str = ""
    unset: str = ""
    of: str = "noise"
    idle: Callable[[Any, float, int], str] | None = None
    at_steps: Callable[[Any, int], Any] | None = None
    strength: Callable[[float], Any] | None = None
    file: bool = False
    instead_of: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[float, float] | None:
        """The smallest and the largest number; None if they are not known."""
        check = self.check.check if isinstance(self.check, Levels) else self.check
        return (check.low, check.high) if isinstance(check, Between) else None

    def stored(self, value: Any, steps: int) -> Any:
        """A checked value, or None, as the settings of a clip in so many steps have it. Raises: as `at_steps` does."""
        value = value if self.at_steps is None else self.at_steps(value, steps)
        if self.file:
            return None if value is None else value.digest
        return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Between:
    """A check for a number in a range. ends: the range, with what its ends mean."""

    name: str
    low: float
    high: float
    ends: str

    def __call__(self, value: Any) -> Any:
        """The value. Raises: InputError for one out of range."""
        if not is_number(value) or not self.low <= value <= self.high:
            raise InputError(f"{self.name} is {brief(value)}: expected a number from {self.ends}")
        return value


MU = Between("mu", 0, 1, "0 (self-attention) to 1 (cross-frame attention)")
LAM = Between("lam", 0, LAM_MAX, f"0 (one noise) to √e = {LAM_MAX:.4f} (independent noises)")
ALPHA = Between("alpha", 0, 1e6, "0 (independent noises) to 1e6 (as good as one)")
LAM_HIGH = Between("lam_high", 0, LAM_MAX, f"0 (one noise) to √e = {LAM_MAX:.4f} (independent noises)")
CUTOFF = Between("cutoff", 0, 1, "0 (all frequencies are high) to 1 (all are low)")
ZOOM = Between("zoom", 0.5, 2, "0.5 (half the size in each frame) to 2 (twice the size)")
ROTATE = Between("rotate", -180, 180, "-180 to 180, degrees per frame, clockwise")
WINDOW_MAX = 1024
ANCHORS_MAX = 64
LEVELS_MAX = 16  # more than any UNet has


@dataclass(frozen=True)
class Levels:
    """A check for a number, or for a list of them. A list of one is that number."""

    check: Between

    def __call__(self, value: Any) -> Any:
        """The value, a list as a tuple. Raises: InputError as `check` does."""
        if not isinstance(value, list | tuple):
            return self.check(value)
        if len(value) > LEVELS_MAX:
            raise InputError(f"{self.check.name} is {brief(value)}: expected a number, or up to {LEVELS_MAX} of them")
        return tuple(map(self.check, value)) if len(value) > 1 else self.check(value[0] if value else None)


def _anchors(anchors: Any) -> Any:
    values = anchors if isinstance(anchors, list | tuple) else [anchors]
    if not 1 <= len(values) <= ANCHORS_MAX or values[0] != 0:
        raise InputError(f"anchors is {brief(anchors)}: expected up to {ANCHORS_MAX} indices of frames, 0 first")
    checked = tuple(whole("anchors", index, 0) for index in values)
    if any(after <= before for before, after in pairwise(checked)):
        raise InputError(f"anchors is {brief(anchors)}: expected indices of frames that rise, such as 0,4,8")
    return checked


def _idle_anchors(anchors: tuple[int, ...], frames: float, steps: int) -> str:
    late = ", ".join(str(index) for index in anchors if index >= frames)
    return f"anchors {late}: no effect on {frames} frames, counted from 0" if late else ""


def _idle_window(window: int, frames: float, steps: int) -> str:
    return f"window {window} has no effect on {frames} frames: all have noises of their own" if window >= frames else ""


def _idle_mu_end(mu_end: Any, frames: float, steps: int) -> str:
    return "mu_end has no effect on a single step" if mu_end is not None and steps == 1 else ""


def _motion(motion: Any) -> Any:
    if not _is_pair(motion) or not all(is_number(x) and abs(x) < 1e6 for x in motion):
        raise InputError(f"motion is {brief(motion)}: expected two numbers, the pixels of 512 along x and y")
    return tuple(float(x) for x in motion)


def _renoise(renoise: Any) -> Any:
    if not _is_pair(renoise) or not all(isinstance(n, int) for n in renoise):
        raise InputError(f"renoise is {brief(renoise)}: expected two whole numbers, t0 and t1")
    return tuple(whole("renoise", n, 0) for n in renoise)


def _flow(flow: Any) -> Any:
    return load("zs2.noise.flow:checked")(flow)


def _idle_flow(flow: Any, frames: float, steps: int) -> str:
    return "" if flow is None else str(load("zs2.noise.flow:idle")(flow, frames, steps))


def _is_pair(values: object) -> bool:
    return isinstance(values, Sequence) and len(values) == 2


def renoise_at(renoise: tuple[int, int] | None, steps: int) -> tuple[int, int]:
    """How many steps follow t₀ and t₁ of text2video-zero: as requested, or 44 and 47 of 50 in proportion, and at least
    one step apart.

    Raises: InputError unless 0 ≤ t₀ < t₁ < steps.
    """
    last = min(round(steps * 47 / 50), steps - 1)
    t0, t1 = renoise or (min(round(steps * 44 / 50), last - 1), last)
    if not 0 <= t0 < t1 < steps:
        asked = f"renoise is {brief(t0)},{brief(t1)}" if renoise else f"text2video-zero in {steps} step"
        raise InputError(f"{asked}: expected two numbers of steps, 0 ≤ t0 < t1 < steps, which is {steps}")
    return t0, t1


def _round(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


# Values along a scale of motion, which grows about as √λ. Frames are equal at 0, and as different as can be at 1.
SCALES: dict[str, Callable[[float], Any]] = {
    "lam": lambda place: min(_round(LAM_MAX * place**2), LAM_MAX),
    "alpha": lambda place: _round(math.sqrt(1 - place**2) / place) if place > 0 else 1e6,  # ρ as λ has it
    "motion": lambda place: (_round(48 * place),) * 2,
}
RENOISE = "how many steps follow the warp of frame 0, and how many the point where all frames join"
PARAMETERS: Registry[Parameter] = Registry(
    "parameter",
    [
        Parameter(
            "mu",
            "μ",
            Levels(MU),
            "momentum over frames: 0 (= sa) … 1 (= cfa)",
            several="one for each level of the UNet, the largest maps first",
            of="attention",
        ),
        Parameter(
            "lam",
            "λ",
            LAM,
            "distance of consecutive noises: 0 (still) … √e (independent)",
            strength=SCALES["lam"],
        ),
        Parameter(
            "alpha",
            "a",
            ALPHA,
            "weight of the noise that frames share: 0 (independent) … 1e6 (still)",
            strength=SCALES["alpha"],
        ),
        Parameter(
            "motion",
            "δ",
            _motion,
            "pixels of 512 per frame, left and up (right: --motion=-12,0)",
            length=2,
            strength=SCALES["motion"],
        ),
        Parameter("lam_high", "λₕ", LAM_HIGH, "as λ, for high spatial frequencies"),
        Parameter("cutoff", "c", CUTOFF, "the share of the frequencies along each axis that counts as low"),
        Parameter(
            "window",
            "W",
            lambda value: whole("window", value, 4, WINDOW_MAX),
            "frames with noises of their own; then they repeat, shuffled in quarters",
            number=int,
            idle=_idle_window,
        ),
        Parameter("zoom", "ζ", ZOOM, "how many times larger each frame is than the one before"),
        Parameter("rotate", "φ", ROTATE, "degrees per frame, clockwise"),
        Parameter("renoise", "t₀, t₁", _renoise, RENOISE, length=2, number=int, at_steps=renoise_at),
        Parameter(
            "mu_end",
            "μ₁",
            Levels(Between("mu_end", 0, 1, "0 (self-attention) to 1 (cross-frame attention)")),
            "μ of the last step; it goes there evenly from that of the first",
            idle=_idle_mu_end,
            several="one for each level",
            unset="μ stays",
            of="attention",
        ),
        Parameter(
            "anchors",
            "A",
            _anchors,
            "the frames that are seen from when they have come",
            number=int,
            idle=_idle_anchors,
            several="indices that rise, 0 first",
            of="attention",
        ),
        Parameter(
            "flow",
            "v",
            _flow,
            "safetensors with `flow`, float32 (2, h, w), or (frames-1, 2, h, w): how far pixels go, right and down",
            number=str,
            idle=_idle_flow,
            unset="none",
            file=True,
            instead_of=("motion", "zoom", "rotate"),
        ),
    ],
)
FILES = tuple(name for name, parameter in PARAMETERS.items() if parameter.file)


def replaced(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that have no effect because of another one among these, which has a value; each with that one."""
    given = [name for name, value in parameters.items() if name in PARAMETERS and value is not None]
    return {other: name for name in given for other in PARAMETERS[name].instead_of}
