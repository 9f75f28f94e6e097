"""What a visitor asks for, and what a visitor may ask for. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zs2.errors import InputError, whole
from zs2.method import PARAMETERS, Method, effects
from zs2.sampling.request import DEFAULTS, INPUTS, Request, usual

FPS_MAX = 30
CHARACTERS = 2000  # of a prompt
BASELINE = Method(attn="sa", noise="iid")  # without both parts of the method


@dataclass(frozen=True)
class Limits:
    """The largest clip. frames, steps: their numbers. size: the longest side in pixels. queue: how many may wait."""

    frames: int = 64
    steps: int = 100
    size: int = 1024
    queue: int = 16

    def most(self, name: str, most: int | None) -> int | None:
        """The largest value of a sampling option whose own limit is `most`."""
        limit = {"frames": self.frames, "steps": self.steps}.get(name)
        return most if limit is None else limit if most is None else min(most, limit)

    def check(self, prompt: str, options: dict[str, Any]) -> None:
        """Raises: InputError for a larger clip. options: keywords of `Request`."""
        limits = {
            "frames": (self.frames, "--max-frames"),
            "steps": (self.steps, "--max-steps"),
            "width": (self.size, "--max-size"),
            "height": (self.size, "--max-size"),
        }
        for name, (most, option) in limits.items():
            if (got := options.get(name)) is not None and got > most:
                raise InputError(f"{name} is {got}: this page takes at most {most} ({option} of the server)")
        for name, text in (("prompt", prompt), ("negative prompt", options.get("negative_prompt", ""))):
            if len(text) > CHARACTERS:
                raise InputError(f"the {name} has {len(text)} characters: this page takes at most {CHARACTERS}")


@dataclass(frozen=True)
class ClipOptions:
    """A clip.

    Args:
        model: its name, as the command line takes it. prompt, seed, fps: of the clip.
        method: keywords of `Method`. options: the other keywords of `Request`, also width and height.
        own: the checkpoint's own settings, which are defaults. is_default_model: whether commands need no model.
        controlnet: the ControlNet that the option `control` is for; empty without one.
    Raises: InputError for values that make no sense.
    """

    model: str
    prompt: str
    seed: int
    fps: int
    method: Mapping[str, Any]
    options: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    is_default_model: bool = False
    controlnet: str = ""

    def __post_init__(self) -> None:
        Method(**self.method)
        whole("fps", self.fps, 1, FPS_MAX)

    def request(self, **others: Any) -> Request:
        """The request. others: keywords that take the place of these."""
        own = {name: value for name, value in self.own.items() if name in DEFAULTS}
        return Request(self.prompt, **{**own, **self.options, "seed": self.seed, **others})

    @property
    def method_that_differs(self) -> dict[str, Any]:
        """The keywords of `Method` that are not the default."""
        plain = Method()
        default = {"attn": plain.attn, "noise": plain.noise}
        method = Method(attn=self.method["attn"], noise=self.method["noise"])
        default |= {**method.attention_parameters, **method.noise_parameters, **self.own}
        return {name: value for name, value in self.method.items() if default.get(name) != value}

    @property
    def options_that_differ(self) -> dict[str, Any]:
        """The keywords of `Request`, but prompt and seed, that are not the default. Of an input, the file's name."""
        default = {**DEFAULTS, **self.own, **usual(self.options)}
        values = {name: value for name, value in self.options.items() if default.get(name) != value}
        return {name: Path(value).name if name in INPUTS else value for name, value in values.items()}

    @property
    def cost(self) -> float:
        """Frames × steps, as a measure of the work."""
        default = {**DEFAULTS, **self.own, **self.options}
        return float(default["frames"] or 1) * float(default["steps"])


def with_and_without(method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Four methods: with both parts, without the noise model, without the attention, and without both.

    method: keywords of `Method`. Where they are without a part themselves, the part is the default one.
    """
    plain = Method()
    noise = plain.noise if method["noise"] == BASELINE.noise else method["noise"]
    attn = plain.attn if method["attn"] == BASELINE.attn else method["attn"]
    kinds = [(noise, attn), (BASELINE.noise, attn), (noise, BASELINE.attn), (BASELINE.noise, BASELINE.attn)]
    return [
        {name: value for name, value in {**method, "noise": n, "attn": a}.items() if name in effects(a, n)}
        for n, a in kinds
    ]


def title(clip: ClipOptions) -> str:
    """A clip's method in a few characters, such as `dnm λ 0.15 · tma μ 0.98`, and its options that differ."""
    method = clip.method
    parts = {"noise": [str(method["noise"])], "attention": [str(method["attn"])]}
    for name, value in method.items():
        if name in PARAMETERS:
            shown = ", ".join(f"{one:g}" for one in (value if isinstance(value, tuple | list) else [value]))
            parts[PARAMETERS[name].of].append(f"{PARAMETERS[name].symbol} {shown}")
    others = {
        name: value for name, value in clip.options_that_differ.items() if name not in ("frames", "width", "height")
    }
    texts = [" ".join(part) for part in parts.values()]
    return " · ".join([*texts, *(f"{name.replace('_', ' ')} {value}" for name, value in others.items())])
