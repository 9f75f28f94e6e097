"""The JSONs of ten published checkpoints: nine are built at full size, and the inpainting one is refused by name.

They are copies from public model repositories, in fixtures/published. The names and shapes of all their weights were
computed by diffusers and transformers: a file that fits those modules fits these.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fixtures import token_files
from helpers import TESTS
from torch import nn

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import ScheduleConfig, UNetConfig, VAEConfig
from zs2.models.image_model import check_parts
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.sample import main
from zs2.system.modules import without_weights

PUBLISHED = TESTS / "fixtures" / "published"
ENTRIES = {entry["model"]: entry for entry in json.loads((TESTS / "fixtures" / "published.json").read_text())}
INPAINTING = "sd-1.5-inpainting"
WORKING = [name for name in ENTRIES if name != INPAINTING]
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def read(model: str, file: str) -> dict[str, Any]:
    return json.loads((PUBLISHED / model / file).read_text())


@cache
def built(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """A module at full size, without memory."""
    with without_weights():
        return kind(*arguments)


def parts(model: str) -> dict[str, Any]:
    """The networks of a model, from its JSONs, in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: dict[str, Any] = {
            "unet": built(UNet, UNetConfig.from_json(read(model, "unet/config.json"))),
            "vae": built(VAE, VAEConfig.from_json(read(model, "vae/config.json"))),
        }
        for tower in sorted(path.name for path in (PUBLISHED / model).glob("text_encoder*")):
            config = TextConfig.from_json(read(model, f"{tower}/config.json"), tower)
            found[tower] = built(TextEncoder, config, tower == "text_encoder_2")
    return found


def together(model: str, found: dict[str, Any]) -> None:
    """Raise InputError if the parts of a model do not belong together."""
    towers = [(part, Tokenizer.of_clip()) for name, part in found.items() if name.startswith("text")]
    check_parts(found["unet"], found["vae"], PromptEncoder(towers))


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    yield
    built.cache_clear()


@pytest.mark.parametrize("model", ENTRIES)
def test_the_weights_are_those_of_diffusers_and_transformers(model):
    found = parts(model)
    assert found.keys() == ENTRIES[model]["weights"].keys()
    for part, want in ENTRIES[model]["weights"].items():
        lines = sorted(f"{name} {list(tensor.shape)}\n" for name, tensor in found[part].state_dict().items())
        assert len(lines) == want["count"]
        assert hashlib.sha256("".join(lines).encode()).hexdigest() == want["sha256"]


@pytest.mark.parametrize("model", WORKING)
def test_nine_models_have_parts_that_belong_together(model):
    together(model, parts(model))
    schedule = ScheduleConfig.from_json(read(model, "scheduler/scheduler_config.json"))
    assert schedule.prediction_type == ("v_prediction" if model == "sd-2.1" else "epsilon")
    assert not schedule.set_alpha_to_one


def test_the_inpainting_model_is_refused_by_name():
    with pytest.raises(InputError, match="takes 9 channels, the VAE makes 4: an inpainting model can't"):
        together(INPAINTING, parts(INPAINTING))


# --- the same as files ------------------------------------------------------------------------------------------------


def write_zeros(file: Path, module: nn.Module) -> None:
    """A safetensors file of float16 zeros: a hole, which takes no space on the disk."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in module.state_dict().items():
        header[name] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [at, at := at + 2 * tensor.numel()],
        }
    head = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        out.truncate(8 + len(head) + at)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A published model as a folder of full size."""
    model = shutil.copytree(PUBLISHED / request.param, tmp_path / request.param)
    for part, module in parts(request.param).items():
        write_zeros(model / part / f"{STEMS.get(part, 'model')}.safetensors", module)
    for tokenizer in model.glob("tokenizer*"):
        token_files.write_clip(tokenizer)
    yield model
    shutil.rmtree(model)


@pytest.mark.slow
@pytest.mark.parametrize("folder", WORKING, indirect=True)
def test_nine_folders_load_and_are_planned_at_full_size(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ZS2.from_pretrained(folder, dtype="float16", device="cpu")
    side = {"sd-2.1": 96}.get(folder.name, 128 if folder.name.startswith("sdxl") else 64)
    assert f"{8 * side}x{8 * side}" in repr(model)
    context = model.text(["a cat"]).context
    assert context.shape == (1, 77, model.unet.config.cross_attention_dim)
    assert main(["a cat", "--model", str(folder), "--dtype", "float16", "--device", "cpu", "--dry-run"]) == 0
    assert "peak" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("folder", [INPAINTING], indirect=True)
def test_the_inpainting_folder_is_refused(folder, capsys):
    assert main(["a cat", "--model", str(folder), "--device", "cpu", "--dry-run"]) == 2
    assert "an inpainting model can't be sampled here" in capsys.readouterr().err
    with pytest.raises(InputError, match="inpainting"):
        ZS2.from_pretrained(folder, dtype="float16", device="cpu")


@pytest.mark.parametrize("model", ["sdxl-base-1.0"])
def test_a_published_folder_is_read_by_the_checkpoint(model, tmp_path):
    """Its JSONs alone, at their places, with empty weights: what is read before any weight is."""
    copy = shutil.copytree(PUBLISHED / model, tmp_path / model)
    for part in ENTRIES[model]["weights"]:
        (copy / part / f"{STEMS.get(part, 'model')}.safetensors").touch()
    for tokenizer in copy.glob("tokenizer*"):
        token_files.write_clip(tokenizer)
    checkpoint = Checkpoint(copy)
    assert checkpoint.source.zero_empty
    assert checkpoint.schedule().timestep_spacing == "leading"
    assert [checkpoint.tokenizer(tower).pad_id for tower in checkpoint.source.towers] == [49407, 0]
