"""`python -m zs2.report DIR`: what a study found, as a web page, as Markdown, and as a table of clips. No torch here.

DIR/report.html   everything, with the clips playing side by side and a blind comparison; opens from disk, no network
DIR/report.md     the sentences, the tables and the sweeps
DIR/results.csv   a row for each clip: its settings and its metrics
DIR/tables.csv    a row for each variant, metric and set of prompts: mean, paired difference, interval
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zs2.cli.command import command, parser, program
from zs2.errors import InputError
from zs2.reporting.files import Report
from zs2.system.atomic import write_text
from zs2.system.own_files import check_own
from zs2.system.terminal import show


def run(options: dict[str, Any]) -> None:
    """Write the report."""
    folder = Path(options["folder"])
    report = Report.of(folder)
    out = Path(options.get("out", folder / "report.html"))
    if out.suffix != ".html":
        raise InputError(f"--out {str(out)!r}: expected a name that ends in .html")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {str(out)!r} can't be written: expected a file in a folder that exists")
    check_own(report.marks(out).items(), overwrite="overwrite" in options)
    for file, text in report.files(out).items():
        write_text(file, text)
        show(str(file), most=None)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0; 1 if writing failed; 2 for wrong input; 130 for Ctrl-C."""
    p = parser(
        "report",
        "Make the report of an ablation study: one web page that opens from disk. It begins with what was found; then\n"
        "come tables, curves, the clips side by side and a blind comparison. It also writes report.md, results.csv (a\n"
        "row a clip) and tables.csv (a row a variant and metric).",
        """examples:
  %(prog)s out/study
  %(prog)s out/study --out supplement.html""",
    )
    p.add_argument("folder", metavar="DIR", help=f"a study that {program('ablate')} made, complete or not")
    p.add_argument("--out", metavar="FILE", help="the page (default DIR/report.html); the others go to its folder")
    p.add_argument("--overwrite", action="store_true", help="also replace files of these names that are no report")
    return command(p, run, argv)


if __name__ == "__main__":
    sys.exit(main())
