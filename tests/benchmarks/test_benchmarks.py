"""The benchmarks that are quick enough to be run whole: their rows, and that what they compare is what they say."""

from __future__ import annotations

import csv
import json
import math
import runpy
import shlex
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import TESTS, benchmark
from studies import made_up_study

from zs2.reporting import numbers
from zs2.sampling.request import Request
from zs2.sampling.solver import SOLVERS
from zs2.study.cells import AUTHORS, preset
from zs2.study.prompts import Prompt
from zs2.study.results import Results, sweeps
from zs2.study.study import Job


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.chdir(TESTS.parent)
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")


@pytest.fixture
def fewer_steps(benchmarks):
    import fewer_steps

    return fewer_steps


@pytest.mark.long
def test_fewer_steps(fewer_steps, narrow, tmp_path, capsys):
    """Every way has its row, and only the reference is the reference."""
    (tmp_path / "prompts.txt").write_text("red apple on a white background\n[open]\nrocket\n")
    file = tmp_path / "figures.json"
    line = f"--prompts '{tmp_path / 'prompts.txt'}' --seeds 1 --frames 2 --steps 10 --json '{file}'"
    fewer_steps.main([*shlex.split(line), "--model", str(narrow)])
    ways = fewer_steps.ways(10)
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row[:28].strip() for row in rows] == list(ways)
    figures = json.loads(file.read_text())["ways"]
    assert [way for way, row in figures.items() if row["psnr"] == [99.0]] == ["ddim 10"]
    assert all(len(values) == 1 for row in figures.values() for values in row.values())  # the closed prompt alone


def test_the_table_of_fewer_steps_has_differences_and_their_intervals(fewer_steps, tmp_path):
    def one(time, psnr, score):
        """Of five prompts. The scores differ from prompt to prompt, the differences do not."""
        found = {"time": time, "psnr": psnr, "clip-score": score, "motion": 0.03}
        return {name: {(i, 0): value + (name == "clip-score") * i for i in range(5)} for name, value in found.items()}

    table = fewer_steps.rows({"ddim 50": one(4.0, 99.0, 60.0), "ddim 25": one(2.0, 40.0, 61.5)})
    fewer_steps.write_csv(tmp_path / "a.csv", table)
    with (tmp_path / "a.csv").open() as file:
        first, other = csv.DictReader(file)
    assert {name: cell for name, cell in first.items() if cell} == {
        "way": "ddim 50",
        "clip_score": "62.00",
        "motion": "0.0300",
    }
    assert [*other.values()][:6] == ["ddim 25", "0.50", "0.50", "0.50", "40.0", "63.50"]
    assert [other[f"clip_score_{end}"] for end in ("difference", "low", "high")] == ["1.50"] * 3
    assert other["motion_difference"] == "0.0000"


def test_the_ways_can_be_meant_and_differ(fewer_steps):
    requests = [Request("a", **options) for options in fewer_steps.ways(50).values()]
    assert {request.sampler for request in requests} == set(SOLVERS)
    assert len({(r.sampler, r.steps, r.guidance_interval, r.deep_cache) for r in requests}) == len(requests)


@pytest.mark.parametrize("name", ["fewer_steps", "first_frame", "precision", "wall"])
def test_a_model_that_is_not_there_is_one_line(name, benchmarks, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [name, "--model", str(tmp_path / "none")])
    if name == "wall":
        sys.argv += ["--out", str(tmp_path / "wall.webp")]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"benchmarks/{name}.py", run_name="__main__")
    assert str(ended.value).startswith("error: ")
    assert str(tmp_path / "none") in str(ended.value)
    assert len(str(ended.value).splitlines()) == 1


@pytest.mark.long
def test_precision(benchmarks, tmp_path, capsys):
    import precision

    file = tmp_path / "figures.json"
    precision.main([*["--prompts", "1", "--frames", "1", "--steps", "1", "--guidance", "1", "--json"], str(file)])
    found = json.loads(file.read_text())["psnr"]
    assert 20 < found["bfloat16"][0] < found["float16"][0] < 99
    assert "float16   PSNR against float32" in capsys.readouterr().out


