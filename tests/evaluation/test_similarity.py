"""MS-SSIM and LPIPS against pytorch-msssim and the lpips package (tests/fixtures/make_similarity.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Fixture
from safetensors.torch import save_file
from torch import Tensor

from zs2.errors import InputError
from zs2.evaluation.lpips import LEAST, LPIPS, lpips
from zs2.evaluation.structure import ms_ssim

CLIPS = ("97x97", "101x130")
fixture = cache(lambda: Fixture("similarity"))


def weights() -> dict[str, Tensor]:
    return {name: fixture()[f"weights/{name}"] * scale for name, scale in fixture().config["scale"].items()}


@pytest.mark.parametrize("clip", CLIPS)
def test_they_are_those_of_the_public_implementations(clip):
    frames, want = fixture()[clip].numpy(), fixture().config["metrics"][clip]
    assert ms_ssim(frames) == pytest.approx(want["ms-ssim"], abs=1e-5)
    assert lpips(frames, LPIPS(weights())) == pytest.approx(want["lpips"], rel=1e-5)


def test_a_still_clip_has_no_distance_and_frames_can_be_too_small():
    frames, network = fixture()[CLIPS[0]].numpy(), LPIPS(weights())
    assert lpips(frames[[0, 0]], network) == 0
    assert ms_ssim(frames[[0, 0]]) == pytest.approx(1, abs=1e-12)
    assert [ms_ssim(frames[:, :96]), lpips(frames[:, : LEAST - 1], network)] == [None, None]
    assert lpips(frames[:, :LEAST, :LEAST], network) > 0
    assert [ms_ssim(frames[:1]), lpips(frames[:1], network)] == [None, None]
    assert ms_ssim(np.stack([frames[0], 255 - frames[0]])) == 0  # a negative structure counts as none


def test_weights_are_read_from_a_file_under_both_names(tmp_path: Path):
    """As `lpips.LPIPS(net="alex")` names them: save_model leaves out one of two names of a tensor."""
    frames, file = fixture()[CLIPS[0]].numpy(), tmp_path / "alex.safetensors"
    other = {
        name.replace("lin", "lins.") if name.startswith("lin") else name: value for name, value in weights().items()
    }
    values = set()
    for tensors in (weights(), other):
        save_file(tensors, file)
        network = LPIPS.read(file)
        values.add(lpips(frames, network))
        assert network.digest is not None
    assert len(values) == 1


@pytest.mark.parametrize("change", ["missing", "shape", "name", "pickle"])
def test_other_files_are_refused(tmp_path: Path, change):
    file, tensors = tmp_path / "alex.safetensors", weights()
    if change == "missing":
        del tensors["net.slice3.6.bias"]
    elif change == "shape":
        tensors["net.slice1.0.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(tensors, file)
    expected = r"lpips\.LPIPS\(net='alex'\)"
    with pytest.raises(InputError, match=expected):
        LPIPS.read(
            file
            if change in ("missing", "shape")
            else tmp_path / {"name": "no.safetensors", "pickle": "alex.pth"}[change]
        )
