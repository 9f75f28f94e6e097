"""A study that zs2 0.1.0 wrote is read, goes on and is reported as it was: tests/fixtures/study, with its README."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from helpers import TESTS

from zs2.checkpoints.own_settings import OwnSettings
from zs2.reporting import tables
from zs2.reporting.spreadsheet import table_of_clips
from zs2.sampling.request import FIRST, OPTIONS
from zs2.study.cells import grid, merge, preset
from zs2.study.options import parser
from zs2.study.planning import plan
from zs2.study.results import Results
from zs2.study.study import Study

FOLDER = TESTS / "fixtures" / "study"
GRID = (["mixed", "progressive", "dnm-search"], ["tma-two-tap", "sa"], [0.1], [0.98], [1.0, 3.0])
VOTES = "39fe176bb0cdcb72"  # in the names of the files of votes on it


def test_its_cells_are_those_of_today():
    cells = [one for name in ("paper", "lambda", "mu") for one in preset(name)]
    assert Study.read(FOLDER).cells == tuple(merge([*cells, *grid(*GRID)]))


def test_it_goes_on_with_its_own_settings_and_cells():
    study = Study.read(FOLDER)
    own = OwnSettings("emoji64", steps=25, guidance=5.0, lam=0.15)  # its model's, which is no longer in the tree
    for line in ("", "--preset paper lambda mu", "--noise dnm --attn cfa tma --lam 0.1", "--frames 2 --steps 2"):
        asked = plan({"out": "s"} | vars(parser().parse_args(line.split())), study, own)
        assert study.with_more(replace(asked, threads=None)) == study


def test_it_is_written_as_it_was(tmp_path):
    Study.read(FOLDER).write(tmp_path)
    assert Study.read(tmp_path) == Study.read(FOLDER)


def check_tables(results: Results) -> None:
    """Each cell of the tables that 0.1.0 printed has a mean and, below it, a difference: today's are the same."""
    stored = [line[2:-2].split(" | ") for line in (FOLDER / "tables.txt").read_text(encoding="utf-8").splitlines()]
    heads = [i for i, row in enumerate(stored) if row[0] == "variant"]
    assert len(heads) == len(results.sets)
    for name, start in zip(results.sets, heads, strict=True):
        rows = results.tables[name]
        assert stored[start][2:] == [head.replace("\u00a0", " ") for head in tables.heads(results)]
        for row, (label, clips, *entries) in zip(rows, stored[start + 2 : start + 2 + len(rows)], strict=True):
            assert label.split("<br>")[0] == row.cell.label
            assert clips == str(row.clips)
            for entry, text in zip(row.entries, entries, strict=True):
                mean, *difference = text.split("<br>")
                assert mean == tables.mean_and_mark(entry)[0]
                if difference:
                    change, *ends = tables.mean_and_difference(entry)[1:]
                    assert (difference, ends) == ([change, "one prompt: no interval"], ["", ""])
    noises = [row for row in stored if len(row) == 3]
    assert noises == [tables.noise_heads(results), ["---", "--:", "--:"], *tables.noise_rows(results)]


def test_it_has_the_same_numbers_and_votes():
    results = Results.read(FOLDER)
    assert results.digest == VOTES
    check_tables(results)
    stored, now = (FOLDER / "results.csv").read_text(encoding="utf-8"), table_of_clips(results)
    unstated = {name: option.unstated for name, option in OPTIONS.items() if name not in FIRST}
    later = {name: "" if value is None else str(value) for name, value in unstated.items()}
    cells = ("mu_end", "lam_high", "cutoff", "motion_pixels")
    later |= dict.fromkeys((*cells, "ms-ssim", "lpips", "temporal-flicker", "motion-smoothness"), "")
    want = [row | later for row in csv.DictReader(io.StringIO(stored))]
    assert list(csv.DictReader(io.StringIO(now))) == want


def test_its_measures_lack_the_metrics_that_came_later():
    results = Results.read(FOLDER)
    assert results.incomplete == results.measures.keys()
    assert "ms-ssim" not in results.metrics
