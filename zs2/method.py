"""The method: which noise and which attention over frames, with their parameters. No torch here.

This is the one list of what can be ablated. A kind is one row of ATTENTION_KINDS or NOISE_MODELS: its name, its
parameters with their defaults, its help, and the code that computes it. Everything else asks the row: command line,
settings, replay, study, memory plan and sampler. A parameter is one row of PARAMETERS and one field of `Method`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from zs2.errors import InputError, whole
from zs2.system.registry import Registry

LAM_MAX = math.sqrt(math.e)  # λ of independent noises: see noise.py
SEED_MAX = 2**32 - 1  # torch's CPU generator uses 32 bits: larger seeds would repeat smaller ones


@dataclass(frozen=True)
class Parameter:
    """A parameter of the method.

    Args:
        name: the keyword of `Method`, and the option of the command line.
        symbol: its sign in tables.
        check: returns the value to keep, or raises InputError.
        help: one line, without the default.
        length: how many numbers make up a value. number: their type.
        at_steps: for a parameter that depends on the number of steps: (value or None, steps) → the value in effect.
    """

    name: str
    symbol: str
    check: Callable[[Any], Any]
    help: str
    length: int = 1
    number: type = float
    at_steps: Callable[[Any, int], Any] | None = None


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention over frames.

    Args:
        name: the value of `attn`.
        summary: one line of help.
        implementation: a subclass of `zs2.models.temporal.Momentum`, or "module:name" of one. It takes the kind's
            parameters as keywords.
        defaults: the kind's parameters, with their default values.
        same_as: parameter values at which this kind equals another: {("mu", 0): "sa"}.
    """

    name: str
    summary: str
    implementation: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    same_as: Mapping[tuple[str, float], str] = field(default_factory=dict)


@dataclass(frozen=True)
class NoiseModel:
    """A distribution of the initial noises of the frames.

    Args:
        name: the value of `noise`.
        summary: one line of help.
        generate: a function, or "module:name" of one: (draws: zs2.noise.Draws, **parameters) → the noises of the
            frames, in order and without end. With `needs_frames` it also gets `frames=`, and may end after so many.
        defaults: the model's parameters, with their default values.
        correlation: parameters → the correlation of consecutive frames by theory; None where there is no closed form.
        still: parameters → whether all frames have one noise, so that the clip is one picture.
        needs_frames: whether the number of frames must be known in advance. Then endless streams are refused.
        start: for a model that needs the sampler: a function, or "module:name" of one; see Start in sampling/plan.py.
    """

    name: str
    summary: str
    generate: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    correlation: Callable[..., float | None] = lambda **_: None
    still: Callable[..., bool] = lambda **_: False
    needs_frames: bool = False
    start: Any = None


def _between(name: str, low: float, high: float, ends: str) -> Callable[[Any], Any]:
    """A check for a number in a range. ends: the range, with what its ends mean."""

    def check(value: Any) -> Any:
        if not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(f"{name} is {value}: expected a number from {ends}")
        return value

    return check


MU = _between("mu", 0, 1, "0 (self-attention) to 1 (cross-frame attention)")
LAM = _between("lam", 0, LAM_MAX, f"0 (one noise) to √e = {LAM_MAX:.4f} (independent noises)")
ALPHA = _between("alpha", 0, 1e6, "0 (independent noises) to 1e6 (as good as one)")


def _motion(motion: Any) -> Any:
    if not _two(motion, int | float) or not all(math.isfinite(x) and abs(x) < 1e6 for x in motion):
        raise InputError(f"motion is {motion!r}: expected two numbers, the pixels of 512 along x and y")
    return tuple(float(x) for x in motion)


def _renoise(renoise: Any) -> Any:
    if not _two(renoise, int):
        raise InputError(f"renoise is {renoise!r}: expected two whole numbers, t0 and t1")
    return tuple(whole("renoise", n, 0) for n in renoise)


def _two(values: object, kind: Any) -> bool:
    return isinstance(values, Sequence) and len(values) == 2 and all(isinstance(value, kind) for value in values)


def renoise_at(renoise: tuple[int, int] | None, steps: int) -> tuple[int, int]:
    """How many steps follow t₀ and t₁ of text2video-zero: as requested, or 44 and 47 of 50 in proportion, and at least
    one step apart.

    Raises: InputError unless 0 ≤ t₀ < t₁ < steps.
    """
    if renoise is None:
        t1 = min(round(steps * 47 / 50), steps - 1)
        t0 = min(round(steps * 44 / 50), t1 - 1)
    else:
        t0, t1 = renoise
    if not 0 <= t0 < t1 < steps:
        asked = f"renoise is {t0},{t1}" if renoise else f"text2video-zero in {steps} step"
        raise InputError(f"{asked}: expected two numbers of steps, 0 ≤ t0 < t1 < steps, which is {steps}")
    return t0, t1


RENOISE = "how many steps follow the warp of frame 0, and how many the point where all frames join"
PARAMETERS: Registry[Parameter] = Registry(
    "parameter",
    [
        Parameter("mu", "μ", MU, "momentum over frames: 0 (= sa) … 1 (= cfa)"),
        Parameter("lam", "λ", LAM, "distance of consecutive noises: 0 (still) … √e (independent)"),
        Parameter("alpha", "a", ALPHA, "weight of the noise that frames share: 0 (independent) … 1e6 (still)"),
        Parameter("motion", "δ", _motion, "pixels of 512 per frame, left and up (right: --motion=-12,0)", length=2),
        Parameter("renoise", "t₀, t₁", _renoise, RENOISE, length=2, number=int, at_steps=renoise_at),
    ],
)

