"""A study that zs2 0.1.0 wrote is read, goes on and is reported as it was: tests/fixtures/study, with its README."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

from helpers import TESTS

from zs2.reporting.markdown import markdown
from zs2.reporting.spreadsheet import table_of_clips
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
    for line in ("", "--preset paper lambda mu", "--noise dnm --attn cfa tma --lam 0.1", "--frames 2 --steps 2"):
        asked = plan({"out": "s"} | vars(parser().parse_args(line.split())), study)
        assert study.with_more(replace(asked, threads=None)) == study


def test_it_is_written_as_it_was(tmp_path):
    Study.read(FOLDER).write(tmp_path)
    assert Study.read(tmp_path) == Study.read(FOLDER)


def test_it_has_the_same_numbers_and_votes():
    results = Results.read(FOLDER)
    assert results.digest == VOTES
    heads = re.compile(r" \(still: [^)]*\)")  # which came later
    tables = [heads.sub("", line) for line in markdown(results).splitlines() if line.startswith("|")]
    assert tables == (FOLDER / "tables.txt").read_text(encoding="utf-8").splitlines()
    stored, now = (FOLDER / "results.csv").read_text(encoding="utf-8"), table_of_clips(results)
    later = {
        "mu_end": "",
        **dict.fromkeys(("ms-ssim", "lpips", "temporal-flicker", "motion-smoothness"), ""),
        "clip_skip": "0",
        "spacing": "",
        "zero_snr": "",
        "final_alpha": "",
        "prompt_syntax": "",
    }  # columns of options that came later
    want = [row | later for row in csv.DictReader(io.StringIO(stored))]
    assert list(csv.DictReader(io.StringIO(now))) == want


def test_its_measures_lack_the_metrics_that_came_later():
    results = Results.read(FOLDER)
    assert results.incomplete == results.measures.keys()
    assert "ms-ssim" not in results.metrics
