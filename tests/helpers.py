"""What the comparing tests share: reading fixtures, loading weights, and the two comparisons."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from fixtures import tiny, token_files
from fixtures.original import write
from fixtures.store import SUFFIX, read
from safetensors.torch import save_file
from torch import Tensor, nn

from zs2 import ZS2
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.models.clip import TextEncoder, VisionEncoder
from zs2.models.clip_config import TextConfig, VisionConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.unet import UNet
from zs2.models.vae import VAE

TESTS = Path(__file__).resolve().parent
CHECKPOINT = TESTS.parent / DEFAULT_MODEL
NAME = CHECKPOINT.name  # the short name of the default checkpoint


def _config(part: str) -> dict[str, Any]:
    return json.loads((CHECKPOINT / part / "config.json").read_text())


# Of that checkpoint, so that another one does as well.
LATENTS = (_config("unet")["in_channels"],) + (_config("unet")["sample_size"],) * 2  # channels, height, width
REDUCTION = 2 ** (len(_config("vae")["block_out_channels"]) - 1)  # pixels of a latent's side
SIDE = LATENTS[1] * REDUCTION  # of its pictures, in pixels
VOCABULARY = _config("text_encoder")["vocab_size"]
LAM: float = json.loads((CHECKPOINT / "zs2.json").read_text())["lam"]  # its own λ

# The settings of a clip, and of a study, that is made from a prompt alone.
UNGUIDED: dict[str, Any] = {
    "source": None,
    "strength": 0.8,
    "source_latents": "sample",
    "first_frame": None,
    "first_frame_noise": "inverted",
    "image_guidance": 1.5,
    "control": None,
    "control_scale": None,
    "control_interval": None,
    "control_from": None,
    "control_attn": None,
    "controlnet": None,
}

MODULE = 1e-5  # relative tolerance of one module, float32
CLIP = 1e-4  # of the latents of a whole sampling

M = TypeVar("M", bound=nn.Module)


@cache
def _contents(name: str) -> tuple[dict[str, Tensor], Any]:
    return read(TESTS / "fixtures" / f"{name}{SUFFIX}")


class Fixture:
    """A file of tests/fixtures: `fixture["case/what"]` is a tensor, `fixture.config` the JSON stored beside them.

    The file is read once: do not change a tensor in place.
    """

    def __init__(self, name: str) -> None:
        tensors, config = _contents(name)
        self.tensors, self.config = dict(tensors), deepcopy(config)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def weights(self, case: str) -> dict[str, Tensor]:
        """The weights of a case."""
        prefix = f"{case}/weights/"
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def load(self, module: M, case: str) -> M:
        """Load the weights of a case into a module, strictly."""
        module.load_state_dict(self.weights(case))
        return module.eval()


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, whatever other module may have its name."""
    spec = spec_from_file_location(f"benchmark_{name}", TESTS.parent / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_clip(folder: Path, name: str = "clip_quick_gelu") -> Path:
    """The CLIP of a fixture as a folder in the layout of transformers' CLIPModel."""
    fixture, start = Fixture(name), "weights/"
    shutil.copytree(CHECKPOINT / "tokenizer", folder)
    (folder / "config.json").write_text(json.dumps(fixture.config["config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(fixture.config["images"]))
    weights = {k.removeprefix(start): v for k, v in fixture.tensors.items() if k.startswith(start)}
    save_file(weights, folder / "model.safetensors")
    return folder


STEMS = {  # of the files of an SDXL
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def write_xl(folder: Path, fixture: Fixture) -> Path:
    """The tiny SDXL of the fixture `xl` in the diffusers layout."""
    for part, stem in STEMS.items():
        (folder / part).mkdir()
        write(folder / part / f"{stem}.safetensors", fixture.weights(part))
        (folder / part / "config.json").write_text(json.dumps(fixture.config[part]))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(CHECKPOINT / "tokenizer", folder / name)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((folder / "tokenizer_2" / file).read_text()) | {"pad_token": "!"}
        (folder / "tokenizer_2" / file).write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(fixture.config["scheduler"]))
    return folder


def tiny_weights(kind: str) -> dict[str, dict[str, Tensor]]:
    """The weights of a model of fixtures/tiny.py, by part."""
    weights: dict[str, dict[str, Tensor]] = {}
    for name, tensor in Fixture("loading").tensors.items():
        if name.startswith(f"{kind}/") and "/weights/" in name:
            part, weight = name.removeprefix(f"{kind}/").split("/weights/")
            weights.setdefault(part, {})[weight] = tensor
    return weights


def write_tiny(folder: Path, kind: str) -> Path:
    """A model of fixtures/tiny.py in the diffusers layout, with its tokenizers."""
    tiny.write_folder(folder, kind, tiny_weights(kind))
    token_files.write_pair(folder, kind)
    return folder


def write_guided(folder: Path, way: str, kind: str) -> Path:
    """A model of the fixture `guided`, as make_guided.py writes it: way is `source`, or `edit` for an editing model."""
    parts, channels = tiny_weights(kind), 4
    if way == "edit":
        parts["unet"] = parts["unet"] | {"conv_in.weight": Fixture("guided")[f"{kind}/conv_in"]}
        channels = 8
    tiny.write_folder(folder, kind, parts)
    token_files.write_pair(folder, kind)
    (folder / tiny.SCHEDULER).write_text(json.dumps(tiny.SCHEDULE | {"clip_sample": False, "steps_offset": 1}))
    config = tiny.JSONS[kind]["unet/config.json"] | {"in_channels": channels}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    return folder


NARROW: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "sample_size": 8,  # pictures of 64×64
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    "image_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
}


NETWORKS: dict[str, tuple[Callable[[Any], nn.Module], Callable[[dict[str, Any]], Any]]] = {
    "unet": (UNet, UNetConfig.from_json),
    "vae": (VAE, VAEConfig.from_json),
    "text_encoder": (TextEncoder, TextConfig.from_json),
    "image_encoder": (VisionEncoder, VisionConfig.from_json),
}


def write_narrow(folder: Path) -> Path:
    """The default checkpoint with few levels, few channels and random weights, for tests in which no value counts.

    Its texts have the same size, its pictures 64×64 pixels.
    """
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {}
    for part, changes in NARROW.items():
        file = folder / part / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps(config))
        network, read = NETWORKS[part]
        parts[part] = network(read(config))
    nn.init.normal_(parts["image_encoder"].vision_model.embeddings.class_embedding)
    for name, weight in parts["unet"].named_parameters():
        if ".attn" in name and weight.ndim > 1:
            weight.data *= 3  # so that a frame depends on others, and on its text, as much as the real ones do
    for part, module in parts.items():
        (weights,) = (CHECKPOINT / part).glob("*.safetensors")
        save_file(module.state_dict(), folder / part / weights.name)
    return folder


def assert_close(got: Tensor, want: Tensor, tol: float) -> None:
    """Assert that max|got - want| ≤ tol · max|want|."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    error, scale = (got.double() - want.double()).abs().max().item(), want.abs().max().item()
    assert error <= tol * scale, (
        f"relative error {error / scale:.2e} > {tol:.0e} (max|a-b| {error:.3g}, max|b| {scale:.3g})"
    )


def assert_white(noise: Tensor) -> None:
    """That noise (c, h, w), in float64, is standard normal and neighbours are independent, within 5 standard errors."""
    n = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 5 / math.sqrt(n)
    assert abs((noise[:, :, 1:] * noise[:, :, :-1]).mean()) < 5 / math.sqrt(n)


def assert_same_picture(got: Tensor, want: Tensor) -> None:
    """Assert that uint8 pictures are equal, but for one level in one value of a thousand: rounding at the boundary."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    difference = (got.int() - want.int()).abs()
    share = (difference > 0).double().mean().item()
    message = f"up to {difference.max()} levels apart, {share:.2%} of the values differ"
    assert difference.max() <= 1, message
    assert share <= 1e-3, message


def in_float64(model: ZS2) -> ZS2:
    """The model with weights in float64: what differs then is not rounding, which the sampling enlarges."""
    for part in (model.unet, model.text_encoder, *model.image_model.controls):
        part.double()
    return model
