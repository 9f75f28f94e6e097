"""`python -m zs2.report`: tables, sweeps and notes from known numbers, Markdown and CSV, and what it refuses."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from studies import MARKS, PROMPTS, PROTOCOL, SCRIPT, changed, made_up_study, real_study

from zs2.evaluation.metrics import METRICS
from zs2.report import main
from zs2.reporting.content import notes, summary, warnings
from zs2.reporting.findings import basis, findings
from zs2.reporting.interval_plot import MARGIN, WIDTH, interval_plots
from zs2.reporting.markdown import markdown
from zs2.reporting.numbers import columns, difference, estimate, number
from zs2.reporting.page import page
from zs2.reporting.page_clips import LARGE, WIDEST, _picture, page_data
from zs2.reporting.spreadsheet import table_of_clips, table_of_differences
from zs2.reporting.tables import rank_line, seen
from zs2.sampling.request import OPTIONS
from zs2.study.cells import cell, merge, preset
from zs2.study.prompts import Prompt
from zs2.study.results import AUTHORS, Results, sweeps
from zs2.study.stats import Estimate
from zs2.study.study import clip_file, measures_file, record_file

REFERENCE = preset("paper")[0]
MORE, MIXED = cell("iid", 0.1, "tma", 0.98), cell("dnm", 0.1, "sa", 0.98)
CELLS = (REFERENCE, MORE, MIXED)


def clip_of(job) -> float:
    """A number of its own for each prompt and seed, as prompts differ more than variants do."""
    return 0.1 + 0.2 * job.prompt + 0.01 * job.seed


def measured(job) -> dict[str, float]:
    """MORE moves more on every clip, by 0.02; MIXED more on prompts 0 and 2, and less on 1 and 3, which is empty."""
    change = {REFERENCE.id: 0.0, MORE.id: 0.02, MIXED.id: 0.02 if job.prompt % 2 == 0 else -0.02}[job.cell.id]
    return {"clip-score": 20.0 + job.prompt, "motion": clip_of(job) + change, "flow-warp-error": 0.0}


def known(folder: Path, **changes) -> Results:
    """The results of a made-up study of CELLS."""
    made_up_study(folder, **{"cells": CELLS, "measure": measured, **changes})
    return Results.read(folder)


def table(text: str, title: str) -> dict[str, list[str]]:
    """The table under a heading of a Markdown text: {first cell: the others}."""
    lines = text.split(f"# {title}\n", 1)[1].split("\n#")[0].splitlines()
    rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    return {first: rest for first, *rest in rows}


@pytest.fixture
def intervals_of_two(monkeypatch):
    """Two prompts have an interval, so that a hand can check its ends: those of both."""
    monkeypatch.setattr("zs2.study.stats.FEWEST", 2)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("intervals_of_two")
def test_a_table_by_hand(tmp_path):
    text = markdown(known(tmp_path / "study"))
    rows = table(text, "Closed prompts (2), 4 clips a variant")
    assert list(rows)[2:] == [
        "a still clip",
        "full method: DNM + TMA (reference)",
        "iid + tma μ=0.98",
        "dnm λ=0.1 + sa",
    ]
    assert rows["variant"] == ["CLIP score ↑", "motion", "flow warp error ↓"]
    assert rows["a still clip"] == ["", "0", "0"]
    assert rows["full method: DNM + TMA (reference)"] == ["20.50", "0.2050", "0"]
    assert rows["iid + tma μ=0.98"] == ["20.50", "0.2250 ▲", "0"]
    assert rows["dnm λ=0.1 + sa"] == ["20.50", "0.2050", "0"]


def test_ranks_at_equal_motion_by_hand(tmp_path):
    """By what has a better side, without the still control. Flicker, 1 − motion, would rank what the search left."""
    cells = [*preset("motion")[:3], preset("motion")[-1]]

    def measure(job):
        i = cells.index(job.cell)
        moved = (0.0300, 0.0302, 0.0299, 0.0)[i]
        return {
            "motion": moved,
            "ssim": (0.5, 0.7, 0.7, 1)[i],
            "temporal-flicker": 1 - moved,
            "flow-warp-error": (0.3, 0.2, 0.1, 0)[i],
        }

    results = known(tmp_path / "study", cells=cells, prompts=PROMPTS[:1], seeds=(0,), measure=measure)
    rows = table(markdown(results), "Closed prompts (1), 1 clip a variant")
    assert rows["variant"] == ["motion", "SSIM ↑", "flicker", "flow warp error ↓"]
    assert list(rows.values())[3:] == [
        ["0.0300", "0.5000 (3)", "0.9700", "0.3000 (3)"],
        ["0.0302", "0.7000 (1)", "0.9698", "0.2000 (2)"],
        ["0.0299", "0.7000 (1)", "0.9701", "0.1000 (1)"],
        ["0", "1.000", "1.000", "0"],
    ]


@pytest.mark.usefixtures("intervals_of_two")
def test_the_table_of_a_metric_by_hand(tmp_path):
    rows = table(markdown(known(tmp_path / "study")), "motion, closed prompts")
    assert rows["variant"] == ["mean", "difference", "low", "high"]
    assert list(rows)[2:4] == ["a still clip", "full method: DNM + TMA (reference)"]
    assert rows["a still clip"] == ["0", "", "", ""]
    assert rows["full method: DNM + TMA (reference)"] == ["0.2050", "", "", ""]
    assert rows["iid + tma μ=0.98"] == ["0.2250", "+0.0200 ▲", "0.0200", "0.0200"]
    mixed = ["0.2050", "0", "−0.0200", "0.0200"]
    assert [text.replace("≈0", "0") for text in rows["dnm λ=0.1 + sa"]] == mixed


def test_a_still_clip_stands_in_the_table_of_each_metric(tmp_path):
    """By its definition, or by the frozen frames of the same prompts; no row where there is neither."""
    cells = [preset("paper")[0], preset("paper")[-1]]
    score = lambda job: {"clip-score": 20 + job.prompt + job.cell.frozen, "motion": 0.25 * (not job.cell.frozen)}  # noqa: E731
    results = known(tmp_path / "study", cells=cells, prompts=PROMPTS[:3], measure=score)
    text = markdown(results)
    wanted = {
        "CLIP score, closed": "21.50",
        "CLIP score, open": "23.00",
        "CLIP score, all": "22.00",
        "motion, all": "0",
    }
    for title, value in wanted.items():
        assert table(text, f"{title} prompts")["a still clip"] == [value, "", "", ""]
        row = f'<tr class="still"><th scope="row">a still clip</th><td>{value}</td>{"<td></td>" * 4}</tr>'
        assert row in page(results, tmp_path / "study")
    without = known(tmp_path / "without", cells=cells[:1], measure=score)
    assert "a still clip" not in table(markdown(without), "CLIP score, closed prompts")


def test_both_sets_of_prompts_and_all_together(tmp_path):
    text = markdown(known(tmp_path / "study"))
    motion = [table(text, f"motion, {name} prompts")[MORE.label][0] for name in ("closed", "open", "all")]
    assert motion == ["0.2250", "0.6250", "0.4250"]
    alone = markdown(known(tmp_path / "closed", prompts=PROMPTS[:2]))
    assert re.findall("^### (.* prompts .*)", alone, re.MULTILINE) == ["Closed prompts (2), 4 clips a variant"]


def test_the_empty_prompt_has_no_clip_score(tmp_path):
    results = known(tmp_path / "study")
    rows = table(markdown(results), "Open prompts (2), 4 clips a variant")
    assert rows["full method: DNM + TMA (reference)"][0] == "22.00"  # of prompt 2 alone, not of 3
    assert any("empty prompt has no CLIP score" in note for note in notes(results))
    assert not any("empty prompt" in note for note in notes(known(tmp_path / "none", prompts=PROMPTS[:3])))


@pytest.mark.parametrize(
    ("low", "high", "mark"),
    [(-0.1, 0.3, ""), (0.0, 0.3, ""), (-0.1, 0.0, ""), (0.001, 0.3, "▲"), (-0.3, -0.001, "▼"), (None, None, "")],
)
def test_a_difference_is_marked_where_its_interval_does_not_cover_0(low, high, mark):
    change = Estimate(0.1 if low is None else (low + high) / 2, low, high, 8, 4)
    assert seen(change) == mark
    assert ("no difference seen" in difference(change)) == (low is not None and mark == "")


FEW = "fewer than 5 prompts: no interval"


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_few_prompts_have_differences_without_interval(tmp_path, count):
    """In the tables, the sentences, the drawings, the sweeps and the CSV."""
    cells = merge([*CORNERS, *preset("lambda")])
    results = known(tmp_path / "study", cells=cells, measure=of_corner, prompts=[Prompt(f"{i}") for i in range(count)])
    few = count < 5
    text = markdown(results)
    ends = ["", ""] if few else ["0.3000", "0.3000"]
    assert table(text, "motion, closed prompts")[CORNERS[1].label][1:] == ["+0.3000" + " ▲" * (not few), *ends]
    assert all(one.text.endswith(f" F{FEW[1:]}.") == few for one in findings(results, "closed"))
    assert ("95 % intervals" in basis(results, "closed")) == (not few)
    for words in ("intervals: 95 %", "where a difference is seen: ", "that is not proof that there is none"):
        assert (words in text.lower()) == (words in page(results, tmp_path / "study").lower()) == (not few)
    assert ("## Differences to the reference, with 95 % intervals\n" in text) == (not few)
    assert ("## Differences to the reference\n" in text) == few
    assert ("<h3>One metric, with its intervals</h3>" in page(results, tmp_path / "study")) == (not few)
    assert any("Fewer than 5 have no interval." in line for line in warnings(results))
    assert ('class="bar"' in page(results, tmp_path / "study")) == (not few)
    (sweep,) = sweeps(results)
    assert (FEW in rank_line(sweep, "closed")) == few
    rows = [row for row in csv.DictReader(io.StringIO(table_of_differences(results))) if row["difference"]]
    assert rows
    assert all((row["low"] == row["high"] == row["seen"] == "") == few for row in rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (31.2549, "31.25"),
        (-1.23456, "−1.235"),
        (0.98765, "0.9877"),
        (0.0012345, "0.00123"),
        (0.000012345, "0.000012"),
        (-1e-9, "≈0"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_numbers_of_an_estimate_have_the_same_decimals():
    assert estimate(Estimate(0.0123456, -0.001234, 0.03, 8, 4), signed=True) == ["+0.0123", "[−0.0012, 0.0300]"]
    assert estimate(Estimate(-0.2, -12.0, 0.000001, 8, 4), signed=True) == ["−0.20", "[−12.00, ≈0]"]
    assert columns(Estimate(-0.2, -12.0, 0.000001, 8, 4)) == ["−0.20", "−12.00", "≈0"]
    assert columns(Estimate(0.2, None, None, 2, 1), signed=True) == ["+0.2000", "", ""]
    assert (columns(None), estimate(None)) == (["", "", ""], ["–"])


# --- what was found ---------------------------------------------------------------------------------------------------

CORNERS, FIFTH = [preset("paper")[i] for i in (0, 1, 2, 4)], cell("mixed", 0.1, "tma", 0.98)


def of_corner(job) -> dict[str, float]:
    """Without DNM a clip moves more and fits its prompt less; without TMA some move more, and others less."""
    noise, attn = job.cell.noise == "iid", job.cell.attn == "sa"
    change = 0.3 * noise + 0.01 * attn * (-1) ** job.prompt
    return {"motion": clip_of(job) + change, "clip-first": 0.9, "clip-score": 20.0 + job.prompt - 2 * noise}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[Results, Path]:
    """A study of the four corners and another variant, whose tables have intervals, and its folder."""
    folder = tmp_path_factory.mktemp("corners") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zs2.study.stats.FEWEST", 2)
        results = known(folder, cells=[*CORNERS, FIFTH], measure=of_corner)
        assert results.tables  # which are kept
    return results, folder


@pytest.mark.usefixtures("intervals_of_two")
def test_the_sentences_by_hand(four):
    results, _ = four
    found = findings(results, "closed")
    assert [one.variant for one in found] == [one.label for one in CORNERS[1:]]
    assert found[0].text == (
        "Motion rises from 0.2050 to 0.5050: +0.3000 [0.3000, 0.3000]; CLIP score falls from 20.50 to 18.50: −2.000 "
        "[−2.000, −2.000]; no difference is seen in CLIP to first (0 [0, 0])."
    )
    assert found[1].text.replace("≈0 [", "0 [") == (
        "No difference is seen in motion (0 [−0.0100, 0.0100]), CLIP to first (0 [0, 0]) or CLIP score (0 [0, 0])."
    )
    assert basis(results, "closed") == (
        f"Compared with “{REFERENCE.label}”, clip by clip, over 2 closed prompts and 2 seeds. In brackets: 95 % "
        "intervals."
    )
    assert "over 4 prompts and 2 seeds" in basis(results, "all")


def test_the_report_begins_with_the_sentences_and_ends_with_digests(four):
    for text in (markdown(four[0]), page(*four)):
        places = [text.index(words) for words in ("What does each part do:", "otion rises from", "What each part does")]
        places += [text.index(words) for words in ("SHA-256", "that is not proof that there is none")]
        assert places == sorted(places)
        assert text.count("that is not proof that there is none") == text.count("where a difference is seen: ") == 1


@pytest.mark.usefixtures("intervals_of_two")
def test_sentences_are_of_the_clips_that_both_have(four):
    results, _ = four
    measures = {key: values for key, values in results.measures.items() if key != (CORNERS[1].id, 1, 0)}
    (one, *_) = findings(replace(results, measures=measures), "closed")
    assert one.text.startswith("Motion rises from 0.1733 to 0.4733: +0.3000 [")


@pytest.mark.usefixtures("intervals_of_two")
def test_sentences_need_no_metric_of_their_own(tmp_path):
    (one,) = findings(known(tmp_path / "a", cells=CELLS[:2], measure=lambda job: {"ssim": 0.5}), "all")
    assert one.text == "No difference is seen in SSIM (0 [0, 0])."
    assert findings(known(tmp_path / "b", cells=CELLS[:2], measure=lambda job: None), "all") == []
    assert findings(known(tmp_path / "c", cells=CELLS[:1]), "all") == []


@pytest.mark.parametrize(
    ("lost", "prompt"),  # prompts 2 and 3 are open, and 3 is empty
    [([], 2), ([2], 0), ([0, 1, 2, 3], 2), ([2, 0], 1), ([0, 1, 2], 3)],
)
def test_the_first_picture_is_of_an_open_prompt_that_has_all_clips(four, lost, prompt):
    results, folder = four
    gone = {f"{CORNERS[1].id}_p{one:02}_s0" for one in lost}
    found = page_data(replace(results, finished=results.finished - gone), folder)["corners"]
    assert found == {"cells": [one.id for one in CORNERS], "prompt": prompt}


def test_intervals_are_drawn_on_one_axis_with_0():
    changes = [Estimate(0.5, 0.0, 1.0, 8, 4), Estimate(-1.0, -3.0, -0.5, 8, 4), Estimate(0.2, None, None, 1, 1), None]
    draw = interval_plots(changes)
    place = lambda value: f"{MARGIN + (value + 3) / 4 * (WIDTH - 2 * MARGIN):.1f}"  # noqa: E731
    for change in changes:
        text = draw(change)
        assert f'class="zero" d="M{place(0)} 0' in text
        assert (f'cx="{place(change.value)}"' in text) if change else "circle" not in text
        if change and change.low is not None:
            assert f'class="bar" d="M{place(change.low)} 8H{place(change.high)}"' in text
    assert ["differs" in draw(change) for change in changes] == [False, True, False, False]
    assert "cx=" in interval_plots([Estimate(0.0, 0.0, 0.0, 8, 4)])(Estimate(0.0, 0.0, 0.0, 8, 4))  # no division by 0


# --- what a reader must know ------------------------------------------------------------------------------------------


def test_stills_are_marked(tmp_path):
    cells = merge([*preset("paper"), *preset("lambda"), *preset("mu")])
    stills = [one.id for one in cells if one.still]
    assert stills == ["shared_cfa", "shared_sa", "frozen", "dnm-0_tma-0.98"]
    results = known(
        tmp_path / "study", cells=cells, prompts=PROMPTS[:1], seeds=(0,), measure=lambda job: {"motion": 0.1}
    )
    rows = table(markdown(results), "Closed prompts (1), 1 clip a variant")
    assert sum("(still)" in label for label in rows) == len(stills)
    (note,) = (note for note in notes(results) if "A still picture is the best" in note)
    for one in cells:
        assert (one.label in note) == one.still
    tables = 2  # the means and those of the one metric, each with a row for any still clip
    assert page(results, tmp_path / "study").count('<tr class="still">') == tables * (len(stills) + 1)


@pytest.mark.parametrize("digest", [None, "3f2a"])
def test_a_study_without_lpips_says_so(tmp_path, monkeypatch, digest):
    monkeypatch.setattr("studies.PROTOCOL", PROTOCOL | {"lpips": digest})
    results = known(tmp_path / "study")
    told = "LPIPS was not measured, since no weights of it were given: zs2 ablate --lpips FILE."
    for text in (page(results, tmp_path / "study"), markdown(results)):
        assert text.count(told) == (digest is None)


def test_an_incomplete_study_says_so(tmp_path):
    whole = known(tmp_path / "whole")
    assert not any("Not complete" in line for line in warnings(whole))
    assert not any("missing" in note for note in notes(whole))
    made = lambda job: (job.cell, job.prompt) != (MORE, 1)  # noqa: E731
    unmeasured = lambda job: None if (job.cell, job.prompt, job.seed) == (MIXED, 0, 0) else measured(job)  # noqa: E731
    results = known(tmp_path / "part", made=made, measure=unmeasured)
    assert "Not complete: 2 clips missing, 1 not measured." in warnings(results)
    (note,) = (note for note in notes(results) if "missing" in note)
    assert f"of {MORE.label} (2), {MIXED.label} (1)." in note
    rows = table(markdown(results), "Closed prompts (2)")
    assert rows["variant"][0] == "clips"
    assert [rows[label][0] for label in (f"{REFERENCE.label} (reference)", MORE.label, MIXED.label)] == ["4", "2", "3"]
    rows = table(markdown(results), "motion, closed prompts")
    assert rows[MORE.label] == ["0.1250", "+0.0200", "", ""]  # of the pairs that are there
    text = page(results, tmp_path / "part")
    assert "Not complete: 2 clips missing, 1 not measured." in text.split('<section id="tables">')[0]
    assert text.count('<th scope="col">clips</th>') == 2 * (1 + len(results.metrics))  # not of the open prompts


def test_a_study_without_measures(tmp_path):
    results = known(tmp_path / "study", measure=lambda job: None)
    text = markdown(results)
    assert "Nothing is measured yet" in text
    assert "|" not in text
    assert "Nothing is measured" in page(results, tmp_path / "study")
    rows = list(csv.DictReader(io.StringIO(table_of_clips(results))))
    assert len(rows) == 24
    assert {row["motion"] for row in rows} == {""}


def test_a_study_in_which_no_metric_has_a_value(tmp_path):
    """As of one frame and the empty prompt."""
    results = known(tmp_path / "study", cells=preset("lambda"), measure=lambda job: {}, prompts=PROMPTS[3:])
    text, html = markdown(results), page(results, tmp_path / "study")
    told = "No metric has a value of these clips, so there are no tables."
    assert told in text
    assert told in html
    assert "|" not in text
    assert "<h2>What each part does</h2><p>No metric has a value of these clips.</p>" in html.replace("\n", "")
    assert "Nothing is measured" not in text
    assert "↑" not in text
    assert len(list(csv.reader(io.StringIO(table_of_differences(results))))) == 1


def test_tables_on_the_page_are_in_parts(tmp_path):
    motion = lambda job: {"motion": clip_of(job)}  # noqa: E731
    cells = merge([*preset("lambda"), cell("iid", 0.1, "tma", 0.5), *preset("paper")])
    results = known(tmp_path / "study", cells=cells, measure=motion, prompts=PROMPTS[:1])
    parts = re.findall('scope="rowgroup" colspan="2">(.*?)<', page(results, tmp_path / "study"))
    assert parts == ["Ablations, baselines and controls", "Sweep of λ", "Grid"]
    grid = known(tmp_path / "grid", cells=[MORE, cell("iid", 0.1, "sa", 0.98)], measure=motion)
    assert "rowgroup" not in page(grid, tmp_path / "grid")


def test_a_set_that_is_not_measured_yet(tmp_path):
    results = known(tmp_path / "study", made=lambda job: job.prompt < 2)
    assert "<p>Open prompts (2), 0 clips a variant: nothing is measured.</p>" in page(results, tmp_path / "study")


def test_scores_of_the_checkpoint_s_own_clip_are_marked(tmp_path):
    results = known(tmp_path / "study")
    words = "its scores compare only with each other"
    assert not any(words in note for note in notes(results))
    assert any(words in note for note in notes(replace(results, protocol=PROTOCOL | {"comparable": False})))


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep_study(folder: Path, cells, motion, **changes) -> Results:
    """A study of a sweep, with motion(job) of its own."""
    made_up_study(folder, list(cells), lambda job: {"motion": motion(job)}, **changes)
    return Results.read(folder)


@pytest.mark.usefixtures("intervals_of_two")
def test_a_sweep_stands_beside_the_authors_figures(tmp_path):
    results = sweep_study(tmp_path / "study", preset("lambda"), lambda job: clip_of(job) + job.cell.lam)
    (sweep,) = sweeps(results)
    assert (sweep.parameter, sweep.fixed, sweep.at) == ("λ", "μ = 0.98", list(AUTHORS["lambda"]))
    assert {name: (rank.value, rank.low) for name, rank in sweep.ranks.items()} == dict.fromkeys(results.sets, (1, 1))
    assert [found.value for found in sweep.motion["closed"]] == pytest.approx([0.205 + lam for lam in sweep.at])
    text = markdown(results)
    rows = table(text, "Motion against λ, at μ = 0.98, closed prompts")
    assert rows.pop("λ") == ["the authors'", "motion", "low", "high"]
    authors = ["0.0204", "0.0393", "0.0457", "0.0586", "0.0633", "0.0752"]
    assert {at: row[0] for at, row in rows.items() if at != "---"} == dict(
        zip(["0", "0.05", "0.1", "0.15", "0.2", "0.25"], authors, strict=True)
    )
    assert rows["0.05"][1:] == ["0.2550", "0.1550", "0.3550"]
    assert text.count("with the authors' figures: 1.000 \\[1.000, 1.000\\].\n") == 3


@pytest.mark.usefixtures("intervals_of_two")
def test_a_low_rank_correlation_is_explained(tmp_path):
    lower = {0.15: 0.02, 0.25: 0.01}  # where the authors' clips move most
    motion = lambda job: 0.1 + clip_of(job) + lower.get(job.cell.lam, job.cell.lam)  # noqa: E731
    results = sweep_study(tmp_path / "study", preset("lambda"), motion)
    (sweep,) = sweeps(results)
    assert sweep.ranks["closed"].value == pytest.approx(1 - 6 * (0 + 4 + 4 + 1 + 1 + 16) / 210)
    line = rank_line(sweep, "closed")
    for words in (
        "Below 0.9, because motion does not go the authors' way in these steps of λ: ",
        "0.1 → 0.15: −0.0800 [−0.0800, −0.0800]; 0.2 → 0.25: −0.1900 [−0.1900, −0.1900]. ",
        "Over the whole sweep it is from 0.3050 to 0.5050",
    ):
        assert words in line


def test_a_sweep_of_mu_has_both_its_ends(tmp_path):
    mu = {"sa": 0.0, "cfa": 1.0}
    motion = lambda job: clip_of(job) + AUTHORS["mu"][mu.get(job.cell.attn, job.cell.mu)]  # noqa: E731
    (sweep,) = sweeps(sweep_study(tmp_path / "study", preset("mu"), motion))
    assert (sweep.parameter, sweep.fixed, sweep.at) == ("μ", "λ = 0.1", list(AUTHORS["mu"]))
    assert sweep.ranks["all"].value == 1


@pytest.mark.usefixtures("intervals_of_two")
def test_a_sweep_is_of_the_clips_that_all_its_values_have(tmp_path):
    made = lambda job: job.prompt == 0 or job.cell.lam == 0.1  # noqa: E731
    (sweep,) = sweeps(sweep_study(tmp_path / "study", preset("lambda"), clip_of, made=made))
    assert [found.value for found in sweep.motion["closed"]] == pytest.approx([0.105] * 6)
    assert list(sweep.motion) == ["closed", "all"]
    assert sweep.ranks["closed"].value == 0
    assert "0 → 0.05: 0 fewer than 5 prompts: no interval" in rank_line(sweep, "closed")


def test_sweeps_at_two_momenta_are_kept_apart(tmp_path):
    cells = [*preset("lambda", mu=0.98), *preset("lambda", mu=0.5)]
    found = sweeps(sweep_study(tmp_path / "study", cells, lambda job: job.cell.lam * job.cell.mu, prompts=PROMPTS[:2]))
    assert [(sweep.parameter, sweep.fixed) for sweep in found] == [("λ", "μ = 0.98"), ("λ", "μ = 0.5")]
    assert [sweep.motion["closed"][-1].value for sweep in found] == pytest.approx([0.245, 0.125])


def test_two_values_are_no_sweep(tmp_path):
    results = sweep_study(tmp_path / "study", preset("lambda")[:2], clip_of)
    assert sweeps(results) == []
    assert "--preset lambda mu" in page(results, tmp_path / "study")


@pytest.mark.usefixtures("intervals_of_two")
def test_the_drawing_has_every_point_in_its_place(tmp_path):
    results = sweep_study(tmp_path / "study", preset("lambda"), lambda job: 0.01 * job.prompt + job.cell.lam / 5)
    text = page(results, tmp_path / "study")
    drawing = ElementTree.fromstring(re.search("<svg viewBox.*?</svg>", text).group())
    ticks = {text.text: text for text in drawing.iter("text")}
    assert {
        "0",
        "0.02",
        "0.04",
        "0.06",
        "0.08",
        "the authors'",
        "closed prompts",
        "open prompts",
        "all prompts",
    } <= set(ticks)
    bottom, top = (float(ticks[tick].get("y")) for tick in ("0.02", "0.08"))
    places = {tick: float(ticks[tick].get("x")) for tick in ("0.05", "0.1", "0.25")}
    groups = [group for group in drawing.findall("g") if group.get("class")]
    want = [
        list(AUTHORS["lambda"].values()),
        *([mean + lam / 5 for lam in AUTHORS["lambda"]] for mean in (0.005, 0.025, 0.015)),
    ]
    for group, values in zip(groups, want, strict=True):
        points = [list(map(float, point.split(","))) for point in group.find("polyline").get("points").split()]
        assert [y for _, y in points] == pytest.approx(
            [bottom + (value - 0.02) * (top - bottom) / 0.06 for value in values], abs=0.2
        )
        for i, tick in ((1, "0.05"), (2, "0.1"), (5, "0.25")):
            assert points[i][0] == pytest.approx(places[tick], abs=4.1)
    assert len(groups[0].findall("path[@class='bar']")) == 0
    assert all(len(group.findall("path[@class='bar']")) == 6 for group in groups[1:])


def test_noises_stand_beside_their_theory(tmp_path):
    noise = lambda job: {"motion": 0.1, "noise-correlation": 0.9 + 0.01 * job.seed, "noise-correlation-expected": 0.94}  # noqa: E731
    text = markdown(known(tmp_path / "study", measure=noise))
    assert table(text, "Correlation of consecutive initial noises") == {
        "noise": ["measured", "in theory"],
        "---": ["--:", "--:"],
        "dnm λ = 0.1": ["0.9050", "0.9400"],
        "iid": ["0.9050", "0.9400"],
    }


# --- Markdown, CSV, and the page as text ------------------------------------------------------------------------------

HOSTILE = (
    SCRIPT,
    MARKS,
    "a\nb\n# c",
    "`code` <b> &amp; \\ _x_ ~y~ $z$ ![i](j)",
    "@@DATA@@ </script> <!-- \u2028",
    '-1"; +2, @3',
    "\t=4",
)
SAFE = {MARKS: f"'{MARKS}", '-1"; +2, @3': "'-1\"; '+2, '@3", "\t=4": "'\t'=4", HOSTILE[4]: f"'{HOSTILE[4]}"}


@pytest.fixture
def hostile(tmp_path) -> tuple[Results, Path]:
    """A study whose prompts are code of all kinds, and its folder."""
    folder = tmp_path / "hostile"
    return known(folder, cells=CELLS[:1], prompts=[Prompt(text) for text in HOSTILE], seeds=(0,)), folder


def test_prompts_are_text_in_markdown(hostile):
    lines = markdown(hostile[0]).split("## Prompts\n\n")[1].splitlines()
    assert lines == [
        "- 00 closed: “&lt;script&gt;alert(1)&lt;/script&gt;”",
        "- 01 closed: “=1+1 &#124; \\[x\\](y) \\*z\\*”",
        "- 02 closed: “a b \\# c”",
        "- 03 closed: “\\`code\\` &lt;b&gt; &amp;amp; \\\\ \\_x\\_ \\~y\\~ \\$z\\$ !\\[i\\](j)”",
        "- 04 closed: “@@DATA@@ &lt;/script&gt; &lt;!-- ”",
        '- 05 closed: “-1"; +2, @3”',
        "- 06 closed: “ =4”",
    ]


def test_prompts_are_text_in_csv(hostile):
    rows = list(csv.DictReader(io.StringIO(table_of_clips(hostile[0]))))
    assert [row["text"] for row in rows] == [SAFE.get(text, text) for text in HOSTILE]


@pytest.mark.parametrize("cut", [";", "\t", "|", "\n", ","])
@pytest.mark.parametrize("sign", [*"=+-@＝＋－＠"])
def test_no_way_to_cut_a_text_in_csv_leaves_a_formula(tmp_path, cut, sign):
    """A spreadsheet that cuts at semicolons or tabs sees other cells than one that cuts at commas."""
    prompts = [Prompt(f"rose{cut}{space}{sign}1+1") for space in ("", " ", "  ")]
    found = table_of_clips(known(tmp_path / "study", cells=CELLS[:1], prompts=prompts, seeds=(0,)))
    for line in found.splitlines()[1:]:
        assert not any(part.strip(' "').startswith(sign) for part in re.split(r"[;|\t,]", line) if "1+1" in part)


def test_texts_in_csv_are_quoted(hostile):
    rows = list(csv.reader(io.StringIO(table_of_clips(hostile[0])), quoting=csv.QUOTE_NONNUMERIC))
    assert all(isinstance(name, str) for name in rows[0])  # what is not quoted is read as a number, or fails
    assert len(rows) == 1 + len(HOSTILE)


def test_headings_are_text_in_markdown(tmp_path):
    results = known(tmp_path / "study", cells=CELLS[:1], seeds=(0,))
    prompts = tuple(Prompt(one.text, "x\n# y <b>") for one in results.study.prompts)
    text = markdown(replace(results, study=replace(results.study, prompts=prompts)))
    assert "### X \\# y &lt;b&gt; prompts" in text


def test_prompts_are_text_on_the_page(hostile):
    text = page(*hostile)
    assert text.count("<script") == text.count("</script") == 2
    body, data = text.split('<script type="application/json" id="data">')
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "“@@DATA@@ &lt;/script&gt; &lt;!-- \u2028”" in body
    data = data.split("</script>")[0]
    assert data.isascii()
    assert "<" not in data
    assert [prompt["text"] for prompt in json.loads(data)["prompts"]] == list(HOSTILE)


def test_csv_has_a_row_for_each_clip(tmp_path):
    results = known(tmp_path / "study", made=lambda job: (job.cell, job.prompt) != (MORE, 1))
    rows = list(csv.DictReader(io.StringIO(table_of_clips(results))))
    assert {row["clip"] for row in rows} == results.finished
    assert len(rows) == 22
    assert list(rows[0])[-len(METRICS) - 1 :] == [*METRICS, "motion_pixels"]
    assert set(OPTIONS) <= rows[0].keys()
    settings = (
        "noise",
        "lam",
        "alpha",
        "attn",
        "mu",
        "frozen",
        "text",
        "set",
        "seed",
        "motion",
        "ssim",
        "steps",
        "width",
    )
    want = ["iid", "", "", "tma", "0.98", "False", "cat", "open", "1", "0.53", "", "1", "16"]
    (row,) = (row for row in rows if row["clip"] == "iid_tma-0.98_p02_s1")
    assert [row[name] for name in settings] == want


@pytest.mark.usefixtures("intervals_of_two")
def test_csv_of_differences_has_the_numbers_of_the_tables(tmp_path):
    results = known(tmp_path / "study")
    text = table_of_differences(results)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 3 * len(CELLS) * len(results.metrics)
    (row,) = (row for row in rows if (row["prompts"], row["variant"], row["metric"]) == ("open", MORE.label, "motion"))
    assert {name: float(row[name]) for name in ("mean", "difference", "low", "high")} == pytest.approx(
        {"mean": 0.625, "difference": 0.02, "low": 0.02, "high": 0.02}
    )
    assert (row["control"], row["clips"], row["seen"]) == ("", "4", "True")
    first = next(row for row in rows if row["control"] == "reference")
    assert [first[name] for name in ("difference", "low", "high", "seen")] == [""] * 4
    seen = {(row["metric"], row["seen"]) for row in rows if row["variant"] == MIXED.label}
    assert seen == {*((metric, "False") for metric in results.metrics), ("clip-score", "")}  # one open prompt has one
    assert table_of_differences(known(tmp_path / "none", measure=lambda job: None)).count("\n") == 1


def test_the_page_names_its_style_and_script_and_no_address(tmp_path):
    text = page(known(tmp_path / "study"), tmp_path / "study")
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    digests = {}
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests[tag] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'"
    )
    assert not re.search(r"https?:|\bon[a-z]+=|\bsrc=|<link|@import|url\(| style=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"#tables", "#sweeps", "#noise", "#clips", "#blind", "#about"}
    assert "@@" not in text


def test_pictures_hold_all_frames_losslessly():
    frames = np.random.default_rng(0).integers(0, 256, (WIDEST // 64 + 3, 16, 64, 3), np.uint8)
    address, columns, size = _picture(frames)
    assert (columns, size) == (WIDEST // 64, [64, 16])
    with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,")))) as image:
        grid = np.asarray(image.convert("RGB"))
    assert grid.shape == (32, WIDEST, 3)
    for i, frame in enumerate(frames):
        x, y = i % columns * 64, i // columns * 16
        np.testing.assert_array_equal(grid[y : y + 16, x : x + 64], frame)


def test_large_pictures_are_reduced_and_the_page_says_so(tmp_path):
    frames = np.zeros((2, 2 * LARGE, 1024, 3), np.uint8)
    assert _picture(frames)[1:] == (2, [LARGE, LARGE // 2])
    results = known(tmp_path / "study")
    words = "Clips are reduced to 256 pixels on this page."
    assert words not in page(results, tmp_path / "study")
    assert words in page(replace(results, study=replace(results.study, width=512)), tmp_path / "study")


# --- which votes belong to it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seeds": (0, 1, 2)}, True),
        ({"cells": CELLS[:2]}, True),
        ({"zs2": "9.9.9"}, True),
        ({"steps": 2}, False),
        ({"weights": {"unet": "0"}}, False),
        ({"prompts": PROMPTS[:3]}, False),
        ({"prompts": (*PROMPTS[:3], Prompt("", "closed"))}, False),
    ],
)
def test_the_digest_for_votes_is_of_what_decides_clips(changes, same, tmp_path):
    results = known(tmp_path / "study")
    other = replace(results, study=changed(results.study, **changes))
    assert (other.digest == results.digest) == same


# --- the command ------------------------------------------------------------------------------------------------------


def ended(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def failed(capsys, *arguments: str | Path, words: str) -> None:
    """Assert that the command ended with one line that has these words, and wrote nothing."""
    status, out, err = ended(capsys, *arguments)
    (line,) = (line for line in err.splitlines() if not line.startswith("clips "))
    assert (status, out) == (2, "")
    assert line.startswith("zs2: error: ")
    assert words in line
    assert len(line) < 700


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A study by the command; not to be changed."""
    return real_study(tmp_path_factory.mktemp("real"))


