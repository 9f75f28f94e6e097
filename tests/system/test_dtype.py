"""`--dtype auto`: what it chooses, by the device and the file; that it is said, recorded and replayed.

Where a clip needs a device, it is simulated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, LATENTS
from safetensors.torch import load_file, save_file
from simulated_device import AVAILABLE, simulated_device

from zs2 import ZS2, Clip
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.tensor_files import stored_dtype
from zs2.errors import InputError
from zs2.sample import main
from zs2.system.devices import auto_dtype, choose_dtype

simulated = pytest.mark.skipif(not AVAILABLE, reason=f"torch {torch.__version__} can't take a device from Python")
NOTE = "zs2: computing in float16, as --dtype auto does on sim; --dtype float32 is slower and more exact"


def converted(folder: Path, part: str, dtype: torch.dtype, **config: Any) -> Path:
    """Store a part of a checkpoint in another dtype, with other entries in its configuration."""
    (file,) = (folder / part).glob("*.safetensors")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    file.unlink()
    save_file(tensors, file)
    stated = json.loads((folder / part / "config.json").read_text())
    (folder / part / "config.json").write_text(json.dumps(stated | config))
    return folder


@pytest.mark.parametrize(
    ("device", "stored", "dtype"),
    [
        ("cpu", torch.float16, torch.float32),
        ("cpu", torch.bfloat16, torch.float32),
        ("cuda", None, torch.float16),
        ("cuda:1", torch.float32, torch.float16),
        ("cuda", torch.bfloat16, torch.bfloat16),
        ("mps", torch.float16, torch.float16),
        ("mps", torch.bfloat16, torch.bfloat16),
    ],
)
def test_auto_is_half_precision_on_a_gpu(device: str, stored: torch.dtype | None, dtype: torch.dtype) -> None:
    assert auto_dtype(torch.device(device), stored) == dtype


def test_a_name_or_a_dtype() -> None:
    assert choose_dtype(None) is choose_dtype("auto") is None
    for name in ("float32", "bfloat16", "float16"):
        assert choose_dtype(name) == choose_dtype(getattr(torch, name)) == getattr(torch, name)
    with pytest.raises(InputError, match="unknown dtype 'half': expected one of auto, float32, bfloat16, float16"):
        choose_dtype("half")


def test_the_dtype_of_a_file_is_that_of_most_of_its_numbers() -> None:
    norm, weight = torch.zeros(4), torch.zeros(4, 4, dtype=torch.bfloat16)
    assert stored_dtype({"norm": norm, "bias": norm, "weight": weight}) == torch.bfloat16
    assert stored_dtype({"norm": norm}) == torch.float32


@pytest.mark.parametrize(("given", "dtype"), [({}, torch.float32), ({"force_upcast": False}, torch.float16)])
def test_the_vae_is_float32_for_float16_unless_its_configuration_says_that_it_does_not_overflow(
    narrow: Path, tmp_path: Path, given: dict[str, Any], dtype: torch.dtype
) -> None:
    """A checkpoint that says nothing is like one that says `force_upcast: true`, as in diffusers' configuration."""
    folder = shutil.copytree(narrow, tmp_path / "model")  # whose VAE does not overflow
    checkpoint = Checkpoint(converted(folder, "vae", torch.float32, **given), torch.float16)
    vae = checkpoint.vae()
    assert {weight.dtype for weight in vae.parameters()} == {vae.dtype} == {dtype}
    pixels = vae.decode(torch.zeros(1, *LATENTS))
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()


@simulated
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.long
def test_on_a_device_the_file_decides_which_half(narrow: Path, tmp_path: Path, stored: str) -> None:
    folder = shutil.copytree(narrow, tmp_path / "model")
    converted(folder, "unet", getattr(torch, stored))
    with simulated_device():
        model = ZS2.from_pretrained(folder, device="sim")
        settings = model("rose", frames=2, steps=1, chunk=1).settings
        plain = ZS2.from_pretrained(folder, device="sim", dtype="float32")
    assert settings["dtype"] == stored
    networks = (model.unet, model.text_encoder, model.vae)
    vae = "float32" if stored == "float16" else stored
    assert [str(next(one.parameters()).dtype) for one in networks] == [
        f"torch.{name}" for name in (stored, stored, vae)
    ]
    assert plain.dtype == torch.float32
    assert ZS2.from_pretrained(folder, device="cpu", dtype="auto").dtype == torch.float32


@simulated
@pytest.mark.long
def test_the_command_says_what_auto_chose_and_a_replay_has_it(
    narrow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, again = tmp_path / "clip.webp", tmp_path / "again.webp"
    common = ["--model", str(narrow), "--device", "sim", "--no-sheet"]
    with simulated_device():
        assert main(["rose", *common, "--frames", "2", "--steps", "1", "--out", str(clip)]) == 0
        assert NOTE in capsys.readouterr().err.splitlines()
        assert main(["--replay", str(clip), *common, "--out", str(again)]) == 0
    assert "auto" not in capsys.readouterr().err
    assert Clip.open(again).settings == Clip.open(clip).settings
    assert Clip.open(again).settings["dtype"] == "float16"
    assert again.read_bytes() == clip.read_bytes()


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float32", r"try a smaller guidance than 1e\+38"),
        ("bfloat16", r"try float32, or a smaller guidance than 1e\+38"),
        ("float16", r"try bfloat16 or float32, or a smaller guidance than 1e\+38"),
    ],
)
def test_where_numbers_overflow_the_next_dtype_is_named(narrow: Path, dtype: str, advice: str) -> None:
    model = ZS2.from_pretrained(narrow, device="cpu", dtype=dtype)
    with pytest.raises(FloatingPointError, match=rf"in torch.{dtype}: {advice}$"):
        model.latents("rose", frames=1, steps=2, guidance=1e38)
    vae = f"in {model.vae.dtype}: try {'float32, or ' if dtype == 'bfloat16' else ''}latents of this model"
    with pytest.raises(FloatingPointError, match=f"{vae}$"):
        model.decode(torch.full((1, *LATENTS), float("nan")))


def test_the_default_checkpoint_says_nothing_of_it() -> None:
    """So that its clips in float16 are as they were."""
    assert Checkpoint(CHECKPOINT, torch.float16).vae().dtype == torch.float32
