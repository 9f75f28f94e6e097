"""The files of a report: the page, and its tables as Markdown and CSV in the same folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zs2.reporting.markdown import TITLE, markdown
from zs2.reporting.page import page
from zs2.reporting.spreadsheet import COLUMNS, DIFFERENCES, table_of_clips, table_of_differences
from zs2.study.results import Results


@dataclass(frozen=True)
class Report:
    """The report of the study in a folder."""

    results: Results
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Report:
        """Read the study. Raises: InputError if there is none."""
        return cls(Results.read(folder), folder)

    @staticmethod
    def marks(out: Path) -> dict[Path, tuple[str, ...]]:
        """The files of a report whose page is `out`, each with the words that tell it from other files."""
        columns = ",".join(f'"{name}"' for name in DIFFERENCES)
        tables = {out.with_name("results.csv"): COLUMNS, out.with_name("tables.csv"): (columns,)}
        return {**tables, out.with_suffix(".md"): (TITLE,), out: (TITLE,)}

    def files(self, out: Path) -> dict[Path, str]:
        """The texts of these files."""
        results = self.results
        tables = table_of_clips(results), table_of_differences(results)
        texts = (*tables, markdown(results), page(results, self.folder))
        return dict(zip(self.marks(out), texts, strict=True))
