"""`--motion-target`: the value of a parameter at which clips move as asked, for one clip and for a study."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import CHECKPOINT
from hypothesis import given
from hypothesis import strategies as st
from studies import made_up_study

from zs2.ablate import main as ablate
from zs2.cli.equal_motion import HALVINGS, TOLERANCE, find, is_near, scales, searched
from zs2.errors import InputError
from zs2.evaluation.metrics import METRICS
from zs2.method import LAM_MAX, NOISE_MODELS, PARAMETERS, Method
from zs2.reporting.content import notes
from zs2.reporting.markdown import markdown
from zs2.reporting.spreadsheet import table_of_clips
from zs2.sample import main as sample
from zs2.study.cells import NUMBERS, STUDY_MU, cell, paper, preset
from zs2.study.equal_motion import SEARCH, _search_of, at_equal_motion, without_missed
from zs2.study.inputs import Inputs
from zs2.study.prompts import Prompt
from zs2.study.results import EQUAL_MOTION, Results, is_ranked
from zs2.study.study import Study
from zs2.version import REVISION
from zs2.video.clip import Clip
from zs2.video.motion import motion

SMALL = ["--steps", "2", "--spacing", "trailing", "--frames", "3", "--size", "16x16", "--model", str(CHECKPOINT)]


def clips(changes: list[float]) -> list[np.ndarray]:
    """Clips of two frames, the second lighter by so much."""
    return [np.stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), round(255 * x), np.uint8)]) for x in changes]


@given(st.floats(0.05, 0.9), st.sampled_from([0.5, 1.0, 2.0]))
def test_a_value_is_found_whatever_the_growth(target, power):
    found = find(lambda lam: clips([(lam / LAM_MAX) ** power]), "lam", target)
    assert abs(found.motion - target) <= TOLERANCE * target + 0.01  # pixels are whole numbers
    assert found.motion == pytest.approx(round(255 * (found.value / LAM_MAX) ** power) / 255)
    assert (found.clips, found.spread) == (1, None)


def test_the_error_over_clips_is_stated():
    found = find(lambda lam: clips([lam / LAM_MAX, min(1, 2 * lam / LAM_MAX)]), "lam", 0.3)
    changes = [motion(clip) for clip in clips([found.value / LAM_MAX, 2 * found.value / LAM_MAX])]
    assert found.spread == pytest.approx(np.std(changes, ddof=1) / np.sqrt(2))
    assert "±" in str(found)


def test_a_motion_out_of_reach_is_refused():
    with pytest.raises(InputError, match=r"motion_target is 0.5: .* from 0.2 .* to 0.4"):
        find(lambda lam: clips([0.2 + 0.2 * lam / LAM_MAX]), "lam", 0.5)


def test_a_leap_over_the_target_is_as_near_as_it_gets():
    tried: list[float] = []

    def make(lam: float) -> list[np.ndarray]:
        tried.append(lam)
        return clips([0.1 if lam < 1 else 0.2])

    found = find(make, "lam", 0.16)
    assert len(tried) == 2 + HALVINGS
    assert found.motion == pytest.approx(0.2)
    assert not is_near(found.motion, 0.16)


@pytest.mark.parametrize("name", scales())
def test_a_scale_goes_from_still_to_most_different(name):
    scale = PARAMETERS[name].strength
    values = [PARAMETERS[name].check(scale(place / 8)) for place in range(9)]
    kinds = [kind for kind in NOISE_MODELS if searched(kind) == name]
    assert kinds
    if name == "motion":
        assert values[0] == (0, 0)
        return
    correlations = [
        NOISE_MODELS[k].correlation(**Method(noise=k, **{name: v}).noise_parameters)
        for k in kinds
        for v in values
        if k not in ("freq", "dnm-search")
    ]
    for one in range(0, len(correlations), 9):
        falling = correlations[one : one + 9]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] == pytest.approx(1, abs=1e-5)
        assert falling[-1] == pytest.approx(0, abs=1e-12)


def test_a_clip_has_the_motion_that_is_asked_for_and_replays(tmp_path: Path, capsys):
    line = ["rose", *SMALL, "--motion-target", "0.05", "--out", str(tmp_path / "a.webp")]
    assert sample(line) == 0
    clip = Clip.open(tmp_path / "a.webp")
    assert motion(clip.frames) == pytest.approx(0.05, rel=0.1)
    lam = clip.settings["lam"]
    err = capsys.readouterr().err
    assert f"zs2: lam {lam:g} has motion 0.0" in err
    assert "λ" not in err  # the checkpoint's own is not in effect
    assert sample(["--replay", str(tmp_path / "a.webp"), "--out", str(tmp_path / "b.webp")]) == 0
    assert (tmp_path / "b.webp").read_bytes() == (tmp_path / "a.webp").read_bytes()


def test_a_clip_that_is_not_near_the_target_is_made_with_a_warning(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("zs2.cli.equal_motion.HALVINGS", 0)
    out = tmp_path / "a.webp"
    assert sample(["rose", *SMALL, "--motion-target", "0.05", "--out", str(out)]) == 0
    told = "warning: motion_target is 0.05: no value of lam was found with a motion within 2% of it"
    assert told in capsys.readouterr().err
    assert Clip.open(out).settings["lam"] in (0, LAM_MAX)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--motion-target 0", "above 0 and below 1"),
        ("--motion-target nan", "above 0 and below 1"),
        ("--motion-target 0.1 --noise iid", "'iid' has nothing to find"),
        ("--motion-target 0.1 --lam 0.1", "leave --lam out"),
        ("--motion-target 0.1 --seed 0..1", "one prompt and seed"),
        ("--motion-target 0.1 --frames 1", "several frames"),
    ],
)
def test_a_clip_that_can_not_be_asked_for(line, words, capsys):
    assert sample(["rose", "--model", str(CHECKPOINT), *line.split()]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_a_study_at_equal_motion_is_searched_once_and_ranked(tmp_path: Path, capsys):
    prompts, out = tmp_path / "p.txt", tmp_path / "study"
    prompts.write_text("rose\nrocket\n")
    cells = ["--noise", "mixed", "iid", "--attn", "tma", "sa"]
    line = [*SMALL, *cells, "--prompts", str(prompts), "--seeds", "0", "--out", str(out), "--motion-target", "0.06"]
    assert ablate(line) == 0
    found = json.loads((out / "motion.json").read_text())
    del found[SEARCH]
    assert [*found] == ["mixed-1_tma-0.98 at 0.06", "mixed-1_sa at 0.06"]
    capsys.readouterr()
    assert ablate(line) == 0  # goes on with the same cells
    assert json.loads((out / "motion.json").read_text()).items() >= found.items()
    assert "has motion" not in capsys.readouterr().err
    results = Results.read(out)
    assert not results.gaps()
    moved = {one.id: np.mean([*results.values(one.id, "motion").values()]) for one in results.study.cells}
    for one in results.study.cells:
        if one.noise == "iid":
            assert one.label.endswith(", own motion")
        else:
            assert moved[one.id] == pytest.approx(0.06, rel=0.05)
            assert one.alpha in [entry["value"] for entry in found.values()]
    assert ablate([*line[:-1], "0.05"]) == 2
    assert "has variants at 0.06, which are ranked together: give another --out" in capsys.readouterr().err
    assert Study.read(out) == results.study
    text = markdown(results)
    assert [f"({n})" in text for n in (1, 2, 3)] == [True, True, False]  # those at their own motion have no rank
    assert any("At equal motion" in note for note in notes(results))


@pytest.mark.parametrize(("moved", "near"), [(0.0305, True), (0.0295, True), (0.034, False), (0.0293, False)])
def test_a_cell_that_is_not_near_the_target_keeps_what_was_found_and_has_no_rank(moved, near, tmp_path: Path, capsys):
    """Also in a study that an older zs2 began, which ranked it."""
    cells = [one for one in preset("motion") if one.attn in ("tma", "cfa", "extended") and one.noise == "dnm"]
    study = made_up_study(tmp_path, cells, lambda job: {"motion": 0.03, "ssim": 0.5})
    record = {"value": 0.37, "motion": 0.03, "clips": 4, "spread": 0.001}
    found = {f"dnm-1_{kind} at 0.03": record for kind in ("tma-0.98", "cfa", "extended")}
    found["dnm-1_extended at 0.03"] = record | {"motion": moved}
    (tmp_path / "motion.json").write_text(json.dumps(found))
    new = at_equal_motion(study, None, tmp_path, 0.03, Inputs())
    label = "dnm λ=0.37 + extended"
    assert [one.label for one in new.cells][1:] == [
        "DNM + cross-frame attention (λ=0.37)",
        label if near else f"{label}, motion {moved:g}",
    ]
    assert [(one.lam, EQUAL_MOTION in one.presets) for one in new.cells] == [(0.37, True), (0.37, True), (0.37, near)]
    told = f"{label} has motion {moved:g}, and no value was found with a motion within 2% of 0.03: it is not ranked"
    assert (told in capsys.readouterr().err) is not near
    before = replace(new, cells=(*new.cells[:2], replace(new.cells[2], label=label, presets=(EQUAL_MOTION,))))
    assert without_missed(before, tmp_path) == new
    assert without_missed(new, tmp_path) == new
    assert without_missed(new, tmp_path).with_more(new) == new


def test_a_study_that_goes_on_takes_the_rank_of_a_cell_off_its_target(tmp_path: Path, capsys):
    """Whichever cells the command asks for, and without a search: one of an older zs2 may have it."""
    prompts, out = tmp_path / "p.txt", tmp_path / "study"
    prompts.write_text("rose\n")
    line = [*SMALL, "--prompts", str(prompts), "--seeds", "0", "--out", str(out)]
    assert ablate([*line, "--noise", "dnm", "--attn", "tma", "sa", "--lam", "0.37"]) == 0
    begun = json.loads((out / "study.json").read_text())
    for one in begun["cells"]:
        one["presets"] = [EQUAL_MOTION]
    (out / "study.json").write_text(json.dumps(begun))
    record = {"value": 0.37, "motion": 0.03, "clips": 4, "spread": 0.001}
    found = {"dnm-1_tma-0.98 at 0.03": record, "dnm-1_sa at 0.03": record | {"motion": 0.034}}
    (out / "motion.json").write_text(json.dumps({SEARCH: "3f2a"} | found))
    tma, sa = Study.read(out).cells
    assert is_ranked(tma)
    assert is_ranked(sa)
    assert ablate([*line, "--dry-run"]) == 0
    assert "dnm λ=0.37 + sa, motion 0.034" in capsys.readouterr().out
    assert json.loads((out / "study.json").read_text()) == begun
    assert ablate(["--model", str(CHECKPOINT), "--out", str(out)]) == 0
    assert Study.read(out).cells == (tma, replace(sa, label="dnm λ=0.37 + sa, motion 0.034", presets=()))


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"dnm-1_tma-0.98 at 0.03": {"value": 0.36, "motion": 0.04}},  # of another search
        {"dnm-1_sa at 0.03": {"value": 0.37, "motion": 0.04}},
        {"dnm-1_tma-0.98 at 0.03": {"value": 0.37}},
        {"dnm-1_tma-0.98 at 0.03": 0.37},
        {"dnm-1_tma-0.98 at 0.03": None},
        {SEARCH: {"value": 0.37, "motion": 0.04}},
    ],
)
def test_a_cell_of_which_no_other_motion_is_known_keeps_its_rank(found, tmp_path: Path):
    ranked = replace(cell("dnm", 0.37, "tma", STUDY_MU), presets=(EQUAL_MOTION,), label="a label, motion sick")
    study = made_up_study(tmp_path, [ranked], lambda job: None)
    assert without_missed(study, tmp_path) == study
    (tmp_path / "motion.json").write_text(json.dumps(found))
    assert without_missed(study, tmp_path) == study


def test_a_search_without_a_target_is_refused(tmp_path: Path):
    study = made_up_study(tmp_path, [replace(paper()[0], presets=(EQUAL_MOTION,))], lambda job: None)
    (tmp_path / "motion.json").write_text(json.dumps({"dnm-1_tma-0.98 at x": {"value": 0.1, "motion": 0.04}}))
    with pytest.raises(InputError, match=r"motion.json: 'dnm-1_tma-0.98 at x': expected a motion after the last"):
        without_missed(study, tmp_path)


def test_a_report_says_what_the_marks_of_labels_mean(tmp_path: Path):
    """Also of iid, which has nothing to search."""
    cells = [one for one in paper() if one.noise in ("iid", "dnm")]
    study = made_up_study(tmp_path, cells, lambda job: {"motion": 0.03})
    record = {"value": 0.37, "motion": 0.03, "clips": 4, "spread": 0.001}
    found = {"dnm-1_tma-0.98": record, "dnm-1_sa": record | {"motion": 0.034}, "dnm-1_cfa": None}
    (tmp_path / "motion.json").write_text(json.dumps({f"{key} at 0.03": value for key, value in found.items()}))
    new = at_equal_motion(study, None, tmp_path, 0.03, Inputs())
    marks = {one.label.rpartition(", ")[2] for one in new.cells if not one.frozen and not is_ranked(one)}
    assert marks == {"own motion", "motion 0.034"}
    results = Results(new, {(new.full, 0, 0): dict.fromkeys(METRICS) | {"motion": 0.03}}, frozenset(), None)
    (note,) = (note for note in notes(results) if "equal motion" in note)
    assert {mark for mark in marks if f"“{mark}”" in note} == marks
    assert "“own motion” have no such value, or can't reach the target" in note
    assert "Neither is ranked" in note


def test_pixels_that_were_found_are_kept(tmp_path: Path):
    """Those of the study are read again, and a CSV has them in a last column that is not the metric's."""
    cells = [one for one in paper() if one.noise in ("dnm", "text2video-zero") and one.attn == "cfa"]
    study = made_up_study(tmp_path, cells, lambda job: {"motion": 0.03})
    found = {"value": 0.1, "motion": 0.03, "clips": 4, "spread": None}
    key = "text2video-zero-motion-1-1_cfa at 0.03"
    (tmp_path / "motion.json").write_text(
        json.dumps({"dnm-1_cfa at 0.03": found, key: found | {"value": [20.2, 20.2]}})
    )
    new = at_equal_motion(study, None, tmp_path, 0.03, Inputs())
    one = new.cells[1]
    assert (one.motion, one.label) == ((20.2, 20.2), "Text2Video-Zero (δ=20.2,20.2)")
    assert EQUAL_MOTION in one.presets
    new.write(tmp_path)
    assert Study.read(tmp_path) == new
    (tmp_path / "clips" / f"{one.id}_p00_s0.webp").write_bytes(b"")
    (tmp_path / "clips" / f"{one.id}_p00_s0.webp.json").write_text("{}")
    table = list(csv.DictReader(io.StringIO(table_of_clips(Results.read(tmp_path)))))
    (row,) = (row for row in table if row["motion_pixels"])
    assert (row["motion_pixels"], row["motion"], row["cell"]) == ("20.2,20.2", "", one.id)
    assert [*row][-1] == "motion_pixels"  # after those that were there before
    stored = json.loads((tmp_path / "study.json").read_text())
    stored["cells"][1]["motion"] = [1, 1]
    (tmp_path / "study.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="is not the id of text2video-zero and cfa at its values"):
        Study.read(tmp_path)
    stored["cells"][1]["motion"] = [1]
    (tmp_path / "study.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"motion is .* expected two numbers"):
        Study.read(tmp_path)


def test_a_dry_run_counts_the_cells_at_the_values_that_were_found(tmp_path: Path, capsys):
    """It searches nothing: a cell that is new stands at its usual value."""
    study = made_up_study(tmp_path, paper()[:1], lambda job: {"motion": 0.03}, seeds=(0,), made=lambda job: False)
    found = {"value": 0.2, "motion": 0.03, "clips": 4, "spread": None}
    (tmp_path / "motion.json").write_text(json.dumps({SEARCH: _search_of(study), "dnm-1_tma-0.98 at 0.03": found}))
    at_equal_motion(study, None, tmp_path, 0.03, Inputs()).write(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    line = ["--dry-run", "--noise", "dnm", "iid", "mixed", "--attn", "tma", "--out", str(tmp_path)]
    assert ablate([*line, "--motion-target", "0.03"]) == 0
    _, *rows, _ = capsys.readouterr().out.splitlines()
    assert [row.split(maxsplit=3) for row in rows] == [
        ["dnm-0.2_tma-0.98", "0/4", "0/4", "dnm λ=0.2 + tma μ=0.98"],
        ["iid_tma-0.98", "0/4", "0/4", "iid + tma μ=0.98, own motion"],
        ["mixed-1_tma-0.98", "0/4", "0/4", "mixed a=1 + tma μ=0.98"],
    ]
    assert ablate([*line, "--motion-target", "0.05"]) == 2
    assert "has variants at 0.03, which are ranked together" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_all_that_can_be_searched_is_of_a_cell():
    assert {*scales()} <= {*NUMBERS}


@pytest.mark.long
@pytest.mark.parametrize(("noise", "target"), [("warp", 0.03), ("text2video-zero", 0.087)])
def test_a_study_finds_pixels(noise, target, tmp_path: Path, capsys):
    prompts, out = tmp_path / "p.txt", tmp_path / "study"
    prompts.write_text("rose\n")
    line = [*SMALL, "--size", "64x64", "--steps", "4", "--noise", noise, "--attn", "cfa", "--prompts", str(prompts)]
    assert ablate([*line, "--seeds", "0", "--out", str(out), "--motion-target", str(target)]) == 0
    assert re.search(r": motion [0-9.]+,[0-9.]+ has motion 0.", capsys.readouterr().err)
    results = Results.read(out)
    (one,) = results.study.cells
    assert one.motion not in (None, (0, 0), (12, 12))
    near = abs(results.values(one.id, "motion")[0, 0] - target) <= TOLERANCE * target
    assert (EQUAL_MOTION in one.presets) == near == (", motion" not in one.label)
    assert Clip.open(out / "clips" / f"{one.id}_p00_s0.webp").settings["motion"] == list(one.motion)


def test_an_id_that_would_be_too_long_is_refused_before_the_search(tmp_path: Path):
    long = cell("dnm", 0.3, "tma", (1 / 7, 2 / 7, 3 / 7, 0.123456789, 0.98765432112))
    assert len(long.id) <= 100 < len(long.id) + len("5.66e-05") - len("0.3")
    study = replace(made_up_study(tmp_path / "other", [long], lambda job: {"motion": 0.0}), revision=REVISION)
    with pytest.raises(InputError, match="characters: expected at most 100"):
        at_equal_motion(study, Mock(side_effect=AssertionError("it searched")), tmp_path, 0.03, Inputs())


def test_a_search_that_does_not_say_its_motion_is_refused(tmp_path: Path):
    study = made_up_study(tmp_path, paper()[:1], lambda job: {"motion": 0.0})
    (tmp_path / "motion.json").write_text(json.dumps({"dnm-1_tma-0.98 at 0.03": {"value": 0.1}}))
    with pytest.raises(InputError, match="its motion is None: expected a number: remove the file"):
        at_equal_motion(study, None, tmp_path, 0.03, Inputs())


class Moving:
    """A model whose clips move as λ says. It keeps the prompts and seeds of their requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def variant(self, **method: Any) -> Callable[..., SimpleNamespace]:
        def make(**asked: Any) -> SimpleNamespace:
            self.asked.append((asked["prompt"], asked["seed"]))
            return SimpleNamespace(frames=clips([method["lam"] / LAM_MAX])[0])

        return make


def searched_study(folder: Path) -> tuple[Study, Study]:
    """A study at equal motion of one cell and four closed prompts; and what asks for another cell, with open prompts
    and another seed first."""
    tma, cfa = (cell("dnm", 0.1, attn, STUDY_MU) for attn in ("tma", "cfa"))
    study = made_up_study(folder, [tma], lambda job: None, [Prompt(f"thing {i}") for i in range(4)], (3, 4))
    (folder / "study.json").unlink()
    study = at_equal_motion(replace(study, revision=REVISION), Moving(), folder, 0.25, Inputs())
    study.write(folder)
    opened = tuple(Prompt(f"open {i}", "open") for i in range(4))
    return study, replace(study, cells=(tma, cfa), prompts=study.prompts + opened, seeds=(7, 3))


def test_a_cell_of_a_study_that_grew_is_searched_as_the_others_were(tmp_path: Path):
    """With the same prompts and seed, which the file goes on to state."""
    study, more = searched_study(tmp_path)
    before, model = json.loads((tmp_path / "motion.json").read_text()), Moving()
    assert (before[SEARCH]["prompts"], before[SEARCH]["seed"]) == ([str(one) for one in study.prompts], 3)
    assert _search_of(more) != before[SEARCH]
    grown = at_equal_motion(more, model, tmp_path, 0.25, Inputs())
    assert {*model.asked} == {(one.text, 3) for one in study.prompts}
    after = json.loads((tmp_path / "motion.json").read_text())
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {"dnm-1_cfa at 0.25"}
    assert [one.lam for one in grown.cells] == [study.cells[0].lam] * 2
    model.asked.clear()
    assert at_equal_motion(more, model, tmp_path, 0.25, Inputs()) == grown
    assert model.asked == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            (changes, "does not say on which prompts and seed its variants were searched")
            for changes in (
                "3f2a",
                None,
                [],
                *({"prompts": value} for value in (None, [], "thing 0", {"thing 0": 1})),
                *({"seed": value} for value in (None, True, "3", 3.0, -1, 2**64)),
            )
        ),
        ({"prompts": ["'rose' (closed)"]}, "on the prompt \"'rose' (closed)\", which is not there now"),
        ({"prompts": [7]}, "on the prompt 7, which is not there now"),
        ({"prompts": [["thing 0"]]}, "on the prompt ['thing 0'], which is not there now"),
    ],
)
def test_a_new_cell_that_can_not_be_searched_as_the_others_is_refused(changes, words, tmp_path: Path):
    """The cells that are there go on."""
    study, more = searched_study(tmp_path)
    file, model = tmp_path / "motion.json", Moving()
    known = json.loads(file.read_text())
    known[SEARCH] = known[SEARCH] | changes if isinstance(changes, dict) else changes
    file.write_text(json.dumps(known))
    with pytest.raises(InputError, match=re.escape(words)) as error:
        at_equal_motion(more, model, tmp_path, 0.25, Inputs())
    assert str(error.value).startswith(str(file))
    assert "dnm λ=0.1 + cfa would be ranked with them: give" in str(error.value)
    assert str(error.value).endswith("give another --out for another study")
    assert json.loads(file.read_text()) == known
    assert at_equal_motion(replace(more, cells=more.cells[:1]), model, tmp_path, 0.25, Inputs()).cells == study.cells
    assert model.asked == []


def test_a_study_that_had_no_search_begins_one(tmp_path: Path):
    """On its own prompts and first seed. One with ranked cells had one, which it has lost."""
    ranked, study = searched_study(tmp_path)
    file, model = tmp_path / "motion.json", Moving()
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"dnm-1_tma-0.98 at 0.25": {"value": "x"}}))
    with pytest.raises(InputError, match=r"motion\.json: .*: lam is 'x': .*: give another --out"):
        at_equal_motion(study, model, tmp_path, 0.25, Inputs())
    file.unlink()
    with pytest.raises(InputError, match=r"motion\.json does not say on which prompts .*: give another --out"):
        at_equal_motion(study, model, tmp_path, 0.25, Inputs())
    assert model.asked == []
    replace(ranked, cells=(replace(ranked.cells[0], presets=()),)).write(tmp_path)
    at_equal_motion(study, model, tmp_path, 0.25, Inputs())
    assert {*model.asked} == {(text, 7) for text in ("thing 0", "thing 1", "open 0", "open 1")}
    assert json.loads((tmp_path / "motion.json").read_text())[SEARCH] == _search_of(study)


def test_the_still_control_of_the_preset_stays_as_it_is(tmp_path: Path):
    study = made_up_study(tmp_path, preset("motion"), lambda job: {"motion": 0.03})
    found = {"value": 0.1, "motion": 0.03, "clips": 4, "spread": None}
    keys = {f"{cell(one.noise, 1, one.attn, STUDY_MU, 1).id} at 0.03" for one in study.cells if not one.frozen}
    (tmp_path / "motion.json").write_text(json.dumps(dict.fromkeys(keys, found)))
    *variants, still = at_equal_motion(study, None, tmp_path, 0.03, Inputs()).cells
    assert len(variants) == 8
    assert all(map(is_ranked, variants))
    assert still == study.cells[-1] == replace(paper()[-1], presets=("motion",))
    assert not is_ranked(still)


def test_a_still_clip_has_no_rank_at_equal_motion(tmp_path: Path):
    cells = [one for one in paper() if one.noise in ("shared", "iid")]
    study = made_up_study(tmp_path, cells, lambda job: {"motion": 0.0, "ssim": 1.0})
    own = at_equal_motion(study, None, tmp_path, 0.03, Inputs()).cells
    assert {one.id for one in own} == {"iid_tma-0.98", "iid_sa", "shared_cfa", "shared_sa", "frozen"}
    assert not any(EQUAL_MOTION in one.presets for one in own)


@pytest.mark.long
def test_a_search_for_other_settings_is_not_taken_up(tmp_path: Path, monkeypatch, capsys):
    prompts, out = tmp_path / "p.txt", tmp_path / "study"
    prompts.write_text("rose\n")
    line = [*SMALL, "--noise", "dnm", "--prompts", str(prompts), "--seeds", "0", "--out", str(out)]
    line += ["--motion-target", "0.06"]
    with monkeypatch.context() as patch:
        patch.setattr(Study, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # it ends before study.json
        assert ablate(line) == 130
    before = json.loads((out / "motion.json").read_text())
    assert not (out / "study.json").exists()
    capsys.readouterr()
    assert ablate([*line, "--guidance", "1"]) == 0
    told = r"motion.json is of a search that ended early, with guidance [0-9.]+, now 1(\.0)?: it begins anew"
    assert re.search(told, capsys.readouterr().err)
    after = json.loads((out / "motion.json").read_text())
    assert before.keys() == after.keys()
    assert not any(before[key] == after[key] for key in before)


def test_a_search_of_another_revision_is_another_one(tmp_path: Path):
    study = made_up_study(tmp_path, paper()[:1], lambda job: {"motion": 0.0})
    one, two, three = (_search_of(replace(study, revision=revision)) for revision in (None, 1, 2))
    assert one != two != three != one
    assert _search_of(replace(study, cells=paper()[:2])) == _search_of(study)


@pytest.mark.parametrize(
    ("sets", "taken"),
    [
        ("cccccccc", [0, 1, 2, 3]),
        ("cccccooooo", [0, 1, 5, 6]),
        ("occccc", [0, 1, 2, 3]),
        ("abbbcc", [0, 1, 2, 4]),
        ("co", [0, 1]),
    ],
)
def test_the_prompts_of_a_search_are_of_all_sets(sets: str, taken: list[int], tmp_path: Path):
    prompts = [Prompt(f"thing {i}", name) for i, name in enumerate(sets)]
    study = made_up_study(tmp_path, paper()[:1], lambda job: {"motion": 0.0}, prompts)
    assert _search_of(study)["prompts"] == [str(prompts[i]) for i in taken]


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ({"revision": 0, "seed": 7}, "with seed 7, now 0; revision 0, now 1: it begins anew"),
        ({"prompts": ["rose"]}, 'with prompts ["rose"], now ["'),
        ({}, "with "),
        ("3f2a", "of an older zs2, and does not say for what: it begins anew"),
    ],
)
def test_an_earlier_search_begins_anew_with_a_word(before, why, tmp_path: Path, capsys):
    cells = [one for one in paper() if one.noise == "iid"]  # which have nothing to find
    study = replace(made_up_study(tmp_path, cells, lambda job: None, made=lambda job: False), revision=1)
    (tmp_path / "study.json").unlink()
    now = _search_of(study)
    earlier = now | before if before and isinstance(before, dict) else before
    (tmp_path / "motion.json").write_text(json.dumps({SEARCH: earlier, "dnm at 0.03": {"value": 1}}))
    at_equal_motion(study, None, tmp_path, 0.03, Inputs())
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("found", [7, True, {}, {"value": "x"}, {"value": 99}, {"value": None}, []])
def test_a_value_that_was_not_found_by_the_search_is_refused(found, tmp_path: Path):
    study = made_up_study(tmp_path, paper()[:1], lambda job: {"motion": 0.0})
    (tmp_path / "motion.json").write_text(json.dumps({"dnm-1_tma-0.98 at 0.03": found}))
    with pytest.raises(InputError, match=r"motion\.json: dnm-1_tma-0.98 at 0.03: lam is .* remove the file"):
        at_equal_motion(study, None, tmp_path, 0.03, Inputs())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--preset motion", "give --motion-target"),
        ("--motion-target 0.03 --lam 0.1", "leave --lam out"),
        ("--motion-target 0.03 --noise mixed --alpha 1 2", "leave --alpha out"),
        ("--motion-target 0.03 --preset lambda", "the preset lambda sweeps it"),
        ("--motion-target 0.03 --preset motion reproduce", "the preset reproduce sweeps it"),
    ],
)
def test_a_study_that_can_not_be_asked_for(line, words, tmp_path: Path, capsys):
    assert ablate([*line.split(), "--out", str(tmp_path / "study")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
