"""The table of the paper's experiments: a row each, with what it showed, or why it was not done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from studies import PROMPTS, changed, made_up_study

from zs2.checkpoints.own_settings import OwnSettings
from zs2.reporting.experiments import HEADS, TITLE, experiment_rows
from zs2.reporting.markdown import markdown
from zs2.reporting.page import page
from zs2.study.cells import preset, reference
from zs2.study.experiments import EXPERIMENTS
from zs2.study.model_prompts import PROMPTS as PAGE
from zs2.study.model_prompts import SHARED, of_model
from zs2.study.planning import plan
from zs2.study.prompts import GENERAL, Prompt
from zs2.study.results import Results
from zs2.study.study import Job

CELLS = sorted(preset("reproduce", 0.1, 0.98), key=lambda one: one.label != "full method: DNM + TMA")


def measured(job: Job) -> dict[str, float] | None:
    """Motion is λ; without a λ it is 0.5. Of per-frame DDIM nothing is measured."""
    if (job.cell.noise, job.cell.attn) == ("iid", "sa"):
        return None
    return {"motion": 0.5 if job.cell.lam is None else job.cell.lam, "clip-score": 20.0, "clip-first": 0.9}


def test_each_experiment_has_a_row(tmp_path: Path):
    made_up_study(tmp_path / "study", CELLS, measured, PROMPTS[:2], (0,))
    results = Results.read(tmp_path / "study")
    rows = {row[0]: row[1:] for row in experiment_rows(results)}
    assert [*rows] == [one.name for one in EXPERIMENTS]
    assert {len(row) + 1 for row in rows.values()} == {len(HEADS)}
    settings, done, shown = rows["λ from one noise to independent noises"]
    assert settings == "λ = 0, 0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 1; μ = 0.98"
    assert done == "yes"
    assert shown.startswith(
        "From λ = 0 to 1: motion 0 → 1.000; CLIP score 20.00 → 20.00; CLIP to first 0.9000 → 0.9000"
    )
    assert shown.endswith(". Fewer than 5 prompts: no interval.")
    settings, done, shown = rows["μ from self-attention to cross-frame attention"]
    assert (settings, done, shown[:13]) == ("μ = 0, 0.25, 0.5, 0.75, 0.9, 1; λ = 0.1", "yes", "From μ = 0 to")
    assert rows["dependency noise model → independent noises"][2].startswith("Motion rises from 0.1000 to 0.5000")
    assert rows["per-frame DDIM"] == ["iid + sa", "no", "not measured yet"]
    assert rows["mixed and progressive noise"][2].count("Motion rises") == 2
    assert rows["mixed and progressive noise"][0] == "mixed a=1 + tma μ=0.98; progressive a=2 + tma μ=0.98"
    for one in EXPERIMENTS:
        if one.missing:
            assert rows[one.name] == ["", "no", one.missing]
    assert f"## {TITLE}" in markdown(results)
    assert '<section id="experiments">' in (text := page(results, tmp_path / "study"))
    assert '<a href="#experiments">' in text


def test_steps_of_a_sweep_count_where_they_are_seen(tmp_path: Path):
    """With enough prompts for intervals, on the clips that all values have."""
    away = {"dnm-0.15_tma-0.98": 5}  # the prompt that one value lacks would change its mean

    def motion(job: Job) -> dict[str, float] | None:
        if away.get(job.cell.id) == job.prompt:
            return None
        return {"motion": 9.0 if job.prompt == 5 else (job.cell.lam or 0.0) * (1 + job.prompt / 10)}

    cells = [CELLS[0], *(one for one in EXPERIMENTS[0].cells(0.1, 0.98) if one.id != CELLS[0].id)]
    cells = [replace(one, presets=("reproduce",)) for one in cells]
    made_up_study(tmp_path / "study", cells, motion, [Prompt(f"thing {i}") for i in range(6)], (0,))
    shown = experiment_rows(Results.read(tmp_path / "study"))[0][3]
    assert shown.startswith("From λ = 0 to 1: motion 0 → 1.200, seen to rise in 8 of 8 steps and to fall in 0")


@pytest.mark.parametrize(
    "model", ["sd15", "runwayml/stable-diffusion-v1-5", "dreamlike-art/dreamlike-photoreal-2.0@main"]
)
def test_a_model_of_the_authors_page_has_its_row(model, tmp_path: Path):
    """The mean of the prompts of that page, and of no others; without these there is none."""

    def rows(prompts: list[Prompt]) -> dict[str, list[str]]:
        folder = tmp_path / str(len(prompts))
        study = made_up_study(folder, CELLS, lambda job: {"motion": 0.1 * (job.prompt + 1)}, prompts, (0,))
        changed(study, model=model).write(folder)
        return {row[0]: row[1:] for row in experiment_rows(Results.read(folder))}

    page, last = of_model(model), EXPERIMENTS[-1]
    assert rows([Prompt("a cat"), Prompt(page[0]), Prompt(page[3])])[last.name] == [
        "dnm λ=0.1 + tma μ=0.98",
        "1 of 5",
        f"{model}: motion 0.2500; over 2 prompts of the page.",
    ]
    assert rows([Prompt("a cat"), Prompt("a dog")])[last.name] == ["", "no", last.missing]


def test_such_a_model_is_made_with_the_authors_prompts():
    """After the three that the paper shares with Text2Video-Zero. Others have the usual prompts, or their own."""

    def prompts(model: str, own: OwnSettings) -> list[str]:
        options = {"model": model, "preset": ["reproduce"], "out": "out/x"}
        return [one.text for one in plan(options, None, own).prompts]

    none = OwnSettings("none")
    assert prompts("sd15", none) == [*SHARED, *PAGE["stable-diffusion-v1-5/stable-diffusion-v1-5"]]
    assert prompts("prompthero/openjourney", none) == [*SHARED, *PAGE["prompthero/openjourney"]]
    assert prompts("sd21", none) == [*SHARED, *(one.text for one in GENERAL)]
    assert prompts("sd15", OwnSettings("own", prompts=("fox face",))) == ["fox face"]
    assert all(len(set(texts)) == len(texts) >= 13 for texts in PAGE.values())


@pytest.mark.parametrize(("lam", "mu"), [(0.15, 0.98), (0.1, 0.3), (0.1, (0.98, 0.5))])
def test_each_experiment_is_found_whatever_its_values(lam, mu, tmp_path: Path):
    cells = preset("reproduce", lam, mu)
    full = reference(cells)
    study = made_up_study(
        tmp_path / "study",
        [full, *(one for one in cells if one != full)],
        lambda job: {"motion": 1.0},
        PROMPTS[:1],
        (0,),
    )
    assert study.full == full.id
    rows = {row[0]: row[2] for row in experiment_rows(Results.read(tmp_path / "study"))}
    assert rows == {one.name: "no" if one.missing else "yes" for one in EXPERIMENTS}


@pytest.mark.parametrize(
    ("name", "inputs"), [("control", {}), ("source", {}), ("source", {"inputs": (("source", "0" * 64),)})]
)
def test_a_guided_study_has_the_rows_of_its_input(name, inputs, tmp_path: Path):
    """Of clips and prompts that have it; of the other input, the row says what is missing."""
    study = made_up_study(tmp_path / "study", CELLS, measured, [replace(PROMPTS[0], **inputs)], (0,))
    if not inputs:
        record = {"sha256": "0" * 64, "range": None}
        changed(study, **{name: [record] if name == "control" else record}).write(tmp_path / "study")
    results = Results.read(tmp_path / "study")
    rows = {row[0]: row[1:] for row in experiment_rows(results)}
    for one in EXPERIMENTS:
        if one.needs == name:
            assert rows[one.name][1] == "yes"
            begin = "without DNM: i.i.d. noise + TMA: Motion rises from 0.1000 to 0.5000"
            begin = {"lam": "From λ = 0 to 1: motion 0 → 1.000;", "mu": "From μ = 0 to 1: motion 0.1000 → "}.get(
                one.swept, begin
            )
            assert rows[one.name][2].startswith(begin)
        elif one.needs:
            assert rows[one.name] == ["", "no", one.missing]
    assert f"every clip has an input: {name}" in page(results, tmp_path / "study")


def test_other_studies_have_no_such_table(tmp_path: Path):
    made_up_study(tmp_path / "study", preset("paper")[:2], measured, PROMPTS[:1], (0,))
    results = Results.read(tmp_path / "study")
    assert experiment_rows(results) == []
    assert TITLE not in markdown(results)
    assert "experiments" not in page(results, tmp_path / "study")
