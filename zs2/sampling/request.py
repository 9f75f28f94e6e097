"""The request that a user makes to a model, and the one list of sampling options. No torch here.

A wrong request is refused before anything is loaded. An option is one field of `Request` with an `Option` as its
metadata: command line, replay, study and settings derive from OPTIONS. (The sampler must use it, of course.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from zs2.errors import InputError, brief, choose, whole
from zs2.method import check_seed
from zs2.models.config import SPACINGS
from zs2.sampling.prompt_syntax import (
    A1111,
    MODES,
    SYNTAXES,
    Blend,
    Prompt,
    checked_prompt,
    has_syntax,
    parse,
    prompt_of,
    texts_of,
    words,
)
from zs2.sampling.solver import SOLVERS
from zs2.system.json_files import MOST_TIMESTEPS, is_number

if TYPE_CHECKING:
    from torch import Tensor

GUIDED = (0.0, 1.0)  # the guidance interval that covers all steps
FINAL_ALPHAS = ("one", "first")  # ᾱ at the end of the last step: 1, or that of the first training timestep
MOST_FRAMES = 10**9  # of one clip
STATED: Any = object()  # of an option that every file has
# Options for fewer and cheaper steps. Their clips score like those of 50 DDIM steps, by benchmarks/fewer_steps.py.
# Guidance that ends early is not one of them, because it reduces motion.
FAST: dict[str, Any] = {"sampler": "dpm++", "steps": 20, "deep_cache": 2}


@dataclass(frozen=True)
class Option:
    """How a sampling option is written and stored.

    Args:
        kind: `text`, `whole`, `number`, `pair` (two numbers), `flag` or `clip` (an input, see video/reading.py).
        help: one line, without the default. metavar: the name of its value in the help.
        least, most: the smallest and the largest value, for a whole number.
        unstated: its value in clips whose files are too old to have the option; STATED if all files have it.
        unset: what the default None means.
    """

    kind: str
    help: str
    metavar: str | None = None
    least: int = 0
    most: int | None = None
    unstated: Any = STATED
    unset: str = "as the checkpoint says"


def _option(default: Any, *how: Any, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(*how, **more)})


@dataclass(frozen=True)
class Request:
    """What to sample: everything but the model and its variant.

    Args:
        prompt: text, or one text per frame (prompt travel; the last text repeats), or a schedule: texts by the frames
            at which they hold, `{0: "panda face", 15: "fox face"}`.
        negative_prompt: the text that guidance leads away from.
        frames, steps: at least 1, and at most 10⁹ and 10⁵. With frames=None the clip is endless; only `stream` can do
            that.
        seed: from 0 to 2³²−1 (torch draws from 32 bits).
        guidance: g in u + g·(c − u). At 1 only the prompt counts, at 0 only the negative prompt, at half the work.
        guidance_interval: the share of the steps, from and to, that is guided (Kynkäänniemi et al. 2024, arXiv
            2404.07724). The other steps use the prompt alone, at half the work.
        height, width: pixels, multiples of the VAE's reduction; by default the size that the model was trained at.
        chunk: the number of frames in one call of the UNet (for each process, if several make the clip). It limits the
            memory; the result is the same to float32 rounding. By default as many as fit the free memory.
        sampler: `ddim`, or `dpm++`, which needs fewer steps (DPM-Solver++(2M)).
        deep_cache: compute the UNet's deep features only in every N-th step (DeepCache: Ma et al. 2023, arXiv
            2312.00858). The other steps compute its first and last layer alone, and are approximate; 1 is exact.
        clip_skip: the number of last layers of the text towers that the prompt, but not the negative prompt, does
            without, as in diffusers. "Clip skip 2" of A1111 is 1 here.
        spacing: how the steps' timesteps are placed: `leading`, `trailing` or `linspace` (Lin et al. 2023, arXiv
            2305.08891, table 2). None, here and below: as the checkpoint says.
        zero_snr: whether the schedule is rescaled so that its last timestep has no signal (the same, algorithm 1).
        final_alpha: ᾱ after the last step, `one` or `first` (that of timestep 0). `dpm++` ends at one by default.
        prompt_syntax: `plain`, or `a1111`: see prompt_syntax.py. None: plain, with a warning where a text has weights.
        travel_mode: between two frames of a schedule: `linear` interpolates their contexts token by token, `cut` keeps
            the first one's prompt. None: linear.
        latents: initial noise (frames, c, h, w), float32, used as it is. Then seed and noise model have no effect.
    Raises: InputError for values that make no sense.
    """

    prompt: Prompt
    negative_prompt: str = _option("", "text", "the text that guidance leads away from", "TEXT")
    frames: int | None = _option(8, "whole", "frames of the clip", "N", least=1, most=MOST_FRAMES)
    steps: int = _option(50, "whole", "sampling steps", "N", least=1, most=MOST_TIMESTEPS)
    guidance: float = _option(7.5, "number", "u + G·(c − u); 1: only the prompt, at half the work", "G")
    guidance_interval: tuple[float, float] = _option(
        GUIDED,
        "pair",
        "guide only in this share of the steps, such as 0.2,0.8; the others take half the work (0,1: all)",
        "A,B",
        unstated=[0, 1],
    )
    seed: int = 0
    height: int | None = None
    width: int | None = None
    chunk: int | None = None
    sampler: str = _option(
        "ddim", "text", "; ".join(f"{row.name}: {row.summary}" for row in SOLVERS.values()), "KIND", unstated="ddim"
    )
    deep_cache: int = _option(
        1,
        "whole",
        "compute the UNet's deep features in every N-th step only; the other steps reuse them, approximately, at a "
        "fraction of the work (1: exact)",
        "N",
        least=1,
        unstated=1,
    )
    clip_skip: int = _option(
        0,
        "whole",
        "leave out the last N layers of the text towers for the prompt (not for the negative prompt, as in diffusers); "
        '"Clip skip 2" of A1111 is 1 here',
        "N",
        unstated=0,
    )
    spacing: str | None = _option(
        None, "text", f"where the steps are: {', '.join(SPACINGS)}; few-step models need trailing", "S", unstated=None
    )
    zero_snr: bool | None = _option(
        None,
        "flag",
        "rescale the schedule to end without signal, with trailing spacing; needs v-prediction",
        unstated=None,
    )
    final_alpha: str | None = _option(
        None, "text", "signal after the last step, one (the clean image) or first (of timestep 0)", "A", unstated=None
    )
    prompt_syntax: str | None = _option(
        None,
        "text",
        "how prompts are read: plain, or a1111 with weights (word:1.2), [word] and BREAK, at any length",
        "SYNTAX",
        unstated=None,
        unset="plain, with a warning where a prompt has that syntax",
    )
    travel_mode: str | None = None
    latents: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        limits = {name: (one.least, one.most) for name, one in OPTIONS.items() if one.kind == "whole"}
        for name, (least, most) in {**limits, "chunk": (1, MOST_FRAMES)}.items():
            if getattr(self, name) is not None or name not in ("frames", "chunk"):
                object.__setattr__(self, name, whole(name, getattr(self, name), least, most))
        object.__setattr__(self, "seed", check_seed(self.seed))
        self._read_inputs()
        SOLVERS[self.sampler]
        for name, options in (
            ("spacing", SPACINGS),
            ("final_alpha", FINAL_ALPHAS),
            ("prompt_syntax", SYNTAXES),
            ("travel_mode", MODES),
        ):
            if getattr(self, name) is not None:
                choose(name, getattr(self, name), options)
        if self.zero_snr is not None and not isinstance(self.zero_snr, bool):
            raise InputError(f"zero_snr is {brief(self.zero_snr)}: expected true or false")
        if not is_number(self.guidance):
            raise InputError(f"guidance is {brief(self.guidance)}: expected a finite number")
        object.__setattr__(self, "guidance", float(self.guidance))
        object.__setattr__(self, "guidance_interval", self._interval())
        object.__setattr__(
            self, "prompt", checked_prompt(self.prompt, self.negative_prompt, self.frames, self.travel_mode)
        )
        texts = texts_of(self.prompt)
        if self.travel_mode is not None and not (isinstance(self.prompt, dict) and len(texts) > 1):
            warnings.warn("travel_mode has no effect without prompts for several frames by number", stacklevel=3)
            object.__setattr__(self, "travel_mode", None)
        for text in (*texts, self.negative_prompt):
            if self.prompt_syntax == A1111:
                parse(text)  # raises for what it can't read
            elif self.prompt_syntax is None and has_syntax(text):
                warnings.warn(
                    f"the prompt {text!r} is read as plain text, brackets and BREAK too: give prompt_syntax a1111 to "
                    "read weights in it, or plain to keep them as text",
                    stacklevel=3,
                )
        if self.latents is not None and (getattr(self.latents, "ndim", 0) != 4 or self.latents.requires_grad):
            raise InputError("latents: expected a float32 tensor (frames, c, h, w) that needs no gradient")
        if self.guidance == 1 and self.negative_prompt:
            warnings.warn("the negative prompt has no effect at guidance 1", stacklevel=3)
        if self.guidance == 0 and any(texts):
            warnings.warn("the prompt has no effect at guidance 0, where only the negative prompt counts", stacklevel=3)
        if self.guidance == 0 and self.clip_skip:
            warnings.warn("clip_skip has no effect at guidance 0, where no prompt counts", stacklevel=3)
        if self.deep_cache > 1 and self.steps == 1:
            warnings.warn("deep_cache has no effect on a single step", stacklevel=3)
        if self.latents is not None and self.seed != 0:
            warnings.warn("the seed has no effect where latents are given", stacklevel=3)

    def _read_inputs(self) -> None:
        """Open the inputs. A clip without a number of frames is as long as its shortest input."""
        for name in (name for name in INPUTS if getattr(self, name) is not None):
            from zs2.video.reading import input_clip

            clip = input_clip(getattr(self, name))
            object.__setattr__(self, name, clip)
            if self.frames is None:
                object.__setattr__(self, "frames", clip.count)
            clip.check_length(self.frames, name.replace("_", " "))

    def stored(self, name: str) -> Any:
        """The value of an option as settings store it. Of an input that is its digest."""
        value = getattr(self, name)
        if value is not None and OPTIONS[name].kind == "clip":
            return value.record
        return list(value) if isinstance(value, tuple) else value

    def _interval(self) -> tuple[float, float]:
        """The checked guidance interval."""
        try:
            start, end = (float(share) for share in self.guidance_interval)
            right = 0 <= start < end <= 1
        except (TypeError, ValueError, OverflowError):
            right = False
        if not right:
            raise InputError(
                f"guidance_interval is {brief(self.guidance_interval)}: expected two shares of the steps that rise, "
                "from 0 to 1, such as 0.2,0.8"
            )
        if (start, end) != GUIDED and self.guidance in (0, 1):
            raise InputError(
                f"guidance_interval {start:g},{end:g} with guidance {self.guidance:g}: expected another guidance, for "
                "the interval to switch on and off"
            )
        if not any(start <= step / self.steps < end for step in range(self.steps)):
            raise InputError(
                f"guidance_interval {start:g},{end:g} holds none of the {self.steps} steps: expected a wider one"
            )
        return start, end

    def guided(self, step: int) -> float:
        """The guidance of a step, counted from 0. Outside the interval it is 1."""
        start, end = self.guidance_interval
        return self.guidance if start <= step / self.steps < end else 1.0

    @property
    def texts(self) -> list[str]:
        """All texts that count: the prompts but at guidance 0, and the negative prompt but at guidance 1."""
        return texts_of(self.prompt) * (self.guidance != 0) + [self.negative_prompt] * (self.guidance != 1)

    @property
    def words(self) -> list[str]:
        """The prompts without their syntax."""
        return [*map(words, texts_of(self.prompt))] if self.prompt_syntax == A1111 else texts_of(self.prompt)

    def prompts(self, first: int, count: int) -> list[str | Blend]:
        """The prompts of `count` frames from the frame `first` on, one per frame."""
        return [prompt_of(self.prompt, k, self.travel_mode) for k in range(first, first + count)]


# The sampling options by name, in the order of the stored settings. These are the first entries of the settings, those
# that came later the last ones, so that old and new files are alike.
FIRST = ("negative_prompt", "frames", "steps", "sampler", "deep_cache", "guidance", "guidance_interval")
_FIELDS = [one for one in fields(Request) if "option" in one.metadata]
_FIELDS.sort(key=lambda one: FIRST.index(one.name) if one.name in FIRST else len(FIRST))
OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in _FIELDS}
INPUTS = tuple(name for name, one in OPTIONS.items() if one.kind == "clip")
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Request) if one.name in OPTIONS}
