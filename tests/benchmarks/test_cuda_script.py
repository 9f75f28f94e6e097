"""benchmarks/cuda.py without a GPU: its stages on a CPU, small, and what it does when time ends."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import TESTS, benchmark

from zs2.models.temporal import momentum

ROOT = TESTS.parent


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return benchmark("cuda")


@pytest.mark.parametrize("name", ["Product", "HalfProduct"])
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.98])
def test_a_product_blends_like_the_recursion(cuda: ModuleType, name: str, mu: float) -> None:
    """In chunks; of a float32 state, both are float32."""
    from cuda_stages import blends

    h = torch.randn(2 * 6, 5, 8, generator=torch.Generator().manual_seed(0))
    whole, last = momentum("tma", mu=mu).blend(h, 6)
    other, state = getattr(blends, name)(mu), None
    pieces = []
    for chunk in h.unflatten(0, (2, 6)).split([1, 2, 3], dim=1):
        blended, state = other.blend(chunk.flatten(0, 1), chunk.shape[1], state)
        pieces.append(blended.unflatten(0, (2, -1)))
    assert torch.allclose(torch.cat(pieces, dim=1).flatten(0, 1), whole, atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)
    exact = blends.exact(h, 6, mu)
    assert torch.allclose(exact.float(), whole, atol=1e-5)


def test_stages_that_are_not_reached_are_named(
    cuda: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first five minutes answer whether it is right, and time Stable Diffusion 1.5; compiling comes last."""
    assert cuda.main(["--device", "cpu", "--tiny", "--budget", "5", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cuda.json").read_text())["stages"]
    assert {name: stage["ended"] for name, stage in found.items()} == dict.fromkeys(cuda.STAGES, "not reached")
    assert capsys.readouterr().out.splitlines()[0].startswith("this clone: ")
    names, most = list(cuda.STAGES), 300 - cuda.SLACK
    assert sum(cuda.STAGES[name].seconds for name in names[: names.index("processes")]) <= most
    assert names[-1] == "compiled"


def test_a_stage_that_is_cut_off_keeps_what_it_found_and_the_next_one_runs(
    cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place of a stage, a process that finds something and does not end; then one that fails."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, time\n"
        "name, _, file = sys.argv[sys.argv.index('--child') + 1:]\n"
        "checks = [{'name': 'a', 'value': 2, 'limit': 1, 'met': False}]\n"
        "open(file, 'w').write(json.dumps({'figures': [{'name': 'f', 'value': 3, 'unit': 's'}], 'checks': checks}))\n"
        "time.sleep(600) if name == 'card' else sys.exit('it failed')\n"
    )
    monkeypatch.setattr(cuda, "__file__", str(script))
    monkeypatch.setattr(cuda, "PATIENCE", -7)
    monkeypatch.setattr(cuda, "LEAST", 0)
    begun = time.monotonic()
    line = ["--device", "cpu", "--tiny", "--only", "card", "graph", "--out", str(tmp_path)]
    assert cuda.main(line) == 1
    assert time.monotonic() - begun < 60
    found = json.loads((tmp_path / "cuda.json").read_text())["stages"]
    assert [stage["ended"] for stage in found.values()] == ["cut off after 3 s", "status 1"]
    assert all(stage["figures"] == [{"name": "f", "value": 3, "unit": "s"}] for stage in found.values())
    assert "it failed" in found["graph"]["error"]
    out = capsys.readouterr().out
    assert out.count("NOT MET: a: 2, limit 1") == 2
    assert out.splitlines()[-2].split()[:3] == ["card", str(found["card"]["seconds"]), "0/1"]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_rehearsal_of_all_stages(cuda: ModuleType, device: str, tmp_path: Path) -> None:
    """On a CPU, and on the simulated device, where a tensor that a stage leaves on the host raises."""
    words = [sys.executable, str(ROOT / "benchmarks" / "cuda.py"), "--device", device, "--tiny", "--out", str(tmp_path)]
    if device == "sim":  # new processes have no such device, and it can't be compiled for
        words += ["--only", *(name for name in cuda.STAGES if name not in ("start", "processes", "compiled"))]
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "cuda.json").read_text())["stages"]
    assert {stage["ended"] for stage in found.values()} == {"well"}
    assert all(stage["figures"] or stage["checks"] for stage in found.values())
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun < 240  # seconds of a processor
