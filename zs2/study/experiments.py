"""The experiments of the paper and of the authors' page, one by one: which cells of a study each takes. No torch here.

The preset `reproduce` has all of their cells. Experiments that need more than a prompt (edges, a clip to edit) are done
in a study that has it; in any other study, their rows say what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zs2.study.cells import AUTHORS, FULL, Cell, cell, merge, paper
from zs2.study.prompts import Prompt

# Text2Video-Zero's, which the paper uses to compare with it.
SHARED_PROMPTS = tuple(
    Prompt(text)
    for text in (
        "A cat is running on the grass.",
        "An astronaut is skiing down the hill.",
        "A horse galloping on a street.",
    )
)
LAMBDAS = sorted({*AUTHORS["lambda"], 0.001, 0.01, 1.0})
MUS = sorted(AUTHORS["mu"])


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Args:
        name: what it is.
        cells: λ and μ of the study → its cells, in the order of a sweep. Others are compared with the full method.
        swept: the parameter that it sweeps, or empty.
        missing: why it has no cells here, or empty.
        needs: an input of all of the study's clips that it needs, or empty. Without it, `missing` says how to get it.
    """

    name: str
    cells: Callable[[float, float], list[Cell]] = lambda lam, mu: []
    swept: str = ""
    missing: str = ""
    needs: str = ""


def _of_paper(*kinds: tuple[str, str]) -> Callable[[float, float], list[Cell]]:
    """The cells of the preset `paper` with these noise models and attention kinds."""
    return lambda lam, mu: [one for one in paper(lam, mu) if (one.noise, one.attn) in kinds and not one.frozen]


WITHOUT_A_PART = _of_paper(("iid", "tma"), ("dnm", "sa"))
OWN_STUDY = "for a study of its own: zs2 ablate --preset reproduce"
CONTROL = f"needs a hint for each frame and a ControlNet, {OWN_STUDY} --control MODEL CLIP"
EXPERIMENTS = (
    Experiment(
        "λ from one noise to independent noises",
        lambda lam, mu: [cell(FULL.noise, value, FULL.attn, mu) for value in LAMBDAS],
        swept="lam",
    ),
    Experiment(
        "μ from self-attention to cross-frame attention",
        lambda lam, mu: [cell(FULL.noise, lam, FULL.attn, value) for value in MUS],
        swept="mu",
    ),
    Experiment("dependency noise model → independent noises", _of_paper(("iid", "tma"))),
    Experiment("momentum → self-attention", _of_paper(("dnm", "sa"))),
    Experiment("momentum → cross-frame attention", _of_paper(("dnm", "cfa"))),
    Experiment("mixed and progressive noise", _of_paper(("mixed", "tma"), ("progressive", "tma"))),
    Experiment("per-frame DDIM", _of_paper(("iid", "sa"))),
    Experiment("Text2Video-Zero", _of_paper(("text2video-zero", "cfa"))),
    Experiment("the published search, against the closed form", _of_paper(("dnm-search", "tma"))),
    Experiment(
        "the search's error against its steps, against random and linear search",
        missing="needs no clip: docs/method.md has the curve, by benchmarks/search.py",
    ),
    Experiment("clips guided by poses, with λ and μ", missing=CONTROL),
    Experiment(
        "clips guided by a ControlNet, such as edges or depth", WITHOUT_A_PART, missing=CONTROL, needs="control"
    ),
    Experiment(
        "clips edited by an instruction, or from another clip",
        WITHOUT_A_PART,
        missing=f"needs a clip and a model that edits, {OWN_STUDY} --model MODEL --source CLIP",
        needs="source",
    ),
    Experiment("other Stable Diffusion models", missing="one study a model: zs2 ablate --model MODEL --prompts FILE"),
)


def cells(lam: float, mu: float) -> list[Cell]:
    """The cells of all experiments. Those of the preset `paper`, with its controls, are of the preset, too."""
    return merge(one for each in EXPERIMENTS for one in each.cells(lam, mu))
