"""The cells of an ablation study: variants of the method, the presets that hold them, and any grid. No torch here.

paper    what each part does: each of the two replaced, both baselines, and the controls
lambda   the authors' sweep of λ: 0, 0.05, 0.1, 0.15, 0.2, 0.25, at μ = 0.98
mu       the authors' sweep of μ: 0 (self-attention), 0.25, 0.5, 0.75, 0.9, 1 (cross-frame attention), at λ = 0.1
motion   eight variants at equal motion, by --motion-target, and a still clip
reproduce   the experiments of the paper, one by one: see experiments.py

Noise models and attention kinds are described in method.py. Here only the rows of the presets name one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from zs2.cli.derived_options import value_text
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, PARAMETERS, Method, same_attention
from zs2.system.registry import Registry, load

STUDY_LAM, STUDY_MU = 0.1, 0.98  # the authors' λ in their sweep of μ, because clips of their text's 0.01 hardly move
NUMBERS = ("lam", "alpha", "mu", "mu_end", "lam_high", "cutoff", "motion")  # the parameters that a cell has
# Of numbers in an id, which are absent at their defaults. motion is only searched: see equal_motion.py.
PREFIXES = {"mu_end": "to-", "lam_high": "high-", "cutoff": "cutoff-", "motion": "motion-"}
Number = float | tuple[float, ...]  # of several: one for each level; or the pixels along x and y
FULL = Method(noise="dnm", lam=STUDY_LAM, attn="tma", mu=STUDY_MU)  # the full method
WITHOUT_NOISE, WITHOUT_ATTENTION = "iid", "sa"  # what stands where one of the two parts is taken away

# The authors' sweeps: mean absolute change between consecutive frames of their own clips (of pose-guided motion, 16
# frames, 512²) at each value.
AUTHORS = {
    "lambda": {0.0: 0.0204, 0.05: 0.0393, 0.1: 0.0457, 0.15: 0.0586, 0.2: 0.0633, 0.25: 0.0752},
    "mu": {0.0: 0.1245, 0.25: 0.0722, 0.5: 0.0676, 0.75: 0.0606, 0.9: 0.0499, 1.0: 0.0511},
}


@dataclass(frozen=True)
class Cell:
    """One variant of the method.

    Args:
        id: its name in the names of files.
        label: its name in tables.
        noise, attn: the noise model and the attention kind.
        lam, alpha, mu, mu_end, lam_high, cutoff, motion: their parameters; None where one has no effect. The last four
            are also None at their defaults.
        frozen: its clips are frame 0 of the variant, repeated: the control that shows what a still picture scores.
        presets: those that hold it; () for a cell of a grid.
    """

    id: str
    label: str
    noise: str
    lam: float | None
    alpha: float | None
    attn: str
    mu: Number | None
    frozen: bool = False
    presets: tuple[str, ...] = ()
    mu_end: Number | None = None
    lam_high: float | None = None
    cutoff: float | None = None
    motion: Number | None = None

    @property
    def method(self) -> dict[str, Any]:
        """The arguments of its `Method`: those that have an effect."""
        values = {name: getattr(self, name) for name in ("noise", "attn", *NUMBERS)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def still(self) -> bool:
        """Whether all frames of its clips are one picture: it is the frozen frame, or its frames have one noise."""
        return self.frozen or NOISE_MODELS[self.noise].still(**Method(**self.method).noise_parameters)

    @property
    def noise_label(self) -> str:
        """Its noise model with its parameters, as a table of noises has them."""
        values = _numbers(Method(**self.method).noise_parameters)
        shown = {name: x for name, x in values.items() if name != "motion" or self.motion is not None}
        return self.noise + "".join(f" {PARAMETERS[name].symbol} = {value_text(x)}" for name, x in shown.items())


def cell(
    noise: str,
    lam: float,
    attn: str,
    mu: Number,
    alpha: float | None = None,
    mu_end: Number | None = None,
    lam_high: float | None = None,
    cutoff: float | None = None,
    motion: Number | None = None,
) -> Cell:
    """The cell of a variant, whose values are in range.

    Two cells that amount to the same have the same id: values without effect are left out, and an attention kind that
    equals a simpler one at these values becomes that one.
    """
    mu_end = None if mu_end == mu else mu_end
    attn = same_attention(attn, {"mu": mu, "mu_end": mu_end})
    more: dict[str, Any] = {"mu_end": mu_end, "lam_high": lam_high, "cutoff": cutoff, "motion": motion}
    method = Method(attn, mu, noise, lam, alpha, **more)
    defaults = NOISE_MODELS[noise].defaults
    own = {key: x for key, x in method.noise_parameters.items() if key not in PREFIXES or x != defaults[key]}
    kinds = [(noise, _numbers(own)), (attn, _numbers(method.attention_parameters))]
    identity = "_".join(
        kind + "".join(f"-{PREFIXES.get(name, '')}{number(x)}" for name, x in own.items()) for kind, own in kinds
    )
    label = " + ".join(
        kind + "".join(f" {PARAMETERS[name].symbol}={number(x, ',')}" for name, x in own.items()) for kind, own in kinds
    )
    values: dict[str, Any] = dict.fromkeys(NUMBERS)
    for _, own in kinds:
        values.update(own)
    return Cell(identity, label, noise=noise, attn=attn, **values)


def _numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a kind's parameters that a cell has. -0.0 becomes 0.0."""
    own = {name: value for name, value in parameters.items() if name in NUMBERS and value is not None}
    return {name: tuple(x + 0.0 for x in v) if isinstance(v, tuple) else float(v) + 0.0 for name, v in own.items()}