ATTENTION_KINDS: Registry[AttentionKind] = Registry(
    "attention kind",
    [
        AttentionKind("sa", "self-attention: every frame sees itself", "zs2.models.temporal:SelfAttention"),
        AttentionKind("cfa", "cross-frame attention: every frame sees frame 0", "zs2.models.temporal:CrossFrame"),
        AttentionKind(
            "tma",
            "temporal momentum attention, the paper's: a running average over frames",
            "zs2.models.temporal:Temporal",
            {"mu": 0.98},
            {("mu", 0): "sa", ("mu", 1): "cfa"},
        ),
        AttentionKind(
            "tma-two-tap",
            "the paper's second listing: an average with the frame before",
            "zs2.models.temporal:TwoTap",
            {"mu": 0.98},
            {("mu", 0): "sa"},
        ),
    ],
)

NOISE_MODELS: Registry[NoiseModel] = Registry(
    "noise model",
    [
        NoiseModel("iid", "independent noises", "zs2.noise:iid", correlation=lambda: 0.0),
        NoiseModel("shared", "one noise", "zs2.noise:shared", correlation=lambda: 1.0, still=lambda: True),
        NoiseModel(
            "mixed",
            "PYoCo's: one noise in all frames, mixed with each frame's own",
            "zs2.noise:mixed",
            {"alpha": 1.0},
            correlation=lambda alpha: alpha**2 / (1 + alpha**2),
        ),
        NoiseModel(
            "progressive",
            "PYoCo's: the noise of the frame before, mixed with new noise",
            "zs2.noise:progressive",
            {"alpha": 2.0},
            correlation=lambda alpha: alpha / math.sqrt(1 + alpha**2),
        ),
        NoiseModel(
            "dnm",
            "the dependency noise model, the paper's, in closed form",
            "zs2.noise:dnm",
            {"lam": 0.01},
            correlation=lambda lam: 1 - lam / LAM_MAX,
            still=lambda lam: lam == 0,
        ),
        NoiseModel("dnm-search", "the paper's listing: a search for λ", "zs2.noise:dnm_search", {"lam": 0.01}),
        NoiseModel(
            "text2video-zero",
            "Text2Video-Zero's: frame 0 moved and noised again, without its background smoothing",
            "zs2.noise:iid",
            {"motion": (12.0, 12.0), "renoise": None},
            start="zs2.sampling.text2video_zero:MovedFrames",
        ),
    ],
)


@dataclass(frozen=True)
class Method:
    """The attention over frames and the noise model, with their parameters.

    Args:
        attn: the attention kind. mu: its momentum.
        noise: the noise model. lam: its λ. alpha: the a of PYoCo's models.
        motion, renoise: of text2video-zero: the translation (x, y) per frame in pixels of 512, and how many steps
            follow t₀ and t₁ (by default 44 and 47 of 50).
        A parameter that is None has its kind's default.
    Raises: InputError for an unknown kind, or a value out of range.
    """

    attn: str = "tma"
    mu: float | None = None
    noise: str = "dnm"
    lam: float | None = None
    alpha: float | None = None
    motion: tuple[float, float] | None = None
    renoise: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        NOISE_MODELS[self.noise]
        ATTENTION_KINDS[self.attn]
        for parameter in PARAMETERS.values():
            value = getattr(self, parameter.name)
            if value is not None:
                object.__setattr__(self, parameter.name, parameter.check(value))

    @property
    def attention_parameters(self) -> dict[str, Any]:
        """The values of the attention kind's parameters."""
        return self._values(ATTENTION_KINDS[self.attn].defaults)

    @property
    def noise_parameters(self) -> dict[str, Any]:
        """The values of the noise model's parameters."""
        return self._values(NOISE_MODELS[self.noise].defaults)

    def _values(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in defaults}
        return {name: default if own[name] is None else own[name] for name, default in defaults.items()}

    def changed(self, **settings: Any) -> Method:
        """A copy with other settings. A setting that is absent or None stays. Warns of settings without effect.

        Raises: InputError as the class says; TypeError for an unknown setting.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        method = replace(self, **settings)
        effect = effects(method.attn, method.noise)
        for name in PARAMETERS:
            if name in settings and name not in effect:
                of_attention = any(name in kind.defaults for kind in ATTENTION_KINDS.values())
                where = f"attention kind {method.attn!r}" if of_attention else f"noise model {method.noise!r}"
                warnings.warn(f"{name} has no effect on {where}", stacklevel=3)
        return method

    def settings(self, steps: int, from_latents: bool) -> dict[str, Any]:
        """The settings that decide a clip in `steps` steps. A setting without effect is None.

        from_latents: whether sampling starts from the caller's latents. Then there is no noise model.
        Raises: InputError for too few steps.
        """
        values = self.attention_parameters if from_latents else self.attention_parameters | self.noise_parameters
        for name in values:
            at_steps = PARAMETERS[name].at_steps
            if at_steps is not None:
                values[name] = at_steps(values[name], steps)
        values |= {"attn": self.attn, "noise": None if from_latents else self.noise}
        stored = {name: values.get(name) for name in METHOD}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}


METHOD = tuple(one.name for one in fields(Method))  # the names of its settings


def effects(attn: str, noise: str) -> set[str]:
    """The settings of a `Method` that have an effect with these kinds. Raises: InputError for an unknown kind."""
    return {"attn", "noise", *ATTENTION_KINDS[attn].defaults, *NOISE_MODELS[noise].defaults}


def same_attention(attn: str, parameters: Mapping[str, Any]) -> str:
    """The name of the simplest kind that computes the same with these values: `sa` for `tma` at μ = 0."""
    for (name, value), kind in ATTENTION_KINDS[attn].same_as.items():
        if parameters.get(name) == value:
            return kind
    return attn
