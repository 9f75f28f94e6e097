"""The examples of docs/architecture.md run as they stand: new kinds from outside the package, through all of zs2."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from helpers import CHECKPOINT, TESTS
from PIL import Image

from zs2 import Clip

pytestmark = pytest.mark.long  # its studies and processes take seconds

ROOT = TESTS.parent
SIZE = ["--steps", "4", "--size", "32x32", "--guidance", "3", "--device", "cpu"]
KINDS = ["--attn", "first-and-own", "--noise", "ring", "--sampler", "two-steps"]


def examples() -> str:
    """The Python of the page's section on extension."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## How to extend it")[2]
    return "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples as a module, and a command that imports it first."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "my_kinds.py").write_text(examples(), encoding="utf-8")
    for command in ("sample", "ablate", "report"):
        code = f"import sys, my_kinds\nfrom zs2.{command} import main\nsys.exit(main())\n"
        (folder / f"my_{command}.py").write_text(code)
    return folder


def run(here: Path, *words: str, processes: int = 1) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(ROOT), str(here), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = Forked([*(launcher if processes > 1 else []), *words], here, env)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out + err


@pytest.fixture(scope="module")
def sampled(here: Path) -> Clip:
    """A clip of seven frames by all the new kinds; beside it the same in chunks, replayed, and as a stream."""
    clip = ["rose", *SIZE, *KINDS, "--frames", "7"]
    lines = [
        [*clip, "--chunk", "7", "--out", "whole.webp"],
        [*clip, "--chunk", "2", "--out", "chunks.webp"],
        ["--replay", "whole.webp.json", "--out", "again.webp"],
        [*clip, "--chunk", "3", "--stream", "--out", "stream"],
    ]
    run(here, "-c", f"import my_kinds\nfrom zs2.sample import main\nfor line in {lines}:\n    assert main(line) == 0")
    return Clip.open(here / "whole.webp")


def test_a_clip_records_its_kinds(sampled: Clip) -> None:
    expected = {"attn": "first-and-own", "noise": "ring", "sampler": "two-steps", "mu": None, "lam": None}
    assert {name: sampled.settings[name] for name in expected} == expected


def test_the_kinds_are_not_there_for_others() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zs2.sample", "rose", *KINDS], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2
    assert "expected one of" in done.stderr


def near(frames: np.ndarray, other: np.ndarray) -> None:
    """Equal but for rounding: a level in a pixel."""
    assert frames.shape == other.shape
    assert np.abs(frames.astype(int) - other).max() <= 1


def test_chunks_replays_and_streams_are_the_same_clip(here: Path, sampled: Clip) -> None:
    near(Clip.open(here / "chunks.webp").frames, sampled.frames)
    assert (here / "again.webp").read_bytes() == (here / "whole.webp").read_bytes()
    near(np.stack([np.asarray(Image.open(file)) for file in sorted((here / "stream").iterdir())]), sampled.frames)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.long
def test_two_processes_make_the_same_clip(here: Path, sampled: Clip) -> None:
    line = ["rose", *SIZE, *KINDS, "--frames", "7", "--chunk", "2", "--out", "two.webp"]
    run(here, "my_sample.py", *line, processes=2)
    near(Clip.open(here / "two.webp").frames, sampled.frames)


@pytest.mark.long
def test_a_study_measures_and_reports_them(here: Path) -> None:
    (here / "prompts.txt").write_text("rose\nrocket\n")
    line = [
        "--lam",
        "0.1",
        "--noise",
        "ring",
        "dnm",
        "--attn",
        "first-and-own",
        "tma",
        "--sampler",
        "two-steps",
        "--steps",
        "2",
    ]
    line += ["--frames", "3", "--seeds", "0", "--prompts", "prompts.txt", "--size", "32x32", "--out", "study"]
    code = f"assert ablate({[*line, '--device', 'cpu']}) == report(['study']) == 0"
    run(
        here,
        "-c",
        f"import my_kinds\nfrom zs2.ablate import main as ablate\nfrom zs2.report import main as report\n{code}",
    )
    cells = {"ring_first-and-own", "ring_tma-0.98", "dnm-0.1_first-and-own", "dnm-0.1_tma-0.98"}
    assert {cell["id"] for cell in json.loads((here / "study" / "study.json").read_text())["cells"]} == cells
    for cell in cells:
        measures = json.loads((here / "study" / "measures" / f"{cell}_p00_s0.json").read_text())
        frames = Clip.open(here / "study" / "clips" / f"{cell}_p00_s0.webp").frames
        assert measures["metrics"]["brightness"] == pytest.approx(frames.mean() / 255, rel=1e-6)
    head, *rows = csv.reader((here / "study" / "results.csv").read_text().splitlines())
    assert "brightness" in head
    assert len(rows) == 2 * len(cells)
    assert "brightness" in (here / "study" / "report.md").read_text()


def test_the_new_noise_is_what_it_says(here: Path) -> None:
    """In a process of its own, since the tables are one for all tests."""
    code = """if True:
        import itertools, math, sys, torch, my_kinds
        from zs2 import ZS2, Request
        model = ZS2.from_pretrained(sys.argv[1], device="cpu", noise="ring")
        noise = model.plan(Request("rose", frames=5, seed=3)).initial_noise().double()
        assert torch.equal(noise[0].float(), torch.randn(noise[0].shape, generator=torch.Generator().manual_seed(3)))
        for i, j in itertools.combinations(range(5), 2):
            expected, n = math.cos(2 * math.pi * (i - j) / 5), noise[0].numel()
            assert abs((noise[i] * noise[j]).mean() - expected) < 5 * math.sqrt((1 + expected ** 2) / n)
        try:
            next(model.stream("rose"))
        except ValueError as error:
            assert "noise 'ring' needs the number of frames in advance" in str(error), error
        else:
            raise AssertionError("a stream without end was not refused")
    """
    run(here, "-c", code, str(CHECKPOINT))