def test_the_command_on_a_real_study(real, tmp_path, capsys):
    status, out, _ = ended(capsys, real, "--out", tmp_path / "a.html")
    assert status == 0
    assert out.split() == [str(tmp_path / name) for name in ("results.csv", "tables.csv", "a.md", "a.html")]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 12
    # still, as its mark says, but for a gray level here and there: equal rows of a batch may round differently
    assert all(float(row["motion"]) < 1e-4 for row in rows if row["noise"] == "shared")
    assert all(float(row["motion"]) > 1e-3 for row in rows if row["noise"] != "shared")
    assert {row["clip-score"] == "" for row in rows if row["text"] == ""} == {True}
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "checkpoint's own, small one" in text
    assert table(text, "Correlation of consecutive initial noises")["shared"] == ["1.000", "1.000"]


def test_the_same_study_has_the_same_bytes(real, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(real, copy)
    for folder in (real, copy):
        assert main([str(folder)]) == 0
    for name in ("report.html", "report.md", "results.csv", "tables.csv"):
        assert (copy / name).read_bytes() == (real / name).read_bytes()
    assert main([str(copy)]) == 0  # over the old ones
    assert sorted(path.name for path in copy.iterdir() if path.name.startswith("re")) == [
        "report.html",
        "report.md",
        "results.csv",
    ]
    assert not list(copy.glob(".zs2-*"))


def test_what_is_no_study_is_refused(tmp_path, capsys):
    failed(capsys, tmp_path / "nowhere", words="no study here (no study.json): python -m zs2.ablate makes one")
    empty = tmp_path / "an empty one"
    made_up_study(empty, CELLS, measured, made=lambda job: False)
    failed(capsys, empty, words=f"the study has no clip yet: run python -m zs2.ablate --out '{empty}' to the end")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("report.pdf", "expected a name that ends in .html"),
        ("nowhere/report.html", "expected a file in a folder that exists"),
        ("folder.html", "expected a file in a folder that exists"),
    ],
)
def test_an_output_that_can_t_be_is_refused(out, words, tmp_path, capsys):
    made_up_study(tmp_path / "study", CELLS[:1], measured)
    (tmp_path / "folder.html").mkdir()
    failed(capsys, tmp_path / "study", "--out", tmp_path / out, words=words)


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ("{", "can't be read as JSON"),
        ("{}", "expected metrics and protocol in it: remove it"),
        ('{"metrics": [], "protocol": {}}', "metrics is []: expected a JSON object: remove it"),
        ('{"metrics": {}, "protocol": {"metrics": [[]]}}', "protocol: metrics is [[]]: expected a list of names"),
        ('{"metrics": {}, "protocol": {"clip_sha256": {"model": 1}}}', "clip_sha256 is {'model': 1}: expected texts"),
        ('{"metrics": {}, "protocol": {"zs2": {}}}', "'zs2' is {}: expected a text"),
        ('{"metrics": {}, "protocol": null}', "expected metrics and protocol in it"),
        ('{"metrics": {"motion": NaN}, "protocol": {}}', "NaN is no number): remove it"),
        ('{"metrics": {"ssim": "1"}, "protocol": {}}', "ssim is '1': expected a finite number or null"),
        ('{"metrics": {"ssim": true}, "protocol": {}}', "ssim is True: expected a finite number or null"),
    ],
)
def test_broken_measures_are_refused(measures, words, tmp_path, capsys):
    made_up_study(tmp_path / "study", CELLS[:1], measured)
    file = measures_file(tmp_path / "study", "dnm-0.1_tma-0.98_p01_s0")
    file.write_text(measures)
    failed(capsys, tmp_path / "study", words=words)
    failed(capsys, tmp_path / "study", words=str(file))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip": "another CLIP", "clip_sha256": {"model": "0"}}, "(clip 'a CLIP' and 'another CLIP')"),
        ({"opencv": "5.0.0"}, "(opencv None and '5.0.0')"),
        ({"opencv": "5.0.0"}, "without options for cells, prompts and seeds: then all are measured alike"),
        ({"clip_sha256": {"model": "0"}}, "(CLIP weights that differ)"),
        ({"clip_sha256": {"model": "0"}}, "again, with --clip, and without options"),
        ({"lpips": "3f2a"}, "(lpips None and '3f2a')"),
        ({"lpips": "3f2a"}, "again, with --lpips, and without options"),
    ],
)
def test_measures_of_two_kinds_are_refused(changes, words, tmp_path, capsys):
    made_up_study(tmp_path / "study", CELLS[:1], measured)
    file = measures_file(tmp_path / "study", "dnm-0.1_tma-0.98_p01_s0")
    file.write_text(json.dumps({"metrics": {}, "protocol": PROTOCOL | changes}))
    failed(capsys, tmp_path / "study", words=words)


