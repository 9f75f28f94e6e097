"""The method: which noise and which attention over frames, with their parameters. No torch here.

This is the one list of what can be ablated. A kind is one row of ATTENTION_KINDS or NOISE_MODELS: its name, its
parameters with their defaults, its help, and the code that computes it. Everything else asks the row: command line,
settings, replay, study, memory plan and sampler. The parameters themselves are rows of parameters.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from zs2.errors import warn
from zs2.parameters import FILES as FILES
from zs2.parameters import LAM_MAX as LAM_MAX
from zs2.parameters import PARAMETERS as PARAMETERS
from zs2.parameters import SEED_MAX as SEED_MAX
from zs2.parameters import check_seed as check_seed
from zs2.parameters import renoise_at as renoise_at
from zs2.parameters import replaced as replaced
from zs2.system.registry import Registry


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention over frames.

    Args:
        name: the value of `attn`. summary: one line of help.
        implementation: a subclass of `zs2.models.temporal.Momentum`, or "module:name" of one. It takes the kind's
            parameters as keywords.
        defaults: the kind's parameters, with their default values.
        same_as: values at which this kind equals another, if other parameters have their defaults: {("mu", 0): "sa"}.
    """

    name: str
    summary: str
    implementation: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    same_as: Mapping[tuple[str, Any], str] = field(default_factory=dict)


@dataclass(frozen=True)
class NoiseModel:
    """A distribution of the initial noises of the frames.

    Args:
        name: the value of `noise`. summary: one line of help.
        generate: a function, or "module:name" of one: (draws: zs2.noise.models.Draws, **parameters) → the noises of the
            frames, in order and without end. With `needs_frames` it also gets `frames=`, and may end after so many.
        defaults: the model's parameters, with their default values.
        correlation: parameters → the correlation of consecutive frames by theory, or None; or "module:name" of that.
        needs_size: whether `correlation` must also get the noises' `height=` and `width=`, without which it raises.
        still: parameters → whether all frames have one noise, so that the clip is one picture.
        needs_frames: whether the number of frames must be known in advance. Then endless streams are refused.
        check: a function, or "module:name" of one: (shape, frames or None, **parameters) → None. It raises InputError.
        start: for a model that needs the sampler: a class, or "module:name" of one; see Start in sampling/plan.py. It
            gets the parameters, and `generate` none.
    """

    name: str
    summary: str
    generate: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    correlation: Callable[..., float | None] | str = lambda **_: None
    needs_size: bool = False
    still: Callable[..., bool] = lambda **_: False
    needs_frames: bool = False
    check: Any = None
    start: Any = None


def _check_parameters(row: AttentionKind | NoiseModel) -> None:
    """Refuse parameters that are not of the row's table: one name must not mean two values."""
    table = "attention" if isinstance(row, AttentionKind) else "noise"
    for name in row.defaults:
        if name not in PARAMETERS or PARAMETERS[name].of != table:
            raise ValueError(f"{row.name!r} has the parameter {name!r}, which PARAMETERS does not have for {table}")


ATTENTION_KINDS: Registry[AttentionKind] = Registry(
    "attention kind",
    [
        AttentionKind("sa", "self-attention: every frame sees itself", "zs2.models.temporal:SelfAttention"),
        AttentionKind("cfa", "cross-frame attention: every frame sees frame 0", "zs2.models.temporal:CrossFrame"),
        AttentionKind(
            "tma",
            "temporal momentum attention, the paper's: a running average over frames",
            "zs2.models.temporal:Temporal",
            {"mu": 0.98, "mu_end": None},
            {("mu", 0): "sa", ("mu", 1): "cfa"},
        ),
        AttentionKind(
            "tma-two-tap",
            "the paper's second listing: an average with the frame before",
            "zs2.models.temporal:TwoTap",
            {"mu": 0.98, "mu_end": None},
            {("mu", 0): "sa"},
        ),
        AttentionKind(
            "first-previous",
            "every frame sees frame 0 and the frame before",
            "zs2.models.temporal:FirstPrevious",
        ),
        AttentionKind(
            "extended",
            "every frame sees the anchor frames that have come by then",
            "zs2.models.temporal:Extended",
            {"anchors": (0, 4)},
            {("anchors", (0,)): "cfa"},
        ),
    ],
    _check_parameters,
)

