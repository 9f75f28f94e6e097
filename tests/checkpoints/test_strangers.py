"""Models of strangers: sizes in them are bounded before anything is built, and only regular files are opened."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import write_tiny
from safetensors.torch import save_file

from zs2 import ZS2
from zs2.checkpoints.hub import fetch
from zs2.checkpoints.lora import merge
from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.sampling.dpm_solver import DPMSolver


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a few kilobytes."""
    return write_tiny(tmp_path / "model", "sd")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(model: Path, words: str) -> None:
    """Assert that a model is refused in a line, at once."""
    begin = time.process_time()
    with pytest.raises(InputError, match=words) as caught:
        ZS2.from_pretrained(model, device="cpu")
    assert time.process_time() - begin < 1
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


SIZES = [
    ("unet/config.json", "layers_per_block", 10**9),
    ("unet/config.json", "layers_per_block", [1000, 1000]),
    ("unet/config.json", "transformer_layers_per_block", 1000),
    ("unet/config.json", "block_out_channels", [8] * 1000),
    ("unet/config.json", "block_out_channels", [10**9, 10**9]),
    ("unet/config.json", "cross_attention_dim", 10**9),
    ("unet/config.json", "sample_size", 10**9),
    ("unet/config.json", "layers_per_block", True),
    ("vae/config.json", "layers_per_block", 1000),
    ("vae/config.json", "latent_channels", 10**12),
    ("text_encoder/config.json", "num_hidden_layers", 1000),
    ("text_encoder/config.json", "num_hidden_layers", 10**9),
    ("text_encoder/config.json", "vocab_size", 10**9),
    ("text_encoder/config.json", "max_position_embeddings", 10**9),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    ("scheduler/scheduler_config.json", "trained_betas", [2.0] * 100),
    ("scheduler/scheduler_config.json", "trained_betas", [True] * 100),
    ("tokenizer/vocab.json", "cat</w>", 10**9),
    ("tokenizer/vocab.json", "cat</w>", True),
    ("tokenizer/tokenizer_config.json", "model_max_length", -1),
    ("model_index.json", "unet", None),
]


@pytest.mark.parametrize(("file", "key", "value"), SIZES, ids=[f"{file} {key} {str(v)[:12]}" for file, key, v in SIZES])
def test_a_size_is_bounded_before_anything_is_built(model, file, key, value):
    change(model / file, **{key: value})
    refused(model, "")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", ".safetensors", "x\0.safetensors"]
)
def test_a_shard_is_beside_its_index(model, name):
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    (model / "unet" / f"{file.name}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    refused(model, "expected safetensors files beside it")


@pytest.mark.parametrize(
    "file",
    [
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "model_index.json"),
        *("zs2.json", "tokenizer/added_tokens.json"),
    ],
)
@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(model, file, kind):
    (model / file).unlink(missing_ok=True)
    makers = {"a FIFO": os.mkfifo, "a device": lambda path: path.symlink_to("/dev/zero"), "a folder": Path.mkdir}
    makers[kind](model / file)
    refused(model, "")


def test_an_offset_of_steps_is_within_the_schedule():
    with pytest.raises(InputError, match="steps_offset is 1000000000: expected from 0 to 999"):
        ScheduleConfig.from_json({"steps_offset": 10**9})
    with pytest.raises(InputError, match="expected ddim"):
        DPMSolver(ScheduleConfig.from_json({"trained_betas": [0.0] * 10, "num_train_timesteps": 10}), 3)


def test_a_single_file_and_a_lora_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "a FIFO: expected a file")
    with pytest.raises(InputError):
        merge(Path("/dev/zero"), 1.0, None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("digits", ["7" * 5000, "٣", "9" * 18])
def test_numbers_in_the_names_of_tensors(tmp_path, digits):
    names = ("model.diffusion_model.input_blocks.{}.0.op.weight", "model.diffusion_model.output_blocks.{}.0.x.weight")
    names += (
        "first_stage_model.decoder.up.{}.block.0.x",
        "cond_stage_model.transformer.text_model.encoder.layers.{}.x",
    )
    tensors = {name.format(digits): torch.zeros(1) for name in names}
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "a tensor is missing")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        SimpleNamespace(siblings=None, sha="../../x"),
        SimpleNamespace(siblings=[SimpleNamespace(rfilename=3)], sha="0" * 40),
    ],
)
def test_an_answer_that_is_no_hub_s_is_one_line(tmp_path, monkeypatch, answer):
    """What huggingface_hub makes of an answer; the commit in it becomes part of a path."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: answer)
    with pytest.raises(InputError, match=r"^can't fetch owner/name from ") as caught:
        fetch("owner/name", "float32")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