def kinds_with(parameter: str) -> list[str]:
    """The noise models and attention kinds that have a parameter."""
    return [
        kind.name for table in (NOISE_MODELS, ATTENTION_KINDS) for kind in table.values() if parameter in kind.defaults
    ]


def number(x: Number, separator: str = "-") -> str:
    """A number as an id has it: 0.1, 1. Two numbers never look the same. Of several, each in turn."""
    return separator.join(repr(one).removesuffix(".0") for one in (x if isinstance(x, tuple) else (x,)))


def paper(lam: float = STUDY_LAM, mu: float = STUDY_MU) -> list[Cell]:
    """The two ablations that the paper lacks, the two baselines and the controls. At a μ where momentum is another kind
    of attention, the cells with momentum are left out."""
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
    named = ((cell(n, lam, a, mu), a, label) for n, a, label in rows)
    cells = [replace(one, label=label + unusual(one)) for one, attn, label in named if one.attn == attn]
    return [*cells, still()]


def still() -> Cell:
    """The still control. Frame 0 is the same in every variant: this one has no value that would have no effect."""
    one = cell("shared", STUDY_LAM, "sa", STUDY_MU)
    return replace(one, id="frozen", label="frozen frame: frame 0, repeated", frozen=True)


def motion(lam: float = STUDY_LAM, mu: float = STUDY_MU) -> list[Cell]:
    """Eight variants whose noise has a parameter, to be compared at equal motion (see equal_motion.py), and a still."""
    kinds = ("tma", "cfa", "sa", "tma-two-tap", "first-previous", "extended")
    return [
        *(cell("dnm", lam, attn, mu) for attn in kinds),
        *(cell(n, lam, "tma", mu) for n in ("mixed", "progressive")),
        still(),
    ]


def unusual(one: Cell) -> str:
    """What a label adds for a cell that is not at the study's usual λ and μ."""
    values = (("λ", one.lam, STUDY_LAM), ("μ", one.mu, STUDY_MU))
    parts = [f"{name}={number(value, ',')}" for name, value, usual in values if value not in (None, usual)]
    return f" ({', '.join(parts)})" if parts else ""


@dataclass(frozen=True)
class Preset:
    """Cells that belong together.

    Args:
        name: as an option. title: over its part of a table.
        parameters: which of λ and μ (`lam`, `mu`) its cells take.
        cells: (λ, μ) → the cells; or "module:name" of such a function.
        includes: other presets whose cells are its own, too.
    """

    name: str
    title: str
    parameters: frozenset[str]
    cells: Callable[[float, float], list[Cell]] | str
    includes: tuple[str, ...] = ()


