"""docs/tour.ipynb runs as it stands, in a kernel of its own, and shows what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import SIDE, TESTS, benchmark

TOUR = TESTS.parent / "docs" / "tour.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_tour_runs() -> None:
    pytest.importorskip("nbclient", reason="pip install 'zs2[notebook]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = benchmark("tour").executed(nbformat.read(TOUR, 4))
    cells = code_cells(notebook)
    first = next(cell for cell in cells if cell.source.startswith("clip = "))
    streams = [output for output in first.outputs if output.output_type == "stream"]
    assert {output.name for output in streams} == {"stdout"}  # a bar, and no warning
    text = "".join(output.text for output in streams)
    assert "\rsampling █" in text
    assert "sampling 25/25 in " in text
    assert first.outputs[-1].data["text/plain"] == f"Clip(8 frames of {SIDE}x{SIDE} at 8 fps)"
    assert "image/png" in first.outputs[-1].data
    plots = [cell for cell in cells if "plt." in cell.source and "import" not in cell.source.split("\n")[0]]
    assert len(plots) >= 2
    for cell in plots:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)


def test_progress_bars_are_not_stored_and_warnings_are_no_tour() -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'zs2[notebook]'")
    tour, notebook = benchmark("tour"), nbformat.read(TOUR, 4)
    stored = json.dumps(notebook)
    cell = code_cells(notebook)[1]
    cell.metadata = {"execution": {"iopub.execute_input": "2026-01-01T00:00:00"}}
    cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text="\rsampling 25/25 in 3.0 s\n"))
    assert json.dumps(tour.tidied(notebook)) == stored
    cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a warning\n"))
    with pytest.raises(ValueError, match="a cell wrote to stderr: a warning\nmodel = "):
        tour.tidied(notebook)


def test_the_tour_is_stored_with_its_pictures_and_without_traces_of_a_machine() -> None:
    text = TOUR.read_text(encoding="utf-8")
    notebook = json.loads(text)
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert not any(
        output["output_type"] in ("error", "stream") and output.get("name") != "stdout" for output in outputs
    )
    assert not any(word in text for word in ("/tmp/", "/home/", "/root/", "Traceback"))
    assert len(text) < 600_000
