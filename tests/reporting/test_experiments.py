"""The table of the paper's experiments: a row each, with what it showed, or why it was not done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from studies import PROMPTS, changed, made_up_study

from zs2.reporting.experiments import HEADS, TITLE, experiment_rows
from zs2.reporting.markdown import markdown
from zs2.reporting.page import page
from zs2.study.cells import preset, reference
from zs2.study.experiments import EXPERIMENTS
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
    done, shown = rows["λ from one noise to independent noises"]
    assert done == "yes"
    assert shown.startswith("From λ = 0 to 1: motion 0 → 1.000, it rises in 8 of 8 steps and falls in 0; CLIP score 20")
    done, shown = rows["μ from self-attention to cross-frame attention"]
    assert (done, shown[:13]) == ("yes", "From μ = 0 to")
    assert rows["dependency noise model → independent noises"][1].startswith("Motion rises from 0.1000 to 0.5000")
    assert rows["per-frame DDIM"] == ["no", "not measured yet"]
    assert rows["mixed and progressive noise"][1].count("Motion rises") == 2
    for one in EXPERIMENTS:
        if one.missing:
            assert rows[one.name] == ["no", one.missing]
    assert f"## {TITLE}" in markdown(results)
    assert '<section id="experiments">' in (text := page(results, tmp_path / "study"))
    assert '<a href="#experiments">' in text


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
    rows = {row[0]: row[1] for row in experiment_rows(Results.read(tmp_path / "study"))}
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
            assert rows[one.name][0] == "yes"
            assert rows[one.name][1].startswith("without DNM: i.i.d. noise + TMA: Motion rises from 0.1000 to 0.5000")
        elif one.needs:
            assert rows[one.name] == ["no", one.missing]
    assert f"every clip has an input: {name}" in page(results, tmp_path / "study")


def test_other_studies_have_no_such_table(tmp_path: Path):
    made_up_study(tmp_path / "study", preset("paper")[:2], measured, PROMPTS[:1], (0,))
    results = Results.read(tmp_path / "study")
    assert experiment_rows(results) == []
    assert TITLE not in markdown(results)
    assert "experiments" not in page(results, tmp_path / "study")