PRESETS: Registry[Preset] = Registry(
    "preset",
    [
        Preset("paper", "Ablations, baselines and controls", frozenset({"lam", "mu"}), paper),
        Preset(
            "lambda",
            "Sweep of λ",
            frozenset({"mu"}),
            lambda lam, mu: [cell(FULL.noise, value, FULL.attn, mu) for value in AUTHORS["lambda"]],
        ),
        Preset(
            "mu",
            "Sweep of μ",
            frozenset({"lam"}),
            lambda lam, mu: [cell(FULL.noise, lam, FULL.attn, value) for value in AUTHORS["mu"]],
        ),
        Preset("motion", "At equal motion", frozenset({"mu"}), motion),
        Preset(
            "reproduce",
            "The paper's experiments",
            frozenset({"lam", "mu"}),
            "zs2.study.experiments:cells",
            includes=("paper",),
        ),
    ],
)


def preset(name: str, lam: float = STUDY_LAM, mu: float = STUDY_MU) -> list[Cell]:
    """The cells of a preset at this λ and μ, if it takes them. A cell of `paper` has its label in all presets.

    Raises: InputError for an unknown name, and for `paper` and what includes it at a μ where its momentum is none.
    """
    simpler = cell(FULL.noise, lam, FULL.attn, mu).attn
    if simpler != FULL.attn and "paper" in (name, *PRESETS[name].includes):
        raise InputError(
            f"mu is {mu:g}: there {FULL.attn} is {simpler}, with which the preset {name} compares it: expected a μ "
            "above 0 and below 1, or the preset mu, which sweeps it"
        )
    row, labels = PRESETS[name], {one.id: one.label for one in paper(lam, mu)}
    cells = [replace(one, label=labels.get(one.id, one.label), presets=(name,)) for one in load(row.cells)(lam, mu)]
    return merge([*cells, *(one for other in row.includes for one in preset(other, lam, mu))])


def grid(
    noise: Sequence[str],
    attn: Sequence[str],
    lam: Sequence[float],
    mu: Sequence[Number],
    alpha: Sequence[float | None] = (None,),
    mu_end: Sequence[Number | None] = (None,),
    lam_high: Sequence[float | None] = (None,),
    cutoff: Sequence[float | None] = (None,),
) -> list[Cell]:
    """The product of noise models, attention kinds and parameters. Cells that amount to the same are one."""
    every = product(noise, alpha, lam, lam_high, cutoff, attn, mu, mu_end)
    return merge(cell(n, x, a, m, y, e, high, part) for n, y, x, high, part, a, m, e in every)


def merge(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, in order of first appearance, with all its presets. The label of a preset replaces a grid's."""
    merged: dict[str, Cell] = {}
    for one in cells:
        known = merged.setdefault(one.id, one)
        more = tuple(name for name in one.presets if name not in known.presets)
        label = known.label if known.presets else one.label
        merged[one.id] = replace(known, label=label, presets=known.presets + more)
    return list(merged.values())


def reference(cells: Sequence[Cell]) -> Cell:
    """The cell that the others are compared with: the full method, first that of `paper`, or the cell nearest to it."""

    def distance(one: Cell) -> tuple[float, ...]:
        lam, mu = (STUDY_LAM if one.lam is None else one.lam), (STUDY_MU if one.mu is None else one.mu)
        kind = one.frozen, one.noise != FULL.noise, one.attn != FULL.attn, "paper" not in one.presets
        changing = isinstance(mu, tuple) or one.mu_end is not None
        return (*kind, changing, abs(lam - STUDY_LAM), 0 if isinstance(mu, tuple) else abs(mu - STUDY_MU))

    return min(cells, key=distance)


def corners(cells: Sequence[Cell], full: Cell) -> list[Cell]:
    """The four corners of the ablation: all of the full method, without its noise, without its attention, without both.

    A study that lacks one of them has the full method and up to three of its other variants, in their order.
    """

    def fits(one: Cell) -> bool:
        return not one.frozen and all(getattr(one, name) in (None, getattr(full, name)) for name in NUMBERS)

    found = {(one.noise, one.attn): one for one in reversed(cells) if fits(one)}
    kinds = list(product((full.attn, WITHOUT_ATTENTION), (full.noise, WITHOUT_NOISE)))
    if len(set(kinds)) == 4 and all((noise, attn) in found for attn, noise in kinds):
        return [full, *(found[noise, attn] for attn, noise in kinds[1:])]
    return [full, *(one for one in cells if one.id != full.id)][:4]