NOISE_MODELS: Registry[NoiseModel] = Registry(
    "noise model",
    [
        NoiseModel("iid", "independent noises", "zs2.noise.models:iid", correlation=lambda: 0.0),
        NoiseModel("shared", "one noise", "zs2.noise.models:shared", correlation=lambda: 1.0, still=lambda: True),
        NoiseModel(
            "mixed",
            "PYoCo's: one noise in all frames, mixed with each frame's own",
            "zs2.noise.models:mixed",
            {"alpha": 1.0},
            correlation=lambda alpha: alpha**2 / (1 + alpha**2),
        ),
        NoiseModel(
            "progressive",
            "PYoCo's: the noise of the frame before, mixed with new noise",
            "zs2.noise.models:progressive",
            {"alpha": 2.0},
            correlation=lambda alpha: alpha / math.sqrt(1 + alpha**2),
        ),
        NoiseModel(
            "dnm",
            "the dependency noise model, the paper's, in closed form",
            "zs2.noise.models:dnm",
            {"lam": 0.01},
            correlation=lambda lam: 1 - lam / LAM_MAX,
            still=lambda lam: lam == 0,
        ),
        NoiseModel("dnm-search", "the paper's listing: a search for λ", "zs2.noise.models:dnm_search", {"lam": 0.01}),
        NoiseModel(
            "text2video-zero",
            "Text2Video-Zero's: frame 0 moved and noised again, without its background smoothing",
            "zs2.noise.models:iid",
            {"motion": (12.0, 12.0), "renoise": None},
            start="zs2.sampling.text2video_zero:MovedFrames",
        ),
        NoiseModel(
            "freq",
            "as dnm, with a λ for low spatial frequencies and another for high ones",
            "zs2.noise.spectrum:freq",
            {"lam": 0.01, "lam_high": LAM_MAX, "cutoff": 0.25},
            correlation="zs2.noise.spectrum:correlation",
            needs_size=True,
            still=lambda lam, lam_high, cutoff: (lam == 0 or cutoff == 0) and (lam_high == 0 or cutoff == 1),
        ),
        NoiseModel(
            "freenoise",
            "FreeNoise's: the independent noises of the first frames, shuffled along the clip",
            "zs2.noise.window:freenoise",
            {"window": 16},
            correlation=lambda window: 0.0,
        ),
        NoiseModel(
            "warp",
            "one noise, carried along by a movement of the picture",
            "zs2.noise.warp:warp",
            {"motion": (12.0, 12.0), "zoom": 1.0, "rotate": 0.0, "flow": None},
            still=lambda motion, zoom, rotate, flow: not flow and motion == (0, 0) and zoom == 1 and rotate == 0,
            check="zs2.noise.flow:check_fits",
        ),
        NoiseModel(
            "loop",
            "as dnm, around a circle: the last frame is as near to the first as any two neighbours",
            "zs2.noise.loop:loop",
            {"lam": 0.01},
            correlation=lambda lam: 1 - lam / LAM_MAX,
            still=lambda lam: lam == 0,
            needs_frames=True,
        ),
    ],
    _check_parameters,
)


