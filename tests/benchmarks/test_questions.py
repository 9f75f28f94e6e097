"""The commands behind docs/questions.md: their figures against known numbers, and against clips made another way."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import CHECKPOINT, TESTS
from studies import made_up_study

from zs2 import ZS2
from zs2.evaluation.clip_scorer import Scorer
from zs2.evaluation.metrics import clip_first, motion
from zs2.study.cells import corners, paper
from zs2.study.options import with_file
from zs2.study.planning import plan
from zs2.study.prompts import Prompt
from zs2.video.clip import Clip


@pytest.fixture
def questions(monkeypatch):
    monkeypatch.chdir(TESTS.parent)
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    import questions

    return questions


def table(text: str, start: int = 0) -> list[list[str]]:
    """The rows of the first table in Markdown from a line on."""
    lines = [line for line in text.splitlines()[start:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_drift_has_the_figures_of_the_clips(questions, tmp_path: Path, capsys):
    """As of a clip at once; momentum of 1 is cross-frame attention; nothing that is there is made again."""
    out, file = tmp_path / "drift", tmp_path / "drift.csv"
    line = (
        f"drift --model '{CHECKPOINT}' --frames 3 --steps 1 --size 16 --each 1 --out '{out}' --variants tma tma:1 cfa "
    )
    line += f"--csv '{file}' --plot '{tmp_path / 'a.svg'}' --sheet '{tmp_path / 'a.png'}'"
    words = shlex.split(line)
    assert questions.main([*words, "--shard", "1/2"]) == 0
    assert "3 of 6 clips are left to other shards" in capsys.readouterr().out
    assert questions.main(words) == 0
    assert "identity to frame 0, frames:" in capsys.readouterr().out
    model = ZS2.from_pretrained(CHECKPOINT)
    prompt = model.own_settings.prompts[0]
    frames = model(prompt, frames=3, steps=1, height=16, width=16, seed=0).frames
    rows = {(r["prompts"], r["metric"], r["variant"]): r for r in csv.DictReader(file.open())}
    found = {metric: float(rows["closed", metric, "tma"]["value"]) for metric in ("first", "motion")}
    images = Scorer.from_pretrained(CHECKPOINT).embed_frames(frames)
    assert found["first"] == pytest.approx(clip_first(images), abs=1e-4)
    assert found["motion"] == pytest.approx(motion(frames), abs=1e-4)
    assert (tmp_path / "a.svg").read_text().count("<polyline") == 4 * 3
    one, other = ((out / f"{name}_p00_s0.csv").read_text() for name in ("tma-1", "cfa"))
    assert one == other
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert questions.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    capsys.readouterr()
    assert questions.main([*words, "--steps", "2"]) == 2
    assert "has clips of another steps: give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--variants tma", "variants are tma: expected cfa among them"),
        ("--variants tma:much cfa", "variant tma:much: expected a kind of attention, or KIND:μ"),
        ("--frames 1", "frames is 1: expected"),
        ("--each 0", "each is 0: expected"),
        ("--seeds 0", "seeds is 0: expected"),
    ],
)
def test_drift_refuses_what_it_can_not_compare_before_it_loads(questions, words, error, tmp_path: Path, capsys):
    assert questions.main(["drift", "--model", "none", "--out", str(tmp_path / "out"), *words.split()]) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_windows_double(questions):
    from long_clips import half, spans

    assert spans(128) == [(1, 8), (9, 16), (17, 32), (33, 64), (65, 127)]
    assert spans(3) == [(1, 2)]
    falling = [{"first": 0.5 + 0.5 * 0.9**i} for i in range(1, 200)]  # half of the way at ln ½ / ln 0.9 = 6.6
    assert half({(0, 0): falling}) in (6, 7, 8)


def test_seeds_apart(questions):
    one, other = np.array([[1.0, 0.0]] * 3), np.array([[0.0, 1.0]] * 3)
    assert questions.seeds_apart(np.stack([one, one])) == pytest.approx(0)
    assert questions.seeds_apart(np.stack([one, other])) == pytest.approx(1)
    assert questions.seeds_apart(np.stack([one, one, other])) == pytest.approx(2 / 3)


def test_diversity(questions, tmp_path: Path, capsys):
    """Still clips are no less different from seed to seed than their frame 0, and have no difference within."""
    made_up_study(tmp_path, [paper()[0], paper()[-1]], lambda job: {}, [Prompt("cat"), Prompt("rose")])
    assert questions.main(["diversity", str(tmp_path), "--model", str(CHECKPOINT)]) == 0
    full, still = table(capsys.readouterr().out)[2:]
    assert (full[1], full[2], still[-1]) != ("0.0000", "", "")
    assert full[2:5] == ["", "", ""]
    assert still[1] == still[5]
    assert still[6] in ("0.0000", "-0.0000")
    assert float(full[6]) > 0.001
    one_seed = tmp_path / "one"
    made_up_study(one_seed, paper()[:1], lambda job: {}, seeds=(0,))
    assert questions.main(["diversity", str(one_seed)]) == 2
    assert "has one seed: expected two or more" in capsys.readouterr().err


def test_the_distance_is_what_the_derivation_says_and_no_divergence_of_laws(questions, capsys):
    assert questions.main(["divergence", "--pairs", "8"]) == 0
    for row in table(capsys.readouterr().out)[2:]:
        lam, _, forward, wide, back, back_wide, _, laws, shared = (float(cell.removesuffix(" %")) for cell in row)
        assert abs(forward - lam) < 2.5 * wide
        assert abs(back - lam) < 2.5 * back_wide
        assert laws < 0.001
        assert shared == pytest.approx(-0.5 * np.log(1 - (1 - lam / np.exp(0.5)) ** 2), abs=0.01)


def test_votes(questions, capsys):
    """The report says that ±5 % takes 381 votes; 194 find 60 % (Fleiss, Levin & Paik 2003, without correction)."""
    assert questions.main(["votes"]) == 0
    rows = table(capsys.readouterr().out)[2:]
    assert rows[0] == ["1", "0", "93", "381", "1533", "194"]
    assert [int(cell) for cell in rows[2][2:]] == pytest.approx([2.8 * x for x in (93, 381, 1533, 194)], rel=0.01)


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("reproduce", 400),
        ("motion-closed", 160),
        ("motion-open", 160),
        ("frequencies", 128),
        ("levels", 160),
        ("steps", 128),
    ],
)
def test_the_studies_can_be_planned(name, clips):
    """Each is a file of options for zs2.ablate, of so many clips on 16 prompts, or on the 8 of a set."""
    study = plan(with_file({"file": str(TESTS.parent / "benchmarks" / "studies" / f"{name}.toml")}), None)
    assert len(list(study.jobs())) == clips


@pytest.mark.parametrize(
    ("name", "clip", "model"), [("edges", "ring", "emoji128"), ("edit", "cupcake", "emoji128-edit")]
)
def test_the_guided_studies_can_be_planned(name, clip, model, tmp_path: Path, monkeypatch):
    """The four corners on 8 prompts, with a clip that a command makes."""
    monkeypatch.chdir(tmp_path)
    Clip(np.zeros((16, 16, 16, 3), np.uint8)).save(tmp_path / "out" / f"{clip}.webp", json=False)
    study = plan(with_file({"file": str(TESTS.parent / "benchmarks" / "studies" / f"{name}.toml")}), None)
    assert len(list(study.jobs())) == 32
    assert Path(study.model).name == model
    assert {one.id for one in corners(study.cells, study.cells[0])} == {one.id for one in study.cells}