def test_a_clip_that_is_gone_or_broken(tmp_path, capsys):
    made_up_study(tmp_path / "study", CELLS, measured)
    clip_file(tmp_path / "study", "iid_tma-0.98_p01_s0").unlink()
    record_file(tmp_path / "study", "iid_tma-0.98_p01_s1").unlink()  # as where a run was killed
    assert [gap[1:] for gap in Results.read(tmp_path / "study").gaps()] == [(2, 0)]
    clip = clip_file(tmp_path / "study", "iid_tma-0.98_p00_s0")
    clip.write_bytes(clip.read_bytes()[:50])
    failed(capsys, tmp_path / "study", words=str(clip))


def test_files_of_weights_are_named_by_the_beginning_of_their_digests(tmp_path):
    study = made_up_study(tmp_path / "study", CELLS[:1], measured)
    one: dict[str, object] = {"sha256": "0123456789abcdef"}
    files = {"lora": [one | {"scale": 0.8}, one | {"scale": 1.0}], "embeddings": [one | {"token": "<toy>"}]}
    changed(study, **files, controlnet=[one | {"config": "fedcba9876543210"}, {"sha256": 5}]).write(tmp_path / "study")
    assert summary(Results.read(tmp_path / "study"))[-5:-2] == [
        "LoRA: SHA-256 0123456789ab, scale 0.8; SHA-256 0123456789ab, scale 1.0",
        "Embeddings: SHA-256 0123456789ab, token <toy>",
        "ControlNets: SHA-256 0123456789ab, config fedcba987654; SHA-256 5",
    ]