@dataclass(frozen=True)
class Method:
    """The attention over frames and the noise model, with their parameters.

    Args:
        attn: the attention kind. mu: its momentum, or one for each level of the UNet. mu_end: that of the last step.
        anchors: of extended: the indices of the frames that the others see.
        noise: the noise model. lam: its λ. alpha: the a of PYoCo's models.
        motion: of text2video-zero and warp: the translation (x, y) per frame in pixels of 512.
        renoise: of text2video-zero: how many steps follow t₀ and t₁ (by default 44 and 47 of 50).
        lam_high, cutoff: of freq: λ of the high frequencies, and the share of frequencies along an axis that is low.
        window: of freenoise: the number of frames with noises of their own.
        zoom, rotate: of warp: the factor and the degrees per frame. flow: the movement instead; see noise/flow.py.
        A parameter that is None has its kind's default.
    Raises: InputError for an unknown kind, or a value out of range.
    """

    attn: str = "tma"
    mu: float | tuple[float, ...] | None = None
    noise: str = "dnm"
    lam: float | None = None
    alpha: float | None = None
    motion: tuple[float, float] | None = None
    renoise: tuple[int, int] | None = None
    lam_high: float | None = None
    cutoff: float | None = None
    window: int | None = None
    zoom: float | None = None
    rotate: float | None = None
    mu_end: float | tuple[float, ...] | None = None
    anchors: tuple[int, ...] | None = None
    flow: Any = None

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
        return dict(defaults) | {name: value for name, value in own.items() if value is not None}

    def changed(self, **settings: Any) -> Method:
        """A copy with other settings. A setting that is absent or None stays, but a motion, zoom or rotation that comes
        without a flow drops the flow that was there. Warns of settings without effect.

        Raises: InputError as the class says; TypeError for an unknown setting.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        unset: dict[str, Any] = {by: None for by, one in PARAMETERS.items() if {*one.instead_of} & settings.keys()}
        method = replace(self, **unset | settings)
        effect = effects(method.attn, method.noise)
        for name in PARAMETERS:
            if name in settings and name not in effect:
                attention = PARAMETERS[name].of == "attention"
                where = f"attention kind {method.attn!r}" if attention else f"noise model {method.noise!r}"
                warn(f"{name} has no effect on {where}")
        for name, by in replaced(method.noise_parameters).items():
            if name in settings:
                warn(f"{name} has no effect beside {by}")
        return method

    def settings(self, steps: int, from_latents: bool) -> dict[str, Any]:
        """The settings that decide a clip in `steps` steps. A setting without effect is None.

        from_latents: whether sampling starts from the caller's latents. Then there is no noise model.
        Raises: InputError for too few steps.
        """
        values = self.attention_parameters if from_latents else self.attention_parameters | self.noise_parameters
        values = {name: PARAMETERS[name].stored(value, steps) for name, value in values.items()}
        values |= {"attn": self.attn, "noise": None if from_latents else self.noise, **dict.fromkeys(replaced(values))}
        return {name: values.get(name) for name in METHOD}

    def warn_of_idle(self, frames: int | None, steps: int, from_latents: bool) -> None:
        """Warn of parameters without effect on a clip of so many frames (None: without end) and steps."""
        for name, value in (self.attention_parameters | ({} if from_latents else self.noise_parameters)).items():
            if (idle := PARAMETERS[name].idle) and (text := idle(value, frames or math.inf, steps)) and frames != 1:
                warn(text)


METHOD = tuple(one.name for one in fields(Method))  # the names of its settings


def effects(attn: str, noise: str) -> set[str]:
    """The settings of a `Method` that have an effect with these kinds. Raises: InputError for an unknown kind."""
    return {"attn", "noise", *ATTENTION_KINDS[attn].defaults, *NOISE_MODELS[noise].defaults}


def same_attention(attn: str, parameters: Mapping[str, Any]) -> str:
    """The name of the simplest kind that computes the same with these values: `sa` for `tma` at μ = 0."""
    row = ATTENTION_KINDS[attn]
    values = {name: parameters.get(name, default) for name, default in row.defaults.items()}
    for (name, value), kind in row.same_as.items():
        if values == {**row.defaults, name: value}:
            return kind
    return attn
