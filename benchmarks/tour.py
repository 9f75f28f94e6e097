"""Run docs/tour.ipynb, and store it with its outputs, without progress bars.

    python benchmarks/tour.py      needs `pip install -e '.[notebook]'`

A cell that fails, or warns, ends this, and the notebook stays as it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

TOUR = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


def executed(notebook: Any) -> Any:
    """Run the cells of a notebook in a kernel of its own, in docs/. Returns: the notebook with its outputs."""
    from nbclient import NotebookClient

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(TOUR.parent)}}).execute()


def tidied(notebook: Any) -> Any:
    """Drop progress bars, and what tells of the machine and the time.

    Raises: ValueError for a cell that wrote to stderr, such as a warning.
    """
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            said = [output.text for output in cell.outputs if output.get("name") == "stderr"]
            if said:
                raise ValueError(f"a cell wrote to stderr: {said[0].strip()}\n{cell.source}")
            cell.outputs = [output for output in cell.outputs if "\r" not in output.get("text", "")]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    import nbformat

    notebook = tidied(executed(nbformat.read(TOUR, 4)))
    nbformat.write(notebook, TOUR)
    print(f"{TOUR}: {TOUR.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