def test_psnr(fewer_steps):
    black = np.zeros((2, 3, 3, 3), np.uint8)
    assert fewer_steps.psnr(black, black) == 99
    assert fewer_steps.psnr(black, black + 255) == 0
    assert fewer_steps.psnr(black, black + 1) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_turns(benchmarks, count):
    """Each way once a round, none after itself, and of three or more none always after the same."""
    from common import turns

    taken = list(turns([*map(str, range(count))], 2 * count))
    for number in range(2 * count):
        assert sorted(way for round_, way in taken if round_ == number) == [*map(str, range(count))]
    pairs = {(a, b) for (_, a), (_, b) in pairwise(taken)}
    assert all(a != b for a, b in pairs)
    assert count == 2 or all(len({a for a, b in pairs if b == str(way)}) > 1 for way in range(count))


def test_the_search_and_its_steps(benchmarks, tmp_path, capsys):
    import search

    file = tmp_path / "figures.json"
    search.main(["--pairs", "2", "--json", str(file)])
    figures = json.loads(file.read_text())
    found, seconds = figures["errors"], figures["seconds"]
    assert 0 < seconds["dnm"] < seconds["dnm-search"]
    assert list(found) == ["0.01", "0.1", "0.25", "1"]
    for rows in found.values():
        assert [len(values) for values in rows.values()] == [25, 25, 25, 1]
        for way in search.WAYS:
            assert rows[way] == sorted(rows[way], reverse=True)  # the least error so far
        assert rows["listing"][:10] == rows["random"][:10]
        assert rows["listing"][-1] < rows["random"][-1] / 10
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4 * 4 + 2


def test_the_tables_of_a_study_are_those_of_its_report(tmp_path):
    benchmark("study_tables").main([str(TESTS / "fixtures" / "study"), "--out", str(tmp_path)])
    with (tmp_path / "sweep-lambda.csv").open() as file:
        rows = [*csv.reader(file)]
    (sweep,) = sweeps(Results.read(TESTS / "fixtures" / "study"))
    head, *rows = rows
    assert head == ["lam", "authors", *(f"{which}{end}" for which in sweep.motion for end in ("", "_low", "_high"))]
    assert [row[:2] for row in rows] == [[f"{at:g}", f"{AUTHORS['lambda'][at]:.4f}"] for at in sweep.at]
    for prompts, motion in sweep.motion.items():
        found = [float(row[head.index(prompts)]) for row in rows]
        assert found == pytest.approx([estimate.value for estimate in motion], rel=1e-2)
    assert (tmp_path / "study-prompts.csv").read_text() == "number,kind,prompt\n00,closed,red apple\n01,open,rocket\n"
    with (tmp_path / "ablation.csv").open() as file:
        rows = [*csv.DictReader(file)]
    results = Results.read(TESTS / "fixtures" / "study")
    assert len(rows) == sum(len(results.tables[name]) for name in results.tables) * len(results.metrics)
    for row in rows:
        (of,) = [one for one in results.tables[row["prompts"]] if one.cell.label == row["variant"]]
        entry = of.entries[results.metrics.index(row["metric"])]
        assert (row["mean"] == "") == (entry.value is None)
        if entry.value is not None:
            assert row["mean"] == numbers.number(entry.value.value).replace("−", "-").replace("≈", "")
        assert (row["difference"] == "") == (entry.change is None)
        if entry.change is not None:
            assert float(row["difference"]) == pytest.approx(entry.change.value, rel=0.05, abs=1e-6)
    with (tmp_path / "noise-correlation.csv").open() as file:
        rows = {(row["noise"], row["lam"]): row for row in csv.DictReader(file)}
    assert float(rows["dnm", "0.1"]["theory"]) == pytest.approx(1 - 0.1 / math.e**0.5, abs=1e-4)
    assert abs(float(rows["dnm", "0.1"]["measured"]) - float(rows["dnm", "0.1"]["theory"])) < 0.1
    again = tmp_path / "again"
    benchmark("study_tables").main([str(TESTS / "fixtures" / "study"), "--out", str(again), "--sweeps", "other"])
    assert {file.name for file in again.iterdir()} == {"other-sweep-lambda.csv", "other-rank-correlation.csv"}
    for file in again.iterdir():
        assert file.read_text() == (tmp_path / file.name.removeprefix("other-")).read_text()


