"""The cells of an ablation study: variants of the method, the presets that hold them, and any grid. No torch here.

paper    what each part does: each of the two replaced, both baselines, and the controls
lambda   the authors' sweep of λ: 0, 0.05, 0.1, 0.15, 0.2, 0.25, at μ = 0.98
mu       the authors' sweep of μ: 0 (self-attention), 0.25, 0.5, 0.75, 0.9, 1 (cross-frame attention), at λ = 0.1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from zs2.errors import choose
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, same_attention

STUDY_LAM, STUDY_MU = 0.1, 0.98  # the authors' λ in their sweep of μ: their text's 0.01 hardly moves
LAMS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MUS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
PRESETS = ("paper", "lambda", "mu")


@dataclass(frozen=True)
class Cell:
    """One variant. lam, alpha and mu are None where they have no effect.

    frozen: it is frame 0 of the variant, repeated: the control that shows what a still picture scores.
    presets: those that hold it; () for a cell of a grid.
    """

    id: str
    label: str
    noise: str
    lam: float | None
    alpha: float | None
    attn: str
    mu: float | None
    frozen: bool = False
    presets: tuple[str, ...] = ()

    @property
    def method(self) -> dict[str, Any]:
        """The variant as `Method` has it: what has an effect."""
        settings = {"noise": self.noise, "lam": self.lam, "alpha": self.alpha, "attn": self.attn, "mu": self.mu}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def still(self) -> bool:
        """Whether all frames of its clips are one picture: it is the frozen frame, or its frames have one noise."""
        return self.frozen or self.noise == "shared" or (self.noise == "dnm" and self.lam == 0)


def cell(noise: str, lam: float, attn: str, mu: float, alpha: float | None = None) -> Cell:
    """The cell of a variant, whose values are in range. Those without effect are left out, and momentum 0 and 1 are
    the attention that they amount to, so that two cells that are the same have the same id."""
    attn = same_attention(attn, {"mu": mu})
    defaults = NOISE_MODELS[noise].defaults
    if alpha is None:
        alpha = defaults.get("alpha")
    lam_ = abs(float(lam)) if "lam" in defaults else None  # -0.0 is 0
    alpha_ = abs(float(alpha)) if alpha is not None and "alpha" in defaults else None
    mu_ = float(mu) if "mu" in ATTENTION_KINDS[attn].defaults else None
    amount = "".join(f"-{number(x)}" for x in (lam_, alpha_) if x is not None)
    momentum = "" if mu_ is None else f"-{number(mu_)}"
    values = {" λ=": lam_, " a=": alpha_}
    label = noise + "".join(f"{name}{number(x)}" for name, x in values.items() if x is not None)
    label += f" + {attn}" + ("" if mu_ is None else f" μ={number(mu_)}")
    return Cell(f"{noise}{amount}_{attn}{momentum}", label, noise, lam_, alpha_, attn, mu_)


def number(x: float) -> str:
    """A number as it stands in an id: 0.1, 1. No two have the same."""
    return repr(x).removesuffix(".0")


def paper(lam: float = STUDY_LAM, mu: float = STUDY_MU) -> list[Cell]:
    """The two ablations that the paper lacks, the two baselines and the controls."""
    rows = (
        ("dnm", "tma", "full method: DNM + TMA"),
        ("iid", "tma", "without DNM: i.i.d. noise + TMA"),
        ("dnm", "sa", "without TMA: DNM + self-attention"),
        ("dnm", "cfa", "DNM + cross-frame attention"),
        ("iid", "sa", "per-frame DDIM: i.i.d. noise + self-attention"),
        ("text2video-zero", "cfa", "Text2Video-Zero"),
        ("shared", "cfa", "fixed noise + cross-frame attention"),
        ("shared", "sa", "fixed noise + self-attention"),
        ("dnm-search", "tma", "DNM by the published search + TMA"),
        ("mixed", "tma", "mixed noise (PYoCo) + TMA"),
        ("progressive", "tma", "progressive noise (PYoCo) + TMA"),
    )
    cells = [replace(one, label=label + unusual(one)) for one, label in ((cell(n, lam, a, mu), x) for n, a, x in rows)]
    # frame 0 is the same in every variant: this one has no value that would have no effect
    still = replace(cell("shared", lam, "sa", mu), id="frozen", label="frozen frame: frame 0, repeated", frozen=True)
    return [*cells, still]


def unusual(one: Cell) -> str:
    """What a label adds where a cell is not at the study's usual λ and μ."""
    values = (("λ", one.lam, STUDY_LAM), ("μ", one.mu, STUDY_MU))
    said = [f"{name}={number(value)}" for name, value, usual in values if value not in (None, usual)]
    return f" ({', '.join(said)})" if said else ""


def preset(name: str, lam: float = STUDY_LAM, mu: float = STUDY_MU) -> list[Cell]:
    """The cells of a preset, at this λ (of `paper` and `mu`) and this μ (of `paper` and `lambda`).

    Raises: InputError for an unknown name.
    """
    choose("preset", name, PRESETS)
    known = {known.id: known.label for known in paper(lam, mu)}
    if name == "paper":
        cells = paper(lam, mu)
    elif name == "lambda":
        cells = [cell("dnm", value, "tma", mu) for value in LAMS]
    else:
        cells = [cell("dnm", lam, "tma", value) for value in MUS]
    return merge(replace(one, label=known.get(one.id, one.label), presets=(name,)) for one in cells)


def grid(
    noise: Sequence[str],
    attn: Sequence[str],
    lam: Sequence[float],
    mu: Sequence[float],
    alpha: Sequence[float | None] = (None,),
) -> list[Cell]:
    """The product of noise models, attention kinds, λ, μ and a; each cell once, where a value has no effect."""
    return merge(cell(n, x, a, m, y) for n, y, x, a, m in product(noise, alpha, lam, attn, mu))


def merge(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, in order of first appearance, in all the presets that hold it; a preset's label says more."""
    merged: dict[str, Cell] = {}
    for one in cells:
        known = merged.setdefault(one.id, one)
        more = tuple(name for name in one.presets if name not in known.presets)
        label = known.label if known.presets else one.label
        merged[one.id] = replace(known, label=label, presets=known.presets + more)
    return list(merged.values())


def reference(cells: Sequence[Cell]) -> Cell:
    """The cell that the others are compared with: the full method, that of `paper` first, or what is nearest it."""

    def distance(one: Cell) -> tuple[float, ...]:
        lam, mu = (STUDY_LAM if one.lam is None else one.lam), (STUDY_MU if one.mu is None else one.mu)
        kind = one.frozen, one.noise != "dnm", one.attn != "tma", "paper" not in one.presets
        return (*kind, abs(lam - STUDY_LAM), abs(mu - STUDY_MU))

    return min(cells, key=distance)


def sweep_point(one: Cell) -> tuple[float, float] | None:
    """λ and μ of a cell of the authors' sweeps, which are of the full method. None for any other cell."""
    mu = {"sa": 0.0, "cfa": 1.0, "tma": one.mu}.get(one.attn)
    if one.noise != "dnm" or one.frozen or one.lam is None or mu is None:
        return None
    return one.lam, mu
