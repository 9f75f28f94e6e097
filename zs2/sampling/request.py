"""The request that a user makes to a model, and the one list of sampling options. No torch here.

A wrong request is refused before anything is loaded. An option is one field of `Request` with an `Option` as its
metadata: command line, replay, study and settings derive from OPTIONS. (The sampler must use it, of course.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from zs2.errors import InputError, brief, choose, warn, whole
from zs2.guidance.controls import HINTS as HINTS
from zs2.guidance.controls import ControlOptions
from zs2.guidance.inputs import FIRST_NOISES, IMAGE_GUIDANCE, SOURCE_LATENTS, STRENGTH, check_contexts, check_inputs
from zs2.guidance.inputs import check_for_model as check_for_model
from zs2.guidance.interval import GUIDED, checked_interval
from zs2.method import ATTENTION_KINDS, check_seed
from zs2.models.config import SPACINGS
from zs2.sampling.prompt_syntax import (
    A1111,
    MODES,
    SYNTAXES,
    Blend,
    Prompt,
    check_syntax,
    checked_prompt,
    prompt_of,
    texts_of,
    words,
)
from zs2.sampling.solver import SOLVERS
from zs2.system.json_files import MOST_TIMESTEPS, is_number
from zs2.system.options import STATED as STATED
from zs2.system.options import Option, option, plain

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.models.prompt_encoder import Encoded
    from zs2.video.reading import InputClip, InputClips

ABSENT: dict[str, Any] = {"unstated": None, "unset": "none"}  # of an input
PICTURE: dict[str, Any] = {**ABSENT, "picture": True}
FIRST_FRAME_GUIDANCE = 1.5  # low, so that the clip stays near its picture: docs/guidance.md
FINAL_ALPHAS = ("one", "first")  # ᾱ at the end of the last step: 1, or that of the first training timestep
MOST_FRAMES = 10**9  # of one clip
# Fewer, cheaper steps: the CLIP score of 50 DDIM steps, a tenth less motion (benchmarks/fewer_steps.py).
FAST: dict[str, Any] = {"sampler": "dpm++", "steps": 20, "deep_cache": 2}


@dataclass(frozen=True)
class Request(ControlOptions):
    """What to sample: everything but the model and its variant.

    Args: those of `ControlOptions`, and
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
        source: a clip to begin from, or for an editing model the clip to edit. See video/reading.py for the kinds.
        strength: how much of the source is noise at the beginning, above 0 to 1: the share of the steps that is done.
        source_latents: `sample` or `mean` of the VAE's distribution, as in diffusers `sample`.
        first_frame: a picture that is frame 0, as the VAE gives it back. Guidance is then 1.5 by default.
        first_frame_noise: where frame 0 comes from: `matched` (None), `inverted` or `drawn`: see inputs.py.
        image_guidance: of an editing model: how much the source counts. Below 1 there is one branch, as at guidance 1.
        context, negative_context: what the text encoders would make of the prompts, instead of them: (n, c), or
            (rows, n, c), a row a frame, of which the last repeats; for SDXL an `Encoded`, as `model.text` returns.
        latents: initial noise (frames, c, h, w), float32, used as it is. Then seed and noise model have no effect.
        part_of: how many frames the whole clip has, if these are its first ones: latents and noise are of the whole.
    Raises: InputError for values that make no sense.
    """

    prompt: Prompt
    negative_prompt: str = option("", "text", "the text that guidance leads away from", "TEXT")
    frames: int | None = option(8, "whole", "frames of the clip", "N", least=1, most=MOST_FRAMES)
    steps: int = option(50, "whole", "sampling steps", "N", least=1, most=MOST_TIMESTEPS)
    guidance: float = option(
        7.5, "number", "u + G·(c − u), predicted with the prompt (c) and without; 1: c, at half the work", "G"
    )
    guidance_interval: tuple[float, float] = option(
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
    sampler: str = option(
        "ddim", "text", "; ".join(f"{row.name}: {row.summary}" for row in SOLVERS.values()), "KIND", unstated="ddim"
    )
    deep_cache: int = option(
        1,
        "whole",
        "compute the UNet's deep features in every N-th step only; the other steps reuse them, approximately, at a "
        "fraction of the work (1: exact)",
        "N",
        least=1,
        unstated=1,
    )
    clip_skip: int = option(
        0,
        "whole",
        "leave out the last N layers of the text towers for the prompt (not for the negative prompt, as in diffusers); "
        '"Clip skip 2" of A1111 is 1 here',
        "N",
        unstated=0,
    )
    spacing: str | None = option(
        None, "text", f"where the steps are: {', '.join(SPACINGS)}; few-step models need trailing", "S", unstated=None
    )
    zero_snr: bool | None = option(
        None,
        "flag",
        "rescale the schedule to end without signal, with trailing spacing; needs v-prediction",
        unstated=None,
    )
    final_alpha: str | None = option(
        None, "text", "signal after the last step, one (the clean image) or first (of timestep 0)", "A", unstated=None
    )
    prompt_syntax: str | None = option(
        None,
        "text",
        "how prompts are read: plain, or a1111 with weights (word:1.2), [word] and BREAK, at any length",
        "SYNTAX",
        unstated=None,
        unset="plain, with a warning where a prompt has that syntax",
    )
    travel_mode: str | None = None
    source: InputClip | None = option(
        None,
        "clip",
        "begin from this clip: a file, FILE@10:34 or a folder; an editing model edits it",
        "CLIP",
        **ABSENT,
    )
    strength: float = option(
        STRENGTH, "number", "of --source: the share of the steps that is done, above 0 to 1", "S", unstated=STRENGTH
    )
    source_latents: str = option(
        "sample", "text", "of --source: sample or mean of the VAE's distribution", "KIND", unstated="sample"
    )
    first_frame: InputClip | None = option(
        None, "clip", f"frame 0 is this picture; the guidance is then {FIRST_FRAME_GUIDANCE:g}", "IMAGE", **PICTURE
    )
    first_frame_noise: str | None = option(
        None, "text", "of --first-frame: matched, inverted or drawn noise", "KIND", unstated="inverted", unset="matched"
    )
    image_guidance: float = option(
        IMAGE_GUIDANCE, "number", "of editing models: how much the source counts", "G", unstated=IMAGE_GUIDANCE
    )
    context: Tensor | Encoded | None = field(default=None, repr=False, compare=False)
    negative_context: Tensor | Encoded | None = field(default=None, repr=False, compare=False)
    latents: Tensor | None = field(default=None, repr=False, compare=False)
    part_of: int | None = None

    def __post_init__(self) -> None:
        limits = {name: (one.least, one.most) for name, one in OPTIONS.items() if one.kind == "whole"}
        limits |= {"chunk": (1, MOST_FRAMES), "part_of": (self.frames or 1, MOST_FRAMES)}
        for name, (least, most) in limits.items():
            if getattr(self, name) is not None or name not in ("frames", "chunk", "part_of"):
                object.__setattr__(self, name, whole(name, getattr(self, name), least, most))
        object.__setattr__(self, "seed", check_seed(self.seed))
        self._read_inputs()
        self.check_controls(self.steps)
        SOLVERS[self.sampler]
        if self.control_attn is not None:
            ATTENTION_KINDS[self.control_attn]
        for name, options in CHOICES.items():
            if getattr(self, name) is not None:
                choose(name, getattr(self, name), options)
        if self.zero_snr is not None and not isinstance(self.zero_snr, bool):
            raise InputError(f"zero_snr is {brief(self.zero_snr)}: expected true or false")
        for name in (name for name, one in OPTIONS.items() if one.kind == "number" and not one.several):
            if not is_number(getattr(self, name)):
                raise InputError(f"{name} is {brief(getattr(self, name))}: expected a finite number")
            object.__setattr__(self, name, float(getattr(self, name)))
        interval = checked_interval(self.guidance_interval, self.guidance, self.steps)
        object.__setattr__(self, "guidance_interval", interval)
        prompt = checked_prompt(self.prompt, self.negative_prompt, self.frames, self.travel_mode)
        object.__setattr__(self, "prompt", prompt)
        texts = texts_of(self.prompt)
        if self.travel_mode is not None and not (isinstance(self.prompt, dict) and len(texts) > 1):
            warn("travel_mode has no effect without prompts for several frames by number")
            object.__setattr__(self, "travel_mode", None)
        check_syntax((*texts, self.negative_prompt), self.prompt_syntax)
        if self.latents is not None and (getattr(self.latents, "ndim", 0) != 4 or self.latents.requires_grad):
            raise InputError("latents: expected a float32 tensor (frames, c, h, w) that needs no gradient")
        check_inputs(self.changed, self.steps)
        if self.guidance == 1 and self.negative_prompt:
            warn("the negative prompt has no effect at guidance 1")
        check_contexts(self)
        if self.guidance == 0 and any(texts):
            warn("the prompt has no effect at guidance 0, where only the negative prompt counts")
        if self.guidance == 0 and self.clip_skip:
            warn("clip_skip has no effect at guidance 0, where no prompt counts")
        if self.deep_cache > 1 and self.steps == 1:
            warn("deep_cache has no effect on a single step")
        if self.latents is not None and self.seed != 0:
            warn("the seed has no effect where latents are given")

    def _read_inputs(self) -> None:
        """Open the inputs. A clip without a number of frames is as long as its shortest input."""
        for name, source in self.inputs.items():
            from zs2.video.reading import opened

            object.__setattr__(self, name, opened(source, several=OPTIONS[name].several))
        long = {name: clip for name, clip in self.inputs.items() if not OPTIONS[name].picture}
        if self.frames is None:
            counts = (clip.count for clip in long.values() if clip.count is not None)
            object.__setattr__(self, "frames", min(counts, default=None))
        for name, clip in long.items():
            clip.check_length(self.frames, name.replace("_", " "))

    def stored(self, name: str) -> Any:
        """The value of an option as settings store it. Of an input that is its digest."""
        value = getattr(self, name)
        return value.record if value is not None and OPTIONS[name].kind == "clip" else plain(value)

    def guided(self, step: int) -> float:
        """The guidance of a step, counted from 0. Outside the interval it is 1."""
        start, end = self.guidance_interval
        return self.guidance if start <= step / self.steps < end else 1.0

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, and the latents if there are any."""
        values = {name: getattr(self, name) for name in OPTIONS}
        values = {name: value for name, value in values.items() if value is not None and value != DEFAULTS[name]}
        return values if self.latents is None else values | {"latents": self.latents}

    @property
    def inputs(self) -> dict[str, InputClip | InputClips]:
        """The inputs by the names of their options."""
        return {name: value for name in INPUTS if (value := getattr(self, name)) is not None}

    @property
    def noise_of_first_frame(self) -> str | None:
        """Where the noise of the first frame comes from: one of FIRST_NOISES; None without a first frame."""
        return None if self.first_frame is None else self.first_frame_noise or FIRST_NOISES[0]

    @property
    def texts(self) -> list[str]:
        """All texts that count: the prompts but at guidance 0, and the negative prompt but at guidance 1."""
        prompts = [] if self.guidance == 0 or self.context is not None else texts_of(self.prompt)
        return prompts + [self.negative_prompt] * (self.guidance != 1 and self.negative_context is None)

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
OF_CONTROLNETS = tuple(one.name for one in fields(ControlOptions))
_FIELDS.sort(key=lambda one: FIRST.index(one.name) if one.name in FIRST else len(FIRST) + (one.name in OF_CONTROLNETS))
OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in _FIELDS}
CHOICES = {"spacing": SPACINGS, "final_alpha": FINAL_ALPHAS, "prompt_syntax": SYNTAXES, "travel_mode": MODES}
CHOICES |= {"source_latents": SOURCE_LATENTS, "first_frame_noise": FIRST_NOISES}
INPUTS = tuple(name for name, one in OPTIONS.items() if one.kind == "clip")
# The settings of clips that are too old to record them. Those that are null are left out.
UNSTATED = {name: one.unstated for name, one in OPTIONS.items() if one.unstated not in (STATED, None)}
UNSTATED["compile"] = False
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Request) if one.name in OPTIONS}


def usual(options: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the guided modes that these options ask for, which go before those of a checkpoint."""
    return {"guidance": FIRST_FRAME_GUIDANCE} if options.get("first_frame") is not None else {}
