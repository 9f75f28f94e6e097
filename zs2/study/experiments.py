"""The experiments of the paper and of the authors' page, one by one: which cells of a study each takes. No torch here.

The preset `reproduce` has all of their cells. Experiments that need more than a prompt (edges, a clip to edit) are done
in a study that has it; in any other study, their rows say what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zs2.study.cells import AUTHORS, FULL, Cell, cell, merge, paper
from zs2.study.model_prompts import MODELS

LAMBDAS = sorted({*AUTHORS["lambda"], 0.001, 0.01, 1.0})
MUS = sorted(AUTHORS["mu"])


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Args:
        name: what it is.
        cells: λ and μ of the study → its cells, in the order of a sweep. Others are compared with the full method.
        swept: the parameter that it sweeps, or empty.
        missing: why it is not done, or empty.
        needs: an input of all of the study's clips that it needs, or empty. Without it, `missing` says how to get it.
        on_models: whether it needs a model of the authors' page. With another, `missing` says how to get it.
    """

    name: str
    cells: Callable[[float, float], list[Cell]] = lambda lam, mu: []
    swept: str = ""
    missing: str = ""
    needs: str = ""
    on_models: bool = False


def _of_paper(*kinds: tuple[str, str]) -> Callable[[float, float], list[Cell]]:
    """The cells of the preset `paper` with these noise models and attention kinds."""
    return lambda lam, mu: [one for one in paper(lam, mu) if (one.noise, one.attn) in kinds and not one.frozen]


WITHOUT_A_PART = _of_paper(("iid", "tma"), ("dnm", "sa"))
OWN_STUDY = "for a study of its own: zs2 ablate --preset reproduce"
CONTROL = f"needs a hint for each frame and a ControlNet, {OWN_STUDY} --control MODEL CLIP"


def _lambdas(lam: float, mu: float) -> list[Cell]:
    return [cell(FULL.noise, value, FULL.attn, mu) for value in LAMBDAS]


def _mus(lam: float, mu: float) -> list[Cell]:
    return [cell(FULL.noise, lam, FULL.attn, value) for value in MUS]


EXPERIMENTS = (
    Experiment("λ from one noise to independent noises", _lambdas, swept="lam"),
    Experiment("μ from self-attention to cross-frame attention", _mus, swept="mu"),
    Experiment("dependency noise model → independent noises", _of_paper(("iid", "tma"))),
    Experiment("momentum → self-attention", _of_paper(("dnm", "sa"))),
    Experiment("momentum → cross-frame attention", _of_paper(("dnm", "cfa"))),
    Experiment("mixed and progressive noise", _of_paper(("mixed", "tma"), ("progressive", "tma"))),
    Experiment("per-frame DDIM", _of_paper(("iid", "sa"))),
    Experiment("Text2Video-Zero", _of_paper(("text2video-zero", "cfa"))),
    Experiment("the published search, against the closed form", _of_paper(("dnm-search", "tma"))),
    Experiment(
        "the search's error against its steps, against random and linear search",
        missing="needs no clip: docs/method.md has its table, by benchmarks/search.py",
    ),
    Experiment("λ under a ControlNet, such as the authors' poses", _lambdas, "lam", missing=CONTROL, needs="control"),
    Experiment("μ under a ControlNet, such as the authors' poses", _mus, "mu", missing=CONTROL, needs="control"),
    Experiment("a ControlNet of poses, edges or depth", WITHOUT_A_PART, missing=CONTROL, needs="control"),
    Experiment(
        "clips edited by an instruction, or from another clip",
        WITHOUT_A_PART,
        missing=f"needs a clip and a model that edits, {OWN_STUDY} --model MODEL --source CLIP",
        needs="source",
    ),
    Experiment(
        "the five models of the authors' page, on its prompts",
        lambda lam, mu: [cell(FULL.noise, lam, FULL.attn, mu)],
        missing=f"a study each: zs2 ablate --preset reproduce --model MODEL, for {', '.join(MODELS)}",
        on_models=True,
    ),
)


def cells(lam: float, mu: float) -> list[Cell]:
    """The cells of all experiments. Those of the preset `paper`, with its controls, are of the preset, too."""
    return merge(one for each in EXPERIMENTS for one in each.cells(lam, mu))