def test_variants_are_compared_as_in_the_report(tmp_path):
    """A row for each set and variant, with means, ranks and differences; and the experiments of `reproduce`."""
    names = ("motion", "clip-score", "clip-first")

    def measure(job: Job) -> dict[str, float]:
        change = (job.cell.attn == "sa") * (1 + job.prompt / 10)
        return dict(zip(names, (0.03, 70 - change, 1 - change / 10), strict=True))

    prompts = [Prompt(f"thing {i}") for i in range(6)]
    cells = [replace(one, presets=("reproduce", *["motion"] * (not one.frozen))) for one in preset("motion")]
    made_up_study(tmp_path / "study", cells, measure, prompts, (0,))
    command = [str(tmp_path / "study"), "--compare", "even", "--out", str(tmp_path / "tables")]
    benchmark("study_tables").main([*command, "--pairs", "dnm-0.1_cfa:dnm-0.1_sa"])
    with pytest.raises(SystemExit):  # it has no sweep
        benchmark("study_tables").main([str(tmp_path / "study"), "--out", str(tmp_path / "tables"), "--sweeps", "x"])
    made = {"even.csv", "even-experiments.csv", "even-pairs.csv"}
    assert {file.name for file in (tmp_path / "tables").iterdir()} == made
    with (tmp_path / "tables" / "even-pairs.csv").open() as file:
        found = {row["metric"]: row for row in csv.DictReader(file)}
    assert [*found] == [*names]
    assert [*found["clip-score"].values()][4:7] == ["70.00", "68.75", "-1.250"]
    assert -1.5 <= float(found["clip-score"]["low"]) < -1.25 < float(found["clip-score"]["high"]) <= -1
    with pytest.raises(SystemExit):
        benchmark("study_tables").main([*command, "--pairs", "dnm-0.1_cfa:nothing"])
    with (tmp_path / "tables" / "even.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert rows[0]["variant"] == cells[0].label
    still = rows.pop()
    assert (still["variant"], still["motion"], still["clip-first"]) == ("a still clip", "0", "1.000")
    assert still["clip-score"] == "68.75"  # of the frozen frame, whose attention is sa
    for row, cell in zip(rows, [one for one in cells if not one.frozen], strict=True):
        is_sa = cell.attn == "sa"
        assert row["clip-score"] == ("68.75" if is_sa else "70.00")
        assert row["clip-first_rank"] == (str(len(cells) - 1) if is_sa else "1")
        change = row["clip-score_difference"]
        assert change == "" if cell is cells[0] else float(change) == pytest.approx(-1.25 * is_sa)
        if is_sa:
            assert -1.5 <= float(row["clip-score_low"]) < -1.25 < float(row["clip-score_high"]) <= -1
    with (tmp_path / "tables" / "even-experiments.csv").open() as file:
        shown = {(row["experiment"], row["variant"]): row for row in csv.DictReader(file)}
    assert shown["momentum → self-attention", "dnm λ=0.1 + sa"]["clip-score"] == "68.75"
    assert float(shown["momentum → self-attention", "dnm λ=0.1 + sa"]["clip-score_difference"]) == -1.25
    assert ("momentum → cross-frame attention", "dnm λ=0.1 + cfa") in shown
    assert not any(name == "per-frame DDIM" or "ControlNet" in name for name, _ in shown)
