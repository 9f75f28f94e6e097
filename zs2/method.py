"""The method: which noise and which attention over frames, with their parameters. A variant has other values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zs2.errors import InputError, choose, whole
from zs2.models.config import LAM, MU, NOISE_KINDS, TEXT2VIDEO_ZERO
from zs2.models.temporal import Momentum, uses_mu
from zs2.noise import ALPHA, uses_lam
from zs2.noise import check as check_noise
from zs2.sampling.text2video_zero import MOTION, after


def effects(attn: str, noise: str) -> set[str]:
    """The settings of a `Method` that have an effect with these kinds."""
    zero = noise == TEXT2VIDEO_ZERO
    uses = {"mu": uses_mu(attn), "lam": uses_lam(noise), "alpha": noise in ALPHA, "motion": zero, "renoise": zero}
    return {"attn", "noise", *(name for name, used in uses.items() if used)}


@dataclass(frozen=True)
class Method:
    """Attention over frames and noise model.

    Args:
        attn, mu: attention, and its momentum (default 0.98): see models/temporal.py.
        noise, lam, alpha: noise model, its λ (default 0.01), and a of the PYoCo models: see noise.py.
        motion, renoise: of text2video-zero: translation (x, y) a frame in pixels of 512 (default 12, 12), and how many
            steps come after t₀ and t₁ (default 44 and 47 of 50): see text2video_zero.py.
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
        choose("noise model", self.noise, (*NOISE_KINDS, TEXT2VIDEO_ZERO))
        Momentum(self.attn, MU if self.mu is None else self.mu)
        check_noise("dnm", LAM if self.lam is None else self.lam, self.alpha)
        if self.motion is not None:
            if not _two(self.motion, int | float) or not all(math.isfinite(x) and abs(x) < 1e6 for x in self.motion):
                raise InputError(f"motion is {self.motion!r}: expected two numbers, the pixels of 512 along x and y")
            object.__setattr__(self, "motion", tuple(float(x) for x in self.motion))
        if self.renoise is not None:
            if not _two(self.renoise, int):
                raise InputError(f"renoise is {self.renoise!r}: expected two whole numbers, t0 and t1")
            object.__setattr__(self, "renoise", tuple(whole("renoise", n, 0) for n in self.renoise))

    @property
    def momentum(self) -> Momentum:
        """Of the UNet's self-attentions."""
        return Momentum(self.attn, MU if self.mu is None else self.mu)

    def changed(self, **given: Any) -> Method:
        """Another method; what is not given, or None, stays. Warns of what is given and has no effect with the rest.

        Raises: InputError as the class says; TypeError for a setting that there is not.
        """
        method = replace(self, **{name: value for name, value in given.items() if value is not None})
        for name in ("mu", "lam", "alpha", "motion", "renoise"):
            if given.get(name) is not None and name not in effects(method.attn, method.noise):
                where = f"attention kind {method.attn!r}" if name == "mu" else f"noise model {method.noise!r}"
                warnings.warn(f"{name} has no effect on {where}", stacklevel=3)
        return method

    def settings(self, steps: int, given_latents: bool) -> dict[str, Any]:
        """All that decides a clip of so many steps; None where a setting has no effect."""
        zero = self.noise == TEXT2VIDEO_ZERO
        values = {
            "attn": self.attn,
            "mu": self.momentum.mu,
            "noise": self.noise,
            "lam": LAM if self.lam is None else self.lam,
            "alpha": ALPHA.get(self.noise) if self.alpha is None else self.alpha,
            "motion": list(self.motion or MOTION),
            "renoise": list(after(steps, self.renoise)) if zero and not given_latents else None,
        }
        effect = effects(self.attn, self.noise) & ({"attn", "mu"} if given_latents else values.keys())
        return {name: value if name in effect else None for name, value in values.items()}


def _two(values: object, kind: Any) -> bool:
    return isinstance(values, Sequence) and len(values) == 2 and all(isinstance(value, kind) for value in values)
