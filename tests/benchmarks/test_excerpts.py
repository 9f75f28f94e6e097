"""The tables of the documents have the figures of the CSVs."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import benchmark

from zs2.errors import InputError

excerpts = benchmark("excerpts")
HEAD = "| name | value |\n|---|--:|\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a-b.csv").write_text("name,set,value\nx,open,-0.5\ny,open,0.25\nx,closed,1\nz|w,open,0\n")
    return tmp_path


def test_no_document_has_another_figure_than_its_csv(capsys):
    assert excerpts.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ("name, value", ["| x | −0.5 |", "| y | 0.25 |", "| x | 1 |", r"| z\|w | 0 |"]),
        ("name, +value; set = open; name = y | x", ["| y | +0.25 |", "| x | −0.5 |"]),
        ("name, value; set = $which", ["| x | 1 |"]),
    ],
)
def test_a_table_is_filled(folder: Path, what: str, rows: list[str]):
    page = f"<!-- $which = closed -->\n<!-- data/a-b.csv: {what} -->\n\n{HEAD}| old | 3 |\n\n{HEAD}| mine | 3 |\n"
    table = "".join(f"{row}\n" for row in rows)
    assert excerpts.filled(page, folder) == page.replace("| old | 3 |\n", table)


def test_three_columns_in_one_cell(folder: Path):
    (folder / "data" / "c.csv").write_text("name,mean,low,high\nx,2,-0.5,0.25\ny,1,,\n")
    page = f"<!-- data/c.csv: name, mean (+low … +high) -->\n\n{HEAD}| old | 3 |\n"
    assert excerpts.filled(page, folder).endswith(f"{HEAD}| x | 2 (−0.5 … +0.25) |\n| y | 1 |\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("name, value (low … high)", "a-b.csv has no column 'low', only name, set, value"),
        ("name, size", "a-b.csv has no column 'size', only name, set, value"),
        ("name, value; set = other", "a-b.csv: no row has set = other"),
        ("name, value; set = $which", "a-b.csv: no row has set = $which"),
        ("name, value; set", "a-b.csv: the condition 'set' has no value: expected COLUMN = VALUE"),
        ("name, value;", "a-b.csv has no column '', only name, set, value"),
    ],
)
def test_a_wrong_comment_is_answered(folder: Path, what: str, said: str):
    with pytest.raises(InputError, match=said.replace("$", r"\$")):
        excerpts.filled(f"<!-- data/a-b.csv: {what} -->\n\n{HEAD}", folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "a-b.csv has no rows: expected at least one"),
        ("name,set,value\n", "a-b.csv has no rows below its head: expected at least one"),
        ("name,set,value\nx,open\n", "a-b.csv, line 2: 2 cells, expected 3, as the head has"),
        ("\nname,set,value\n\n\nx,open,1\n\nx,open\n", "a-b.csv, line 7: 2 cells"),
        ("name,set,value\nx,open,1\nx,open,1,2\n", "a-b.csv, line 3: 4 cells, expected 3, as the head has"),
        (None, "a-b.csv is not there: expected a CSV of that name"),
    ],
)
def test_a_csv_without_a_table_is_answered(folder: Path, content: str | None, said: str):
    file = folder / "data" / "a-b.csv"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InputError, match=said):
        excerpts.filled(f"<!-- data/a-b.csv: name, value -->\n\n{HEAD}", folder)


@pytest.mark.parametrize(
    "page",
    [
        f"<!-- data/a-b.csv; name -->\n\n{HEAD}",
        f"<!-- data/a-b.csv: name --> {HEAD}",
        "<!-- data/a-b.csv: name -->\n\nA sentence.\n",
    ],
)
def test_a_comment_that_fills_no_table_is_answered(folder: Path, page: str):
    with pytest.raises(InputError, match=r"'<!-- data/a-b\.csv.*' fills no table"):
        excerpts.filled(f"<!-- data/a-b.csv: name, value -->\n\n{HEAD}\n{page}", folder)
