"""Loading ControlNets: folders, files of both layouts, the hub's files; what a file says is used, or an error."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import original, tiny
from helpers import Fixture
from safetensors.torch import save_file
from torch import Tensor

from zs2.checkpoints.controlnets import ControlNetFiles, choose_control_files
from zs2.checkpoints.digests import ChangedFile
from zs2.errors import InputError
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.models.temporal import SelfAttention

FIXTURE = Fixture("controlnet")
Tensors = dict[str, Tensor]
# The smallest networks whose heads a file can tell: those of SD 1 by the width of the text, later ones by 64 channels.
SINGLE: dict[str, dict[str, Any]] = {
    "sd 1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd 2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [1, 2],
        "block_out_channels": [64, 128],
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "xl": {
        "attention_head_dim": [1, 2],
        "block_out_channels": [64, 128],
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "xl small": {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
}
# What no shape tells, and files of today's models agree on.
USUAL = {
    "controlnet_conditioning_channel_order": "rgb",
    "downsample_padding": 1,
    "freq_shift": 0,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "upcast_attention": False,
    "norm_num_groups": 32,
}


def weights(kind: str) -> Tensors:
    return FIXTURE.weights(kind)


def of_a_file(kind: str) -> tuple[dict[str, Any], Tensors]:
    """A network whose configuration a file can tell, with random weights."""
    wide = {"block_out_channels": [32, 64]} if "block_out_channels" not in SINGLE[kind] else {}
    config = tiny.CONTROLS.get(kind, tiny.CONTROLS["sd"]) | USUAL | wide | SINGLE[kind]
    if kind == "xl small":
        config |= {"cross_attention_dim": 1280, "attention_head_dim": 8, "transformer_layers_per_block": 1}
        config["use_linear_projection"] = False  # none of which it has
    torch.manual_seed(0)
    return config, ControlNet(ControlNetConfig.from_json(config), SelfAttention()).state_dict()


def assert_holds(place: Path | str, want: Tensors, config: dict[str, Any]) -> None:
    """Assert that a place is read to these weights and this configuration, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = ControlNetFiles(place, torch.float32)
        network = files.network(torch.device("cpu"), torch.float32, SelfAttention())
    assert network.config == ControlNetConfig.from_json(config)
    assert network.state_dict().keys() == want.keys()
    assert all(torch.equal(tensor, want[name]) for name, tensor in network.state_dict().items())
    assert len(files.digest["sha256"]) == 64


@pytest.mark.parametrize("kind", tiny.CONTROLS)
def test_a_folder(tmp_path: Path, kind: str) -> None:
    folder = tiny.write_control(tmp_path / "control", kind, weights(kind))
    assert_holds(folder, weights(kind), tiny.CONTROLS[kind])
    assert_holds(folder / "diffusion_pytorch_model.safetensors", weights(kind), tiny.CONTROLS[kind])
    shutil.move(folder, tmp_path / "model" / "controlnet")
    assert_holds(tmp_path / "model", weights(kind), tiny.CONTROLS[kind])


LAYOUTS = dict.fromkeys(SINGLE, ("diffusers", "original", "control_model.")) | {"xl small": ("diffusers",)}


@pytest.mark.parametrize(("kind", "layout"), [(kind, layout) for kind in LAYOUTS for layout in LAYOUTS[kind]])
def test_a_file(tmp_path: Path, kind: str, layout: str) -> None:
    config, tensors = of_a_file(kind)
    prefix = layout if layout.endswith(".") else ""
    named = tensors if layout == "diffusers" else original.unet(tensors)
    save_file({prefix + name: tensor.contiguous() for name, tensor in named.items()}, tmp_path / "c.safetensors")
    assert_holds(tmp_path / "c.safetensors", tensors, config)


def test_other_parts_in_a_file_are_a_warning(tmp_path: Path) -> None:
    _, tensors = of_a_file("sd 1")
    named = prefixed(tensors)
    named["model.diffusion_model.out.2.bias"] = torch.zeros(4)
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, tmp_path / "c.safetensors")
    with pytest.warns(UserWarning, match=r"c.safetensors also has a UNet \(1 tensor\): not used"):
        assert ControlNetFiles(tmp_path / "c.safetensors", torch.float32).tensors.keys() == tensors.keys()


