"""How the file of a clip is written, beside its frames: rate, quality, order, metadata."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from zs2.errors import InputError, brief, choose, warn, whole

if TYPE_CHECKING:
    from zs2.video.formats import Frames

FPS_MAX = 1000  # WebP counts time in whole milliseconds
FPS_MIN = Fraction(1, 100)
LONGEST = 65_535  # of a picture: hundredths of a second in a GIF, ms in an animated PNG, which have 16 bits for it
TERM_MAX = 10**6  # of a rate as a fraction: MP4 has 32 bits for its unit of time
FPS_HELP = "frames a second, whole, or such as 29.97, 24000/1001 or 0.5 (default 8)"
CRF = 17  # of an MP4 by default
LOOPS = PINGPONG, *_ = ("pingpong",)
ENDINGS = {"quality": (".webp",), "crf": (".mp4",), "loop": (".gif", ".webp", ".png", ".apng", ".mp4")}  # of an option

T = TypeVar("T")
Rate: TypeAlias = int | Fraction


def frame_rate(fps: Any) -> Rate:
    """Frames a second: a number, or a text such as `29.97` or `24000/1001`. A whole one is an int.

    Raises: InputError for anything else, below 0.01 or above 1000, of more than six digits, or with an exponent, since
        1e999999999 would be computed.
    """
    try:
        text = str(fps) if isinstance(fps, float) else fps
        if isinstance(fps, bool) or (isinstance(text, str) and (len(text) > 20 or "e" in text.lower())):
            raise ValueError
        rate = Fraction(text)
    except (TypeError, ValueError, ArithmeticError):
        rate = Fraction(0)
    if not FPS_MIN <= rate <= FPS_MAX or max(rate.numerator, rate.denominator) > TERM_MAX:
        shown = brief(fps).strip("'") or "''"
        raise InputError(f"fps is {shown}: expected frames a second from 0.01 to {FPS_MAX}, such as 8 or 24000/1001")
    return int(rate) if rate.denominator == 1 else rate


def rate_text(fps: Any) -> int | str:
    """A frame rate as JSON has it: a whole number, or a text such as `24000/1001`. Raises: as `frame_rate`."""
    rate = frame_rate(fps)
    return rate if isinstance(rate, int) else str(rate)


@dataclass(frozen=True)
class Encoding:
    """The options of a clip's file.

    Args:
        fps: frames a second, see `frame_rate`.
        quality: of a lossy WebP, 0 to 100. None: lossless.
        crf: of an MP4, 0 (lossless in 4:2:0) to 51. None: 17, which looks lossless.
        loop: `pingpong` writes the frames between the last and the first back again. None: it jumps to the first.
        metadata: whether the clip's settings are in its files.
    Raises: InputError for values out of range.
    """

    fps: Rate = 8
    quality: int | None = None
    crf: int | None = None
    loop: str | None = None
    metadata: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", frame_rate(self.fps))
        for name, most in (("quality", 100), ("crf", 51)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 0, most))
        if self.loop is not None:
            choose("loop", self.loop, LOOPS)
        if not isinstance(self.metadata, bool):
            raise InputError(f"metadata is {brief(self.metadata)}: expected true or false")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Encoding:
        """The encoding in the settings of a clip, or in the options of a command. Raises: InputError."""
        names = ("fps", "metadata", *ENDINGS)
        return cls(**{name: settings[name] for name in names if settings.get(name) is not None})

    def in_effect(self, ending: str, frames: int | None = None) -> Encoding:
        """Without the options that have no effect on a file with this ending, or on so few frames. Warns of them."""
        unused = [name for name, own in ENDINGS.items() if getattr(self, name) is not None and ending not in own]
        for name in unused:
            kind = f"on {ending}" if ending else "on a folder of PNG files"
            warn(f"{name}: no effect {kind} (only on {', '.join(ENDINGS[name])})")
        if self.loop and frames is not None and frames < 3 and "loop" not in unused:
            warn(f"loop: no effect on fewer than 3 frames, got {frames}")
            unused.append("loop")
        others: dict[str, Any] = dict.fromkeys(unused)
        return replace(self, **others)

    def recorded(self) -> dict[str, Any]:
        """The options for the clip's settings; those that are not set are absent."""
        return {name: getattr(self, name) for name in ENDINGS if getattr(self, name) is not None}

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a clip as a file of this encoding has them: without those of another file's encoding."""
        own = {name: value for name, value in settings.items() if name not in ENDINGS}
        rate = {"fps": rate_text(self.fps)} if "fps" in own else {}
        return own | rate | self.recorded()

    def ordered(self, frames: list[T]) -> list[T]:
        """The frames in the order of the file."""
        return frames + frames[-2:0:-1] if self.loop == PINGPONG else frames


def forward(frames: Frames, settings: Mapping[str, Any]) -> Frames:
    """The frames of a clip, from those in the order of its file: the inverse of `Encoding.ordered`."""
    return frames[: len(frames) // 2 + 1] if settings.get("loop") == PINGPONG and len(frames) > 2 else frames


def start(index: int, fps: Rate, units: int) -> int:
    """When a frame starts, rounded to 1/units seconds."""
    return math.floor((2 * index * units + fps) / (2 * Fraction(fps)))


def durations(count: int, fps: Rate, units: int) -> list[int]:
    """How long each frame lasts, in 1/units seconds. Frame i starts at i/fps, rounded."""
    return [end - begin for begin, end in itertools.pairwise(start(i, fps, units) for i in range(count + 1))]


def ways_to_store(pictures: Iterable[bytes], lasting: Sequence[int]) -> list[int]:
    """Which of two ways to store each picture: equal ones in a row, stored alike, last at most LONGEST together.

    Pillow makes one picture of those, and another one of equal ones that are stored the other way.

    lasting: how long each lasts, in the format's unit.
    """
    ways: list[int] = []
    way, total, before = 0, 0, b""
    for picture, time in zip(pictures, lasting, strict=True):
        total += time
        if picture != before:
            way, total = 0, time
        elif total > LONGEST:
            way, total = 1 - way, time
        ways.append(way)
        before = picture
    return ways
