"""`zs2 metrics --features` against torchmetrics (tests/fixtures/make_similarity.py), and `--vbench`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Fixture
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from zs2.evaluation.features import frechet, kernel
from zs2.metrics import main
from zs2.video.clip import Clip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_distances_are_torchmetrics(tmp_path: Path, capsys):
    fixture = Fixture("similarity")
    tensors = {name: fixture[f"features/{name}"].double() / 50 for name in ("reference", "clips")}
    save_file(tensors, tmp_path / "f.safetensors")
    status, out, err = run(capsys, "--features", tmp_path / "f.safetensors", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == pytest.approx(fixture.config["distances"], rel=1e-4)
    status, out, _ = run(capsys, "--features", tmp_path / "f.safetensors")
    assert [line.split()[0] for line in out.splitlines()] == ["frechet-distance", "kernel-distance"]


@given(st.integers(0, 999), st.integers(1, 5))
def test_what_holds_of_all_features(seed, d):
    generator = np.random.default_rng(seed)
    one, other = generator.normal(size=(9, d)), 2 + generator.normal(size=(13, d))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=1e-6)
    assert kernel(one, other) == pytest.approx(kernel(other, one), rel=1e-9)
    assert frechet(one, one + 3) == pytest.approx(9 * d, rel=1e-6)
    assert frechet(one, other) > 0
    by_hand = sum(
        (x @ y / d + 1) ** 3 / (len(a) * (len(a) - 1))
        for a in (one, other)
        for i, x in enumerate(a)
        for j, y in enumerate(a)
        if i != j
    ) - 2 * np.mean([(x @ y / d + 1) ** 3 for x in one for y in other])
    assert kernel(one, other) == pytest.approx(by_hand, rel=1e-6, abs=1e-9)


def test_few_features_warn(tmp_path: Path, capsys):
    save_file({"reference": torch.eye(4), "clips": torch.rand(5, 4)}, tmp_path / "f.safetensors")
    assert "4 and 5 features of 4 numbers" in run(capsys, "--features", tmp_path / "f.safetensors")[2]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"reference": torch.zeros(3, 2)}, "expected reference (n, d) and clips (m, d)"),
        ({"reference": torch.zeros(3, 2), "clips": torch.zeros(1, 2)}, "n and m at least 2"),
        ({"reference": torch.zeros(3, 2), "clips": torch.zeros(3, 2, dtype=torch.int32)}, "floats"),
        ({"reference": torch.zeros(3, 2), "clips": torch.zeros(3, 4)}, "with the same d"),
        ({"reference": torch.zeros(3, 2), "clips": torch.full((3, 2), torch.nan)}, "NaN or infinite"),
        (None, "no such .safetensors file"),
    ],
)
def test_other_features_are_one_line(tensors, words, tmp_path: Path, capsys):
    if tensors is not None:
        save_file(tensors, tmp_path / "f.safetensors")
    status, out, err = run(capsys, "--features", tmp_path / "f.safetensors")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_clips_are_laid_out_for_vbench(tmp_path: Path, capsys):
    pytest.importorskip("av")
    frames = np.full((3, 16, 16, 3), 99, np.uint8)
    frames[1:] += 20
    for name, prompt in (("a", "red apple"), ("b", ["star", "star"])):
        Clip(frames, settings={"prompt": prompt}).save(tmp_path / f"{name}.webp")
    Clip(frames, settings={"prompt": ["star", "sun"]}).save(tmp_path / "c.webp")
    folder = tmp_path / "for vbench"
    status, out, _ = run(capsys, tmp_path / "a.webp", tmp_path / "b.webp", "--vbench", folder)
    assert status == 0
    assert json.loads((folder / "prompts.json").read_text()) == {"0000.mp4": "red apple", "0001.mp4": "star"}
    assert sorted(file.name for file in (folder / "videos").iterdir()) == ["0000.mp4", "0001.mp4"]
    command = shlex.split(out.splitlines()[-1].removeprefix("next: "))  # as a shell reads it
    assert command[:2] == ["vbench", "evaluate"]
    found = dict(zip(command[2::2], command[3::2], strict=True))
    assert found["--videos_path"] == str(folder / "videos")
    assert found["--prompt_file"] == str(folder / "prompts.json")
    for arguments, words in (
        ((tmp_path / "a.webp", "--vbench", folder), "expected a new folder"),
        ((tmp_path / "c.webp", "--vbench", tmp_path / "new"), "several prompts"),
        ((tmp_path / "a.webp", "--vbench", tmp_path / "new", "--features", "f"), "give one of them alone"),
        ((tmp_path / "a.webp", "--features", "f"), "--features with CLIP"),
        (("--features", "f", "--lpips", "l"), "--features with --lpips"),
        ((), "no CLIP to measure"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert words in err
    assert not (tmp_path / "new").exists()
