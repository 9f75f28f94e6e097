"""The controls of a request: for each ControlNet a clip of hints, its scale, and its steps. No torch here.

As in diffusers, a control is on in the steps that lie within its interval as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zs2.errors import InputError, brief, choose, counted, warn
from zs2.system.json_files import is_number
from zs2.system.options import option

if TYPE_CHECKING:
    from zs2.video.formats import Frames
    from zs2.video.reading import InputClip, InputClips

FRAMES, CANNY = HINTS = ("frames", "canny")  # what the hints are: the clip's frames, or their edges
ALL_STEPS = (0.0, 1.0)
CANNY_THRESHOLDS = 100, 200  # those that ControlNets of edges are commonly used with
EACH: dict[str, Any] = {"unstated": None, "several": True}


@dataclass(frozen=True)
class Control:
    """The use of a ControlNet.

    Args:
        clip: the hints, or where they are from. scale: a factor of its residuals.
        interval: the share of the steps, from and to. kind: one of HINTS.
    """

    clip: InputClip
    scale: float
    interval: tuple[float, float]
    kind: str

    def is_on(self, step: int, steps: int) -> bool:
        """Whether it has an effect in a step, counted from 0."""
        start, end = self.interval
        return self.scale != 0 and step / steps >= start and (step + 1) / steps <= end

    def is_unused(self, done: Iterable[int], steps: int) -> bool:
        """Whether its interval holds none of the steps that are done. A scale of 0 is no mistake."""
        return self.scale != 0 and not any(self.is_on(step, steps) for step in done)

    def frames(self, first: int, count: int, size: tuple[int, int]) -> Frames:
        """The hints of `count` frames from the frame `first` on: RGB, uint8 (count, H, W, 3)."""
        frames = self.clip.frames(first, count, size)
        return frames if self.kind == FRAMES else edges(frames)


def edges(frames: Frames) -> Frames:
    """The edges of pictures by Canny's detector, white on black: uint8 (f, H, W, 3).

    Raises: InputError if OpenCV is not installed.
    """
    import numpy as np

    cv2 = opencv()
    found = [cv2.Canny(np.ascontiguousarray(frame), *CANNY_THRESHOLDS) for frame in frames]
    return np.stack([np.asarray(one, np.uint8) for one in found])[..., None].repeat(3, axis=3)


def opencv() -> Any:
    """The module cv2. Raises: InputError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise InputError("control_from canny needs OpenCV: pip install 'zs2[control]'") from error
    return cv2


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """The options of a request for ControlNets. Those with several values have one for each, or one for all.

    Args:
        control: a clip of hints for each ControlNet that the model was loaded with, RGB.
        control_scale: a factor of what it adds to the UNet.
        control_interval: the share of the steps, from and to, in which it is on.
        control_from: `frames`, or `canny`: edges of the clip's frames are the hints.
        control_attn: the kind of attention over frames in the ControlNets; None: that of the UNet.
    """

    control: InputClips | None = option(
        None, "clip", "follow the hints of CLIP by this ControlNet; may be given several times", unset="none", **EACH
    )
    control_scale: tuple[float, ...] | None = option(
        None, "number", "of --control: a factor, for each or once for all", "S", unset="1", **EACH
    )
    control_interval: tuple[tuple[float, float], ...] | None = option(
        None,
        "pair",
        "of --control: the share of the steps in which it is on, for each or once for all",
        "A,B",
        unset="0,1",
        **EACH,
    )
    control_from: tuple[str, ...] | None = option(
        None,
        "text",
        "of --control: frames (its clip holds the hints) or canny (the edges of its frames are the hints; with "
        "zs2[control]); for each or once for all",
        "KIND",
        unset="frames",
        **EACH,
    )
    control_attn: str | None = option(
        None, "text", "attention over frames in the ControlNets", "KIND", unstated=None, unset="that of the UNet"
    )

    @property
    def controls(self) -> tuple[Control, ...]:
        """The use of each ControlNet."""
        clips = self.control or ()
        count = len(clips)
        scales, intervals = self.control_scale or (1.0,) * count, self.control_interval or (ALL_STEPS,) * count
        return tuple(map(Control, clips, scales, intervals, self.control_from or (FRAMES,) * count))

    def check_controls(self, steps: int) -> None:
        """Check the values together, and make them one for each ControlNet. Warns of those without effect.

        Raises: InputError for values out of range, another number of them, an interval without a step, and edges
            without OpenCV.
        """
        count = len(self.control or ())
        if self.control is not None and not count:
            raise InputError("control is empty: expected a clip for each ControlNet, or None")
        for name, (right, expected) in RIGHT.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not count:
                warn(f"{name} has no effect without control")
            object.__setattr__(self, name, _each(name, value, count, right, expected) if count else None)
        if self.control_attn is not None and not count:
            warn("control_attn has no effect without control")
            object.__setattr__(self, "control_attn", None)
        for control in self.controls:
            choose("control_from", control.kind, HINTS)
            if control.kind == CANNY:
                opencv()  # here, not at the first hint
            if control.is_unused(range(steps), steps):
                start, end = control.interval
                raise InputError(
                    f"control_interval {start:g},{end:g} holds none of the {steps} steps: expected a wider one"
                )

    def check_networks(self, networks: int) -> None:
        """Raise InputError if there is neither a clip for each of so many ControlNets, nor none at all."""
        clips = len(self.control or ())
        if clips and clips != networks:
            expected = "a clip for each" if networks else "ZS2.from_pretrained(…, controlnet=…) to load one for each"
            raise InputError(f"{counted(clips, 'control')} for {counted(networks, 'ControlNet')}: expected {expected}")


def _is_interval(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    return pair and 0 <= value[0] < value[1] <= 1


RIGHT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "control_scale": (is_number, "a finite number"),
    "control_interval": (_is_interval, "two shares of the steps that rise, from 0 to 1, such as 0,0.8"),
    "control_from": (lambda value: isinstance(value, str), f"one of {', '.join(HINTS)}"),
}


def _each(name: str, value: Any, count: int, right: Callable[[Any], bool], expected: str) -> tuple[Any, ...]:
    """A value for each of `count` controls, from one for all or a list."""
    values = [value] if right(value) or not isinstance(value, list | tuple) else [*value]
    wrong = [one for one in values if not right(one)]
    if wrong or not values:
        raise InputError(f"{name} is {brief(wrong[0] if wrong else value)}: expected {expected}")
    if len(values) not in (1, count):
        raise InputError(f"{name} has {len(values)} values for {counted(count, 'control')}: expected one, or one each")
    return tuple(map(_exact, values * (count if len(values) == 1 else 1)))


def _exact(value: Any) -> Any:
    """A checked value: numbers are floats, a pair is a tuple."""
    if isinstance(value, list | tuple):
        return tuple(map(float, value))
    return float(value) if is_number(value) else value
