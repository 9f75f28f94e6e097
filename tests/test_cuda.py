"""On a GPU of NVIDIA (`make test-cuda`): the stages of benchmarks/cuda.py that say whether zs2 is right there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import benchmark

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of NVIDIA here, or a torch without CUDA"),
]


@pytest.fixture(autouse=True)
def the_same_precision_after() -> Iterator[None]:
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@pytest.mark.parametrize("name", ["parity", "clips", "waits", "seeds", "memory", "precision", "processes", "graph"])
def test_every_check_of_a_stage_is_met(name: str, tmp_path: Path) -> None:
    cuda, file = benchmark("cuda"), tmp_path / "stage.json"
    path = [*sys.path]
    cuda.main(["--device", "cuda", "--child", name, "600", str(file)])
    sys.path[:] = path
    found = {"ended": "well"} | cuda.json.loads(file.read_text())
    assert found["checks"]
    assert cuda.unmet(found) == []