def prefixed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by their names in a file of the original layout."""
    return {f"control_model.{name}": tensor for name, tensor in original.unet(tensors).items()}


ONE = torch.zeros(1)
WRONG: dict[str, tuple[Any, str]] = {
    "missing": (lambda f: None, "no such ControlNet: .*expected a folder in the diffusers layout, a .safetensors file"),
    "empty": (lambda f: f.mkdir(), "is no ControlNet: it has no config.json, and no controlnet/ with one"),
    "unet": (
        lambda f: tiny.write_folder(f, "sd", {}) and (f / "controlnet").symlink_to(f / "unet"),
        "is of 'UNet2DConditionModel', not of ControlNetModel",
    ),
    "lora": (lambda f: save_file({"lora_controlnet": ONE}, f), r"it has a Control-LoRA \(1 tensor\)"),
    "adapter": (lambda f: save_file({"adapter.body.0.block1.bias": ONE}, f), "it has a T2I-Adapter"),
    "other": (lambda f: save_file({"a": ONE}, f), "it has tensors of other names, such as a"),
    "text": (lambda f: f.write_text("x"), "not a whole safetensors file"),
    "pickle": (lambda f: f.with_suffix(".pth").write_bytes(b"PK"), "c.pth is a pickle"),
    "lacks": (
        lambda f: save_file({k: v for k, v in of_a_file("sd 1")[1].items() if "mid_block.resnets.1" not in k}, f),
        "tensors missing: mid_block.resnets.1",
    ),
    "difference": (
        lambda f: save_file(of_a_file("sd 1")[1] | {"difference": ONE}, f),
        "c.safetensors is the difference of a ControlNet from a model: expected a whole",
    ),
    "difference, original": (
        lambda f: save_file(prefixed(of_a_file("sd 1")[1]) | {"difference": ONE}, f),
        "c.safetensors is the difference of a ControlNet from a model: expected a whole",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_controlnet_is_one_line(tmp_path: Path, case: str) -> None:
    write, words = WRONG[case]
    place = tmp_path / "c.safetensors"
    write(place)
    place = place.with_suffix(".pth") if case == "pickle" else place
    with pytest.raises(InputError, match=words) as error:
        ControlNetFiles(place, torch.float32).network(torch.device("cpu"), torch.float32, SelfAttention())
    assert "\n" not in str(error.value)


def test_a_file_that_changes_is_not_digested(tmp_path: Path) -> None:
    folder = tiny.write_control(tmp_path / "control", "sd", weights("sd"))
    files = ControlNetFiles(folder, torch.float32)
    save_file({"a": ONE}, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ChangedFile, match="was changed after it was loaded"):
        print(files.digest)


def test_the_digest_is_of_weights_and_configuration(tmp_path: Path) -> None:
    digests = []
    for number, changes in enumerate(({}, {"_name_or_path": "x"}, {"norm_eps": 0.1})):
        folder = tiny.write_control(tmp_path / str(number), "sd", weights("sd"))
        (folder / "config.json").write_text(json.dumps(tiny.CONTROLS["sd"] | changes))
        digests.append(ControlNetFiles(folder, torch.float32).digest)
    assert digests[0] == digests[1]
    assert digests[0]["sha256"] == digests[2]["sha256"]
    assert digests[0]["config"] != digests[2]["config"]


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("have", "dtype", "want"),
    [
        (
            ["config.json", f"{STEM}.safetensors", f"{STEM}.bin", "x.png"],
            "float32",
            ["config.json", f"{STEM}.safetensors"],
        ),
        (
            ["config.json", f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"],
            "float16",
            ["config.json", f"{STEM}.fp16.safetensors"],
        ),
        (
            ["unet/config.json", "controlnet/config.json", f"controlnet/{STEM}.safetensors"],
            "float32",
            ["controlnet/config.json", f"controlnet/{STEM}.safetensors"],
        ),
        (["config.json", f"{STEM}.bin"], "float32", "it has no safetensors, only pickles"),
        (["a.safetensors"], "float32", r"it has no config.json: download one of its files \(a.safetensors\)"),
        ([], "float32", "no ControlNet in the diffusers layout: it has no config.json"),
    ],
)
def test_the_files_of_a_repository(have: list[str], dtype: str, want: list[str] | str) -> None:
    if isinstance(want, str):
        with pytest.raises(InputError, match=want):
            choose_control_files(have, dtype)
    else:
        assert choose_control_files(have, dtype) == want


def other(kind: str, **changes: Any) -> ControlNetConfig:
    return ControlNetConfig.from_json(tiny.CONTROLS[kind] | changes)


def test_a_control_of_another_family_is_named() -> None:
    unet = other("sd")  # the UNet's part of it
    other("sd 1").check(unet, 2)
    other("xl small").check(other("xl"), 2)
    cases = {
        "text of width 24, the model 16": other("sd", cross_attention_dim=24),
        "latents of 9 channels, the model 4": other("sd", in_channels=9),
        r"levels of \(8, 24\) channels, the model \(8, 16\)": other("sd", block_out_channels=[8, 24]),
        r"\(2, 2\) layers a level, the model \(1, 1\)": other("sd", layers_per_block=2),
        "hints of 4 pixels a latent, the model 2": other("sd", conditioning_embedding_out_channels=[4, 6, 8]),
        "added conditions of width 56, the model 0": other("xl", cross_attention_dim=16),
    }
    for words, config in cases.items():
        with pytest.raises(InputError, match=f"the ControlNet 'c' is of another family: it has {words}"):
            config.check(unet, 2, "c")
