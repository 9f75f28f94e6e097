"""LoRAs merged into the weights: the formula in every naming, diffusers' own outputs, and files that do not fit."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from fixtures import tiny
from helpers import CHECKPOINT, MODULE, Fixture, assert_close
from safetensors.torch import save_file
from torch import Tensor, nn

from zs2 import ZS2
from zs2.checkpoints.lora import files_of, lora_files, merge, parse
from zs2.checkpoints.lora_kinds import KINDS, is_lora
from zs2.errors import InputError
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig
from zs2.models.unet import UNet

Tensors = dict[str, Tensor]
UNET, TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.layers.2.self_attn.q_proj"
# How wide the first level of the UNet is, and the one of that layer.
FIRST, WIDTH, *_ = json.loads((CHECKPOINT / "unet" / "config.json").read_text())["block_out_channels"]
HALF = WIDTH // 2
KOHYA = ("lora_unet_" + UNET.replace(".", "_"), "lora_te_text_model_" + TEXT.replace(".", "_"))


@pytest.fixture(scope="module")
def loaded() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


M = TypeVar("M", bound=nn.Module)


def sharing(module: M) -> M:
    """A module of its own on the same weights."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


@pytest.fixture
def unet(loaded: ZS2) -> UNet:
    return sharing(loaded.unet)


@pytest.fixture
def text(loaded: ZS2) -> TextEncoder:
    return sharing(loaded.text_encoder)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def halves(weight: Tensor, rank: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random (down, up) that fit a weight."""
    down = noise(rank, *weight.shape[1:], seed=seed)
    return down, noise(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), seed=seed + 1)


def product(down: Tensor, up: Tensor) -> Tensor:
    """up·down, written out over the rank."""
    return torch.stack([torch.einsum("o,i...->oi...", up[:, r].flatten(), down[r]) for r in range(len(down))]).sum(0)


def kohya(stem: str, down: Tensor, up: Tensor, alpha: float | None = None) -> Tensors:
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    return tensors if alpha is None else tensors | {f"{stem}.alpha": torch.tensor(alpha)}


def write(tmp_path: Path, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "style") -> Path:
    file = tmp_path / f"{name}.safetensors"
    save_file(tensors, file, metadata)
    return file


def changed(before: Mapping[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


# --- the formula ------------------------------------------------------------------------------------------------------


DOWN_UP = (".lora_down.weight", ".lora_up.weight")
A_B = (".lora_A.weight", ".lora_B.weight")
OLD = (".down.weight", ".up.weight")
PROCESSOR = UNET.replace("attn1", "attn1.processor") + "_lora"

STEMS: tuple[tuple[str, tuple[str, str], str | None, str], ...] = (
    (KOHYA[0], DOWN_UP, ".alpha", UNET),
    ("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", DOWN_UP, ".alpha", UNET),
    (f"unet.{UNET}", A_B, None, UNET),
    (f"unet.{UNET}", (".lora_A.default.weight", ".lora_B.default.weight"), None, UNET),
    (f"unet.{UNET}", (".lora.down.weight", ".lora.up.weight"), ".alpha", UNET),
    (f"unet.{UNET}_lora", OLD, ".alpha", UNET),
    (f"unet.{PROCESSOR}", OLD, ".alpha", UNET),
    (PROCESSOR, OLD, None, UNET),
    ("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q", DOWN_UP, ".alpha", UNET),
    (KOHYA[1], DOWN_UP, ".alpha", TEXT),
    (KOHYA[1].replace("te_text_model_", "te1_"), DOWN_UP, None, TEXT),
    (f"text_encoder.text_model.{TEXT}", A_B, None, TEXT),
    (f"text_encoder.{TEXT}", A_B, None, TEXT),
    (f"text_encoder.{TEXT}", (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), ".alpha", TEXT),
    (f"text_encoder.{TEXT.replace('q_proj', 'to_q_lora')}", OLD, ".alpha", TEXT),
)


@pytest.mark.parametrize(("stem", "ends", "alpha", "layer"), STEMS, ids=[f"{s[0]}{s[1][0]}" for s in STEMS])
def test_every_naming(
    stem: str, ends: tuple[str, str], alpha: str | None, layer: str, unet: UNet, text: TextEncoder, tmp_path: Path
) -> None:
    module = unet if layer == UNET else text.text_model
    before = module.get_submodule(layer).weight
    others = [(m, m.state_dict()) for m in (unet, text)]
    a, b = halves(before)
    tensors = {stem + ends[0]: a, stem + ends[1]: b} | ({stem + alpha: torch.tensor(6.0)} if alpha else {})
    merge(write(tmp_path, tensors), 0.5, unet, [text])
    assert_close(module.get_submodule(layer).weight, before + 0.5 * (2 if alpha else 1) * product(a, b), 1e-6)
    assert sum(len(changed(state, m)) for m, state in others) == 1


# An original name of each kind of layer, by what the SD 1 layout says; the checkpoint has levels of one block.
ORIGINAL = (
    ("input_blocks_0_0", "conv_in"),
    ("time_embed_2", "time_embedding.linear_2"),
    ("out_2", "conv_out"),
    ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
    ("input_blocks_2_0_op", "down_blocks.0.downsamplers.0.conv"),
    ("input_blocks_3_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
    ("input_blocks_3_0_emb_layers_1", "down_blocks.1.resnets.0.time_emb_proj"),
    ("middle_block_0_out_layers_3", "mid_block.resnets.0.conv2"),
    ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
    ("middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"),
    ("output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
     "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"),
    ("output_blocks_1_1_transformer_blocks_0_attn2_to_out_0",
     "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"),
    ("output_blocks_1_2_conv", "up_blocks.0.upsamplers.0.conv"),
    ("output_blocks_3_0_out_layers_3", "up_blocks.1.resnets.1.conv2"),
)  # fmt: skip


def test_layers_of_every_kind_in_both_layouts(unet: UNet, tmp_path: Path) -> None:
    names = [path for _, path in ORIGINAL]
    before = {path: unet.get_submodule(path).weight for path in names}
    want = dict(before)
    for number, stems in enumerate(zip(*((o, path.replace(".", "_")) for o, path in ORIGINAL), strict=True)):
        tensors: Tensors = {}
        for seed, (stem, path) in enumerate(zip(stems, names, strict=True)):
            a, b = halves(before[path], seed=100 * number + 2 * seed)
            tensors |= kohya(f"lora_unet_{stem}", a, b, 1.5)
            want[path] = want[path] + 0.5 * product(a, b)
        merge(write(tmp_path, tensors), 1.0, unet, [])
    for path in names:
        assert_close(unet.get_submodule(path).weight, want[path], 1e-6)


def test_a_whole_model_has_a_name_for_every_layer(unet: UNet, text: TextEncoder, tmp_path: Path) -> None:
    tensors: Tensors = {}
    for prefix, module in (("lora_unet_", unet), ("lora_te_", text)):
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                tensors |= kohya(prefix + path.replace(".", "_"), *halves(layer.weight, rank=1))
    merge(write(tmp_path, tensors), 0.01, unet, [text])
    assert len(tensors) > 200


def test_a_projection_may_be_linear_or_a_convolution(unet: UNet, tmp_path: Path) -> None:
    path = "mid_block.attentions.0.proj_in"
    before = unet.get_submodule(path).weight
    down, up = halves(before)
    file = write(tmp_path, kohya(f"lora_unet_{path.replace('.', '_')}", down[:, :, 0, 0], up[:, :, 0, 0]))
    merge(file, 1.0, unet, [])
    assert_close(unet.get_submodule(path).weight, before + product(down, up), 1e-6)


def test_the_second_text_tower(unet: UNet, text: TextEncoder, tmp_path: Path) -> None:
    first, second = text, sharing(text)
    before = text.text_model.get_submodule(TEXT).weight
    tensors: Tensors = {}
    want = []
    for number, stem in enumerate((KOHYA[1].replace("te_", "te1_"), f"text_encoder_2.text_model.{TEXT}")):
        down, up = halves(before, seed=number)
        tensors |= kohya(stem, down, up)
        want.append(before + product(down, up))
    merge(write(tmp_path, tensors), 1.0, unet, [first, second])
    for tower, weight in zip((first, second), want, strict=True):
        assert_close(tower.text_model.get_submodule(TEXT).weight, weight, 1e-6)


def test_several_add_up_in_any_order(loaded: ZS2, tmp_path: Path) -> None:
    before = loaded.unet.get_submodule(UNET).weight
    files = [write(tmp_path, kohya(KOHYA[0], *halves(before, seed=seed)), name=str(seed)) for seed in range(3)]
    made = []
    for order in ((0, 1, 2), (2, 0, 1)):
        unet = sharing(loaded.unet)
        for i in order:
            merge(files[i], 0.1 * (i + 1), unet, [])
        made.append(unet.get_submodule(UNET).weight)
    want = before + sum(0.1 * (i + 1) * product(*halves(before, seed=i)) for i in range(3))
    assert_close(made[0], want, 1e-6)
    assert_close(made[0], made[1], 1e-6)

    once, twice = sharing(loaded.unet), sharing(loaded.unet)
    merge(files[0], 0.8, once, [])
    merge(files[0], 0.3, twice, [])
    merge(files[0], 0.5, twice, [])
    assert_close(once.get_submodule(UNET).weight, twice.get_submodule(UNET).weight, 1e-6)


def test_one_or_several_in_python() -> None:
    path, name = Path("a.safetensors"), "a.safetensors"
    for given in (path, name, f"{name}:1", (name, 1), (path, 1.0), [path], [(name, 1)], ((name, 1),)):
        assert lora_files(given) == [(path, 1.0)], given
    assert lora_files((name, f"{name}:0.5")) == [(path, 1.0), (path, 0.5)]
    assert lora_files([(name, np.float32(0.5))]) == [(path, 0.5)]
    assert math.isnan(lora_files((name, math.nan))[0][1])  # for merge to refuse
    assert lora_files(()) == []
    for wrong in (5, None, (name, None), [5], [(name, "1")], [(name, True)]):
        with pytest.raises(InputError, match=r"FILE:SCALE, (or )?\(file, scale\)"):
            lora_files(wrong)  # type: ignore[arg-type]


def test_a_scale_and_its_opposite_cancel(unet: UNet, tmp_path: Path) -> None:
    before = unet.get_submodule(UNET).weight
    file = write(tmp_path, kohya(KOHYA[0], *halves(before)))
    merge(file, 1.0, unet, [])
    merge(file, -1.0, unet, [])
    assert_close(unet.get_submodule(UNET).weight, before, 1e-5)


def test_weights_shared_with_another_model_stay(loaded: ZS2, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.unet.state_dict().items()}
    other = loaded.variant(attn="sa").unet
    merge(write(tmp_path, kohya(KOHYA[0], *halves(before[f"{UNET}.weight"]))), 1.0, other, [])
    assert changed(before, loaded.unet) == set()
    assert changed(before, other) == {f"{UNET}.weight"}
    untouched = "conv_in.weight"
    assert other.get_parameter(untouched).data_ptr() == loaded.unet.get_parameter(untouched).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_half_weights_are_merged_in_float32(
    dtype: torch.dtype, stored: torch.dtype, unet: UNet, tmp_path: Path
) -> None:
    unet = copy.deepcopy(unet).to(dtype)
    before = unet.get_submodule(UNET).weight
    down, up = (x.to(stored) for x in halves(before, rank=16))
    merge(write(tmp_path, kohya(KOHYA[0], down, up, 0.1)), 1.0, unet, [])
    weight = unet.get_submodule(UNET).weight
    want = before.float() + 0.1 / 16 * product(down.float(), up.float())
    assert weight.dtype == dtype
    assert not weight.requires_grad
    assert (weight != want.to(dtype)).float().mean() < 0.001  # rounded once; float32 sums in another order


# --- diffusers --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("case", ["kohya", "kohya original", "old diffusers", "peft"])
def test_fused_outputs_are_those_of_diffusers(case: str, unet: UNet, text: TextEncoder, tmp_path: Path) -> None:
    f = Fixture("lora")
    prefix = f"{case}/lora/"
    tensors = {name.removeprefix(prefix): t for name, t in f.tensors.items() if name.startswith(prefix)}
    ids = torch.tensor(f.config["ids"])

    def run() -> tuple[Tensor, ...]:
        """In float32, and in float64 as the UNet's reference: trained weights enlarge float32's rounding."""
        found = [text(ids)]
        for dtype in (torch.float32, torch.float64):
            x, context = f["x"].to(dtype), f["context"].to(dtype)
            found.append(copy.deepcopy(unet).to(dtype)(x, f.config["t"], context, frames=1).prediction)
        return tuple(found)

    before = run()
    merge(write(tmp_path, tensors, f.config["metadata"][case]), f.config["scale"], unet, [text])
    for was, got, want in zip(before, run(), (f[f"{case}/text"], *[f[f"{case}/unet"]] * 2), strict=True):
        assert_close(got, want, MODULE)
        assert (was - want).abs().max() > 0.01 * want.abs().max()  # the LoRA shows


# --- every kind -------------------------------------------------------------------------------------------------------

UNETS = {"sd1": tiny.UNET | {"use_linear_projection": False}, "sd2": tiny.UNET, "xl": tiny.UNET_XL}
CASES: dict[str, dict[str, Any]] = Fixture("lora_kinds").config["cases"]
PEFT_CASES = [case for case in CASES if case.startswith("PEFT")]


def tiny_model(family: str) -> tuple[UNet, list[TextEncoder]]:
    """The tiny model of a case of the fixture lora_kinds."""
    f, towers = Fixture("lora_kinds"), []
    for part, config in (("text_encoder", tiny.TEXT), ("text_encoder_2", tiny.TEXT_2)):
        weights = {
            n if n.startswith("text_") else f"text_model.{n}": w for n, w in f.weights(f"{family}/{part}").items()
        }
        if weights:
            tower = TextEncoder(TextConfig.from_json(config), "text_projection.weight" in weights)
            tower.load_state_dict(weights)
            towers.append(tower)
    return f.load(UNet(UNetConfig.from_json(UNETS[family])), f"{family}/unet"), towers


def lora_of(case: str) -> Tensors:
    prefix = f"{case}/lora/"
    return {n.removeprefix(prefix): t for n, t in Fixture("lora_kinds").tensors.items() if n.startswith(prefix)}


def assert_merged(case: str, unet: UNet, towers: list[TextEncoder]) -> None:
    """Assert that the parameters that the case merges are those of LyCORIS or PEFT, and that all others stayed."""
    f, prefix = Fixture("lora_kinds"), f"{case}/merged/"
    want = {name.removeprefix(prefix): t for name, t in f.tensors.items() if name.startswith(prefix)}
    family = CASES[case]["model"]
    for part, module in zip(("unet", "text_encoder", "text_encoder_2"), (unet, *towers), strict=False):
        for name, before in f.weights(f"{family}/{part}").items():
            stem = name.removeprefix("text_model.")
            got = module.get_parameter(name if hasattr(module, name.split(".")[0]) else f"text_model.{name}")
            if f"{part}.{stem}" in want:
                assert_close(got, want.pop(f"{part}.{stem}"), 1e-6)
                assert (got - before).abs().max() > 0.01 * before.abs().max()  # the LoRA shows
            else:
                assert torch.equal(got, before), name
    assert not want


def in_file(case: str, folder: Path) -> Path:
    """The LoRA of a case as a file, or as PEFT's folder."""
    if "adapter_config" not in CASES[case]:
        return write(folder, lora_of(case))
    folder = folder / CASES[case]["part"]
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CASES[case]["adapter_config"]))
    return write(folder, lora_of(case), name="adapter_model").parent


@pytest.mark.parametrize("case", CASES)
def test_every_kind_is_merged_as_by_lycoris_and_peft(
    case: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    unet, towers = tiny_model(CASES[case]["model"])
    merge(in_file(case, tmp_path), CASES[case]["scale"], unet, towers)
    assert_merged(case, unet, towers)
    dora = any("dora_scale" in name or "magnitude" in name for name in lora_of(case))
    assert len(recwarn) == (dora and CASES[case]["scale"] != 1)
    assert all("is DoRA, for which programs differ at scales other than 1" in str(one.message) for one in recwarn)


@pytest.mark.parametrize("case", PEFT_CASES)
def test_what_peft_makes_in_a_file_of_diffusers(case: str, tmp_path: Path) -> None:
    part = CASES[case]["part"]
    tensors = {f"{part}.{name.removeprefix('base_model.model.')}": t for name, t in lora_of(case).items()}
    metadata = json.dumps({f"{part}.{key}": value for key, value in CASES[case]["adapter_config"].items()})
    unet, towers = tiny_model(CASES[case]["model"])
    file = write(tmp_path, tensors, {"lora_adapter_metadata": metadata}, "pytorch_lora_weights")
    merge(file.parent, CASES[case]["scale"], unet, towers)
    assert_merged(case, unet, towers)


def test_folders_of_several_parts(tmp_path: Path) -> None:
    """As PEFT's own examples save them: unet/ and text_encoder/, each with its configuration."""
    cases = ("PEFT, rs", "PEFT, text 2")
    for case in cases:
        in_file(case, tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path)] == [
        f"{part}/adapter_{end}" for part in ("unet", "text_encoder_2") for end in ("model.safetensors", "config.json")
    ]
    unet, towers = tiny_model("xl")
    merge(tmp_path, 0.7, unet, towers)
    assert_merged(cases[1], tiny_model("xl")[0], towers)
    alone, _ = tiny_model("xl")
    merge(tmp_path / "unet" / "adapter_model.safetensors", 0.7, alone, [])  # its configuration is beside it
    assert all(map(torch.equal, alone.parameters(), unet.parameters()))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "no LoRA in"),
        (("adapter_config.json",), "expected adapter_model.safetensors and adapter_config.json, or pytorch_lora"),
        (("adapter_config.json", "adapter_model.bin"), "adapter_model.bin is a pickle"),
        (("adapter_model.safetensors",), "no LoRA in"),
        (("unet/adapter_config.json",), "no LoRA in"),
    ],
)
def test_folders_without_a_lora(files: tuple[str, ...], words: str, loaded: ZS2, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match=words):
        merge(tmp_path, 1.0, loaded.unet, [])


def test_a_file_of_peft_without_its_configuration(tmp_path: Path) -> None:
    tensors = lora_of("PEFT, text")
    unet, towers = tiny_model("sd2")
    with pytest.warns(UserWarning, match=r"adapter_model.safetensors has no adapter_config.json beside it: its alpha"):
        merge(write(tmp_path, tensors, name="adapter_model"), 0.7 * 2 / 3, unet, towers)  # its alpha was 2, its rank 3
    assert_merged("PEFT, text", unet, towers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_thing": 3}, "adapter_config.json: zs2 does not know new_thing: the result may differ"),
        ({"new_thing": None}, None),
        ({"peft_version": "9", "lora_dropout": 0.5}, None),
    ],
    ids=str,
)
def test_keys_that_zs2_does_not_know(
    change: dict[str, Any], words: str | None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = in_file("PEFT, text", tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps(CASES["PEFT, text"]["adapter_config"] | change))
    unet, towers = tiny_model("sd2")
    merge(folder, 0.7, unet, towers)
    assert [words] == [str(one.message) for one in recwarn] if words else not recwarn


def renamed(*patterns: tuple[str, str]) -> Callable[[str], str]:
    def name(key: str) -> str:
        for pattern, target in patterns:
            key = re.sub(pattern, target, key)
        return key

    return name


NAMINGS = {
    "the original layout": renamed(
        ("unet_down_blocks_0_resnets_0_conv2", "unet_input_blocks_1_0_out_layers_3"),
        ("unet_down_blocks_0_attentions_0", "unet_input_blocks_1_1"),
        ("unet_down_blocks_0_resnets_0_norm1", "unet_input_blocks_1_0_in_layers_0"),
        ("unet_conv_norm_out", "unet_out_0"),
    ),
    "a wrapper of LyCORIS": renamed(("^lora_(unet|te)_", "lycoris_")),
    "one text": renamed(("^lora_te_", "lora_te1_")),
    "ComfyUI": renamed(
        ("^lora_unet_", "diffusion_model."), ("^lora_te_text_model_", "text_encoders.clip_l.transformer.text_model.")
    ),
    "PEFT": renamed(("^lora_unet_", "base_model.model.unet."), ("^lora_te_", "base_model.model.text_encoder.")),
}


@pytest.mark.parametrize("case", ["DoRA", "LoHa", "LoKr", "LoCon", "full", "norms"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_kind_in_every_naming(naming: str, case: str, tmp_path: Path) -> None:
    tensors = {NAMINGS[naming](name): tensor for name, tensor in lora_of(case).items()}
    assert tensors.keys() != lora_of(case).keys()
    unet, towers = tiny_model("sd1")
    merge(write(tmp_path, tensors), CASES[case]["scale"], unet, towers)
    assert_merged(case, unet, towers)


@pytest.mark.parametrize("case", ["LoHa", "LoKr", "LoCon", "DoRA", "full", "norms"])
def test_kinds_add_up_and_the_parameters_are_replaced(case: str, tmp_path: Path) -> None:
    """Half of a scale twice is the scale, but for DoRA."""
    file, (unet, towers) = write(tmp_path, lora_of(case)), tiny_model("sd1")
    parameters = [*unet.parameters(), *(p for tower in towers for p in tower.parameters())]
    before = [parameter.clone() for parameter in parameters]
    for _ in range(2):
        merge(file, CASES[case]["scale"] / 2, unet, towers)
    assert all(map(torch.equal, parameters, before))  # not in place: they may be shared
    if case == "DoRA":
        with pytest.raises(AssertionError, match="relative error"):
            assert_merged(case, unet, towers)
    else:
        assert_merged(case, unet, towers)


@pytest.mark.parametrize("shape", [(20, 32, 32, 40, 8, 3), (2, 3, 5, 7, 1, 3), (1, 4, 6, 1, 2, 1), (3, 1, 1, 2, 1, 5)])
def test_products_of_many_shapes(shape: tuple[int, ...]) -> None:
    """LoKr, LoHa and LoCon of a convolution, by torch's own products. The memory is not in the order of the sides."""
    a, c, b, d, rank, kernel = shape
    kinds = {kind.name: kind.change for kind in KINDS}
    core, rows, columns = noise(rank, rank, kernel, kernel), noise(rank, b, seed=1), noise(rank, d, seed=2)
    want = torch.einsum("ijhw,ib,jd->bdhw", core, rows, columns).contiguous()  # torch.kron needs it
    tensors = {"lokr_w1": noise(a, c, seed=3), "lokr_t2": core, "lokr_w2_a": rows, "lokr_w2_b": columns}
    assert_close(kinds["LoKr"](tensors), torch.kron(tensors["lokr_w1"][:, :, None, None], want), 1e-5)
    halves = {
        f"hada_{role}": t for i in (1, 2) for role, t in ((f"t{i}", core), (f"w{i}_a", rows), (f"w{i}_b", columns))
    }
    assert_close(kinds["LoHa"](halves), want * want, 1e-5)
    locon = {"mid": core, "up": rows.T[:, :, None, None], "down": columns[:, :, None, None]}
    assert_close(kinds["LoRA"](locon), want, 1e-5)


def test_dora_takes_the_weights_that_it_finds(tmp_path: Path) -> None:
    """Two, one after another, in float64: each gives its norms to what was there and its own change."""
    unet, _ = tiny_model("sd1")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    stem = f"lora_unet_{layer.replace('.', '_')}"
    want = unet.get_submodule(layer).weight.double()
    for seed in (0, 10):
        (down, up), norms = halves(want.float(), seed=seed), noise(len(want), 1, seed=seed + 5).abs()
        merge(write(tmp_path, kohya(stem, down, up, 3.0) | {f"{stem}.dora_scale": norms}), 1.0, unet, [])
        want = want + up.double() @ down.double()
        want = want / want.norm(dim=1, keepdim=True) * norms
    assert_close(unet.get_submodule(layer).weight, want, 1e-6)


def test_a_lora_with_a_difference_of_a_bias(tmp_path: Path) -> None:
    unet, _ = tiny_model("sd1")
    layer = unet.get_submodule("down_blocks.0.attentions.0.proj_in")
    down, up = halves(layer.weight)
    weight, bias = layer.weight + 0.5 * product(down, up), layer.bias + 0.5 * noise(*layer.bias.shape)
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    merge(write(tmp_path, kohya(stem, down, up) | {f"{stem}.diff_b": noise(*layer.bias.shape)}), 0.5, unet, [])
    assert_close(layer.weight, weight, 1e-6)
    assert_close(layer.bias, bias, 1e-6)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 1),
        ({"unet.lora_alpha": 6}, 2),
        ({"text_encoder.lora_alpha": 6}, 1),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 12}}, 4),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {f"^{UNET}": 12}}, 4),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"to_k": 12, "o_q": 9}}, 2),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {".*attn1.*to_(q|k)": 12, "to_q": 9}}, 4),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {r"down_blocks\.\d+\..+to_q": 12}}, 4),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_": 12, "^to_q": 9, "n1.to_q": 9}}, 2),
        ({"unet.lora_alpha": 6, "unet.r": 5, "unet.rank_pattern": {"to_q": 3}}, 2),
        ({"unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / math.sqrt(3)),
        ({"unet.r": 3}, 8 / 3),
    ],
    ids=str,
)
def test_alpha_in_the_metadata(config: dict[str, object], factor: float, unet: UNet, tmp_path: Path) -> None:
    before = unet.get_submodule(UNET).weight
    down, up = halves(before)
    tensors = {f"unet.{UNET}.lora_A.weight": down, f"unet.{UNET}.lora_B.weight": up}
    merge(write(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)}), 1.0, unet, [])
    assert_close(unet.get_submodule(UNET).weight, before + factor * product(down, up), 1e-6)


@pytest.mark.parametrize(
    ("text_", "words"),
    [
        ("{", "not the JSON of"),
        ("[" * 100_000, "not the JSON of"),
        ("[1]", "not the JSON of"),
        ('{"unet.lora_alpha": "x"}', "the alpha 'x'"),
        ('{"unet.lora_alpha": NaN}', "the alpha nan"),
        ('{"unet.lora_alpha": 1e10}', "the alpha 10000000000.0"),
        ('{"unet.lora_alpha": null}', "the alpha None"),
        ('{"unet.alpha_pattern": {"(a+)+": 3}}', "the pattern '(a+)+'"),
        ('{"unet.alpha_pattern": {"a*b*c*": 3}}', "the pattern 'a*b*c*'"),
        ('{"unet.alpha_pattern": {"(to_q": 3}}', "the pattern '(to_q'"),
        ('{"unet.alpha_pattern": {"": 3}}', "the pattern ''"),
        (json.dumps({"unet.alpha_pattern": {f"a*{i}": 3 for i in range(51)}}), "the pattern 'a*0'"),
        (json.dumps({"unet.alpha_pattern": {f"a{i}": 3 for i in range(5001)}}), "alpha_pattern is not"),
        ('{"unet.alpha_pattern": 3}', "alpha_pattern is not"),
        ('{"unet.r": 4}', f"the rank 4 for unet.{UNET}: its tensors have 3"),
        ('{"unet.r": 8, "unet.rank_pattern": {"to_q": 2}}', "the rank 2"),
        ('{"unet.r": "3"}', "the rank '3'"),
        ('{"unet.use_dora": true}', "has no lora_magnitude_vector"),
        ('{"unet.peft_type": "OFT"}', "peft_type = 'OFT', which zs2 does not merge"),
        ('{"unet.bias": "all"}', "bias = 'all'"),
        ('{"unet.init_lora_weights": "pissa_niter_4"}', "init_lora_weights = 'pissa_niter_4'"),
        ('{"unet.modules_to_save": ["conv_in"]}', "modules_to_save = ['conv_in']"),
    ],
)
def test_bad_metadata(text_: str, words: str, loaded: ZS2, tmp_path: Path) -> None:
    down, up = halves(loaded.unet.get_submodule(UNET).weight)
    tensors = {f"unet.{UNET}.lora_A.weight": down, f"unet.{UNET}.lora_B.weight": up}
    with pytest.raises(InputError) as error:
        merge(write(tmp_path, tensors, {"lora_adapter_metadata": text_}), 1.0, loaded.unet, [])
    assert words in str(error.value)


# --- files that do not fit --------------------------------------------------------------------------------------------

D, U, A = (f"{KOHYA[0]}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha"))
Change = Callable[[Tensors], object]


def xl(tensors: Tensors) -> None:
    """A LoRA of Stable Diffusion XL: other layers, a wider text."""
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"
    tensors |= kohya(stem, noise(4, 2048), noise(640, 4))


def sd1(tensors: Tensors) -> None:
    """A LoRA of Stable Diffusion 1: the layers are here too, but of other sizes."""
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors |= kohya(stem, noise(4, 768), noise(320, 4))


def replace(tensors: Tensors, **roles: Tensor) -> None:
    """Put other tensors in the place of the UNet's LoRA."""
    for name in (D, U, A):
        del tensors[name]
    tensors |= {f"{KOHYA[0]}.{role}": tensor for role, tensor in roles.items()}


WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no up": (lambda t: t.pop(U), (D, "no up matrix")),
    "no down": (lambda t: t.pop(D), (U, "no down matrix")),
    "alpha alone": (lambda t: (t.pop(D), t.pop(U)), (A, "no down matrix")),
    "wide": (
        lambda t: t.update({D: noise(3, 99)}),
        (D, "(3, 99)", f"({WIDTH}, 3)", f"({WIDTH}, {WIDTH})", f"unet.{UNET}"),
    ),
    "tall": (lambda t: t.update({U: noise(99, 3)}), (D, "(99, 3)", f"({WIDTH}, {WIDTH})")),
    "ranks": (lambda t: t.update({U: noise(WIDTH, 4)}), (D, f"(3, {WIDTH})", f"({WIDTH}, 4)")),
    "rank 0": (lambda t: t.update({D: noise(0, WIDTH), U: noise(WIDTH, 0)}), (D, f"(0, {WIDTH})")),
    "a number": (lambda t: t.update({D: torch.tensor(1.0)}), (D, "()")),
    "a vector": (lambda t: t.update({U: noise(WIDTH)}), (D, f"({WIDTH},)")),
    "3×3 for a linear layer": (lambda t: t.update({D: noise(3, WIDTH, 3, 3)}), (D, f"(3, {WIDTH}, 3, 3)")),
    "two alphas": (lambda t: t.update({A: torch.ones(2)}), (A, "one number")),
    "whole numbers": (lambda t: t.update({D: torch.ones(3, WIDTH, dtype=torch.int8)}), (D, "int8", "floating point")),
    "NaN": (lambda t: t[D].fill_(math.nan), (D, "not finite")),
    "infinite alpha": (lambda t: t.update({A: torch.tensor(math.inf)}), (A, "not finite")),
    "unknown layer": (
        lambda t: t.update(kohya("lora_unet_double_blocks_0_img_attn_proj", noise(1, 2), noise(2, 1))),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "fits no layer of this unet"),
    ),
    "a block of many digits": (
        lambda t: t.update(kohya(f"lora_unet_input_blocks_{'1' * 5000}_1_proj_in", noise(1, 2), noise(2, 1))),
        ("lora_unet_input_blocks_111", "fits no layer of this unet"),
    ),
    "unknown part": (
        lambda t: t.update(kohya("transformer.blocks.0.to_q", noise(1, 2), noise(2, 1))),
        ("transformer.blocks.0.to_q", "fits no layer of this model (unet, text_encoder)"),
    ),
    "second tower": (
        lambda t: t.update(kohya(f"text_encoder_2.{TEXT}", noise(1, 192), noise(192, 1))),
        ("text_encoder_2", "this model (unet, text_encoder)"),
    ),
    "one layer twice": (
        lambda t: t.update(kohya(f"unet.{UNET}", noise(3, WIDTH), noise(WIDTH, 3))),
        (f"unet.{UNET}.lora_down.weight", D, "the same layer"),
    ),
    "rank 20000": (
        lambda t: t.update(
            {D: torch.zeros(1, WIDTH).expand(20000, WIDTH), U: torch.zeros(WIDTH, 1).expand(WIDTH, 20000)}
        ),
        (D, "the rank is 20000, expected at most 16384"),
    ),
    "complex alpha": (lambda t: t.update({A: torch.tensor(1j)}), (A, "complex64")),
    "a norm": (
        lambda t: t.update({"lora_unet_conv_norm_out.w_norm": noise(FIRST - 1)}),
        (f"norm_out.w_norm ({FIRST - 1},)", f"({FIRST},)"),
    ),
    "a norm's bias": (
        lambda t: t.update({"lora_unet_conv_norm_out.b_norm": noise(FIRST - 1)}),
        (f"({FIRST - 1},)", f"has a bias ({FIRST},)"),
    ),
    "a norm of a linear layer": (
        lambda t: replace(t, w_norm=noise(WIDTH)),
        (f"w_norm ({WIDTH},) does not fit", f"({WIDTH}, {WIDTH})"),
    ),
    "a LoRA of a norm": (
        lambda t: t.update(kohya("lora_unet_conv_norm_out", noise(3, FIRST), noise(FIRST, 3))),
        ("lora_unet_conv_norm_out.lora_down.weight", f"unet.conv_norm_out, whose weight is ({FIRST},)"),
    ),
    "a bias": (lambda t: t.update({f"{KOHYA[0]}.lora_up.bias": noise(WIDTH)}), ("lora_up.bias is a LoRA with a bias",)),
    "a bias that is not there": (lambda t: t.update({f"{KOHYA[0]}.diff_b": noise(WIDTH)}), ("diff_b", "has no bias")),
    "two biases": (
        lambda t: t.update({f"{KOHYA[0]}.diff_b": noise(WIDTH), f"{KOHYA[0]}.b_norm": noise(WIDTH)}),
        ("diff_b", "b_norm are for the same layer"),
    ),
    "DoRA": (
        lambda t: t.update({f"{KOHYA[0]}.dora_scale": noise(WIDTH - 1, 1)}),
        (f"dora_scale ({WIDTH - 1}, 1) does not fit",),
    ),
    "DoRA in a square": (lambda t: t.update({f"{KOHYA[0]}.dora_scale": noise(16, 12)}), ("dora_scale (16, 12)",)),
    "DoRA, nothing": (lambda t: t.update({f"{KOHYA[0]}.dora_scale": torch.zeros(())}), ("dora_scale ()",)),
    "DoRA alone": (lambda t: replace(t, dora_scale=noise(WIDTH, 1)), ("dora_scale has no down matrix",)),
    "DoRA of PEFT": (
        lambda t: t.update({f"unet.{UNET}.lora_magnitude_vector": noise(WIDTH + 1)}),
        (f"lora_magnitude_vector ({WIDTH + 1},)",),
    ),
    "DoRA twice": (
        lambda t: t.update(
            {f"unet.{UNET}.lora_magnitude_vector": noise(WIDTH), f"{KOHYA[0]}.dora_scale": noise(WIDTH, 1)}
        ),
        (f"dora_scale ({WIDTH}, 1)", "DoRA has one number a row"),
    ),
    "DoRA of a difference": (
        lambda t: replace(t, diff=noise(WIDTH, WIDTH), dora_scale=noise(WIDTH, 1)),
        (f"dora_scale ({WIDTH}, 1)", "full difference"),
    ),
    "LoRA and LoHa": (lambda t: t.update({f"{KOHYA[0]}.hada_w1_a": noise(WIDTH, 1)}), (D, "hada_w1_a", "same layer")),
    "LoHa": (
        lambda t: replace(t, hada_w1_a=noise(WIDTH, 1), hada_w1_b=noise(1, WIDTH), hada_w2_a=noise(WIDTH, 1)),
        ("hada_w1_a has no hada_w2_b",),
    ),
    "LoHa, a core": (
        lambda t: replace(
            t, hada_w1_a=noise(1, WIDTH), hada_w1_b=noise(1, WIDTH),
            hada_w2_a=noise(1, WIDTH), hada_w2_b=noise(1, WIDTH),
            hada_t1=noise(1, 1, 3, 3),
        ),
        ("hada_t1 has no hada_t2",),
    ),
    "LoHa, other ranks": (
        lambda t: replace(
            t, hada_w1_a=noise(WIDTH, 1), hada_w1_b=noise(1, WIDTH),
            hada_w2_a=noise(WIDTH, 2), hada_w2_b=noise(2, WIDTH)
        ),
        (f"hada_w1_a ({WIDTH}, 1)", f"hada_w2_b (2, {WIDTH}) do not fit"),
    ),
    "LoHa, the other way round": (
        lambda t: replace(
            t, hada_w1_a=noise(HALF, 1), hada_w1_b=noise(1, 2 * WIDTH),
            hada_w2_a=noise(HALF, 1), hada_w2_b=noise(1, 2 * WIDTH)
        ),
        (f"hada_w1_b (1, {2 * WIDTH})", f"({WIDTH}, {WIDTH})"),
    ),
    "LoKr": (
        lambda t: replace(t, lokr_w1=noise(2, 2), lokr_w2=noise(HALF, HALF - 1)),
        (f"lokr_w2 ({HALF}, {HALF - 1})", f"({WIDTH}, {WIDTH})"),
    ),
    "LoKr, half": (lambda t: replace(t, lokr_w1=noise(2, 2)), ("lokr_w1 has no lokr_w2 with it",)),
    "LoKr, a factor twice": (
        lambda t: replace(t, lokr_w1=noise(2, 2), lokr_w1_a=noise(2, 1), lokr_w2=noise(HALF, HALF)),
        ("lokr_w1 (2, 2), ", "lokr_w1_a (2, 1)", "are for the same layer"),
    ),
    "LoKr, vast": (
        lambda t: replace(
            t,
            lokr_w1=torch.zeros(1, 1).expand(2000, 2000),
            lokr_w2_a=torch.zeros(1, 1).expand(2000, 1),
            lokr_w2_b=torch.zeros(1, 1).expand(1, 2000),
        ),
        ("lokr_w1 (2000, 2000)", "do not fit"),
    ),
    "LoKr, a vector": (lambda t: replace(t, lokr_w1=noise(2), lokr_w2=noise(HALF, HALF)), ("lokr_w1 (2,)",)),
    "LoKr, a core of the first": (
        lambda t: replace(t, lokr_t1=noise(1, 1, 3, 3)), ("lokr_t1 is a LoKr whose first factor is a convolution",),
    ),
    "LoCon": (lambda t: t.update({f"{KOHYA[0]}.lora_mid.weight": noise(3, 3, 3, 3)}), ("lora_mid.weight (3, 3,",)),
    "LoCon, other ranks": (
        lambda t: t.update({f"{KOHYA[0]}.lora_mid.weight": noise(4, 3)}), ("lora_mid.weight (4, 3)", "do not fit"),
    ),
    "a whole difference": (
        lambda t: replace(t, diff=noise(WIDTH, WIDTH - 1)),
        (f"diff ({WIDTH}, {WIDTH - 1}) does not fit", f"({WIDTH}, {WIDTH})"),
    ),
    **{
        f"{name} by name": (
            lambda t, tensor=tensor: t.update({f"{KOHYA[0]}.{tensor}": noise(WIDTH, 1)}),
            (f"{KOHYA[0]}.{tensor} is {name}", "expected one of LoRA, LoHa, LoKr"),
        )
        for tensor, name in (
            ("oft_blocks", "OFT or BOFT"), ("oft_diag", "OFT or BOFT"), ("oft_R", "OFT or BOFT"),
            ("boft_R", "OFT or BOFT"), ("on_input", "IA³"), ("ia3_l", "IA³"), ("a1.weight", "GLoRA"),
            ("bm.weight", "GLoRA"), ("lambda_layer", "T-LoRA"), ("lora_E", "AdaLoRA"), ("vera_lambda_b", "VeRA"),
            ("lora_embedding_A", "a LoRA of an embedding"), ("set_weight", "a weight that replaces the model's"),
            ("reshape_weight", "a change of a weight's shape"), ("scalar", "a scale other than alpha"),
        )
    },
    "XL": (xl, ("lora_unet_input_blocks_4_1", "Stable Diffusion XL with text 2048 wide", "text 192 wide")),
    "SD 1": (sd1, ("(4, 768)", "Stable Diffusion 1.x with text 768 wide", "text 192 wide")),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit(case: str, loaded: ZS2, tmp_path: Path) -> None:
    change, words = WRONG[case]
    tensors = kohya(KOHYA[1], *halves(noise(192, 192))) | kohya(KOHYA[0], *halves(noise(WIDTH, WIDTH)), 2.0)
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    unet, text = loaded.unet, loaded.text_encoder
    weights = [unet.get_submodule(UNET).weight, text.text_model.get_submodule(TEXT).weight]
    before, copies = [*unet.parameters(), *text.parameters()], [weight.clone() for weight in weights]
    with pytest.raises(InputError) as error:
        merge(write(tmp_path, tensors), 1.0, unet, [text])
    message = str(error.value)
    assert message.startswith("style.safetensors: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    # all or nothing: neither replaced, nor changed in place
    assert all(was is now for was, now in zip(before, [*unet.parameters(), *text.parameters()], strict=True))
    assert all(map(torch.equal, weights, copies))


@pytest.mark.parametrize(("dtype", "alpha"), [(torch.float32, 1e38), (torch.float16, 1e6)], ids=str)
def test_a_merged_weight_is_finite(dtype: torch.dtype, alpha: float, unet: UNet, tmp_path: Path) -> None:
    down, up = halves(noise(WIDTH, WIDTH))
    with pytest.raises(InputError, match=rf"style\.safetensors: merged, the weight of unet\.{UNET} is not finite in "):
        merge(write(tmp_path, kohya(KOHYA[0], 100 * down, up, alpha)), 1.0, copy.deepcopy(unet).to(dtype), [])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("unet", r"a UNet of a folder \(\d+ tensors\): give the folder that it is of"),
        ("vae", r"a VAE \(\d+ tensors\): give a model, and this as its --vae"),
        ("text_encoder", r"a text encoder of a folder \(\d+ tensors\): give the folder that it is of"),
    ],
)
def test_a_model_is_not_a_lora(part: str, words: str, unet: UNet, tmp_path: Path) -> None:
    file = next((CHECKPOINT / part).glob("*.safetensors"))
    shutil.copy(file, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=rf"part\.safetensors is not a LoRA: it has {words}$"):
        merge(tmp_path / "part.safetensors", 1.0, unet, [])


def test_files_that_are_not_even_safetensors(unet: UNet, tmp_path: Path) -> None:
    whole = write(tmp_path, kohya(KOHYA[0], *halves(noise(WIDTH, WIDTH)))).read_bytes()
    for name, content, words in (
        ("cut", whole[:-5], "not a whole safetensors file"),
        ("pickle", b"PK\x03\x04" + bytes(40), "pickle"),
        ("empty", b"", "not a whole safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            merge(tmp_path / name, 1.0, unet, [])
    for missing in ("nowhere.safetensors", "n" * 5000):
        with pytest.raises(InputError, match="no such LoRA"):
            merge(tmp_path / missing, 1.0, unet, [])
    with pytest.raises(InputError, match="is not a LoRA: no tensor"):
        merge(write(tmp_path, {}), 1.0, unet, [])


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_is_finite(scale: float, unet: UNet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the scale is {scale}"):
        merge(write(tmp_path, kohya(KOHYA[0], *halves(noise(WIDTH, WIDTH)))), scale, unet, [])


# --- names and arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "want"),
    [
        (D, True),
        (f"unet.{UNET}.lora_A.weight", True),
        (f"{UNET}.processor.to_q_lora.down.weight", True),
        (f"text_encoder.{TEXT}.lora_linear_layer.up.weight", True),
        (f"{KOHYA[0]}.hada_w1_a", True),
        ("lycoris_unet_x.lokr_w1", True),
        (f"unet.{UNET}.lora_magnitude_vector", True),
        ("unet.conv_norm_out.w_norm", True),
        ("unet.conv_norm_out.b_norm", True),
        (f"unet.{UNET}.diff", True),
        (f"unet.{UNET}.diff_b", True),
        (f"unet.{UNET}.oft_blocks", True),
        (f"unet.{UNET}.on_input", True),
        (f"unet.{UNET}.a1.weight", True),
        ("bundle_emb.toy.string_to_param.*", True),
        ("string_to_param.*", False),
        (f"unet.{UNET}.bias", False),
        ("unet.conv_norm_out.weight", False),
        (f"{UNET}.weight", False),
        ("model.diffusion_model.input_blocks.0.0.weight", False),
        ("first_stage_model.decoder.conv_in.weight", False),
        ("flora.weight", False),
    ],
)
def test_is_lora(name: str, want: bool) -> None:
    assert is_lora(["other.weight", name]) is want
    assert not is_lora([])


@pytest.mark.parametrize(
    ("text_", "want"),
    [
        ("style.safetensors", ("style.safetensors", 1.0)),
        ("style.safetensors:0.8", ("style.safetensors", 0.8)),
        ("style:-1", ("style", -1.0)),
        ("style:1e-1", ("style", 0.1)),
        ("loras/style.safetensors:0", ("loras/style.safetensors", 0.0)),
        ("C:\\loras\\style.safetensors", ("C:\\loras\\style.safetensors", 1.0)),
        ("C:/loras/style", ("C:/loras/style", 1.0)),
        ("C:\\loras\\style.safetensors:0.5", ("C:\\loras\\style.safetensors", 0.5)),
        ("a:b.safetensors", ("a:b.safetensors", 1.0)),
        ("a:b.SAFETENSORS:2", ("a:b.SAFETENSORS", 2.0)),
        ("a:1/style:2", ("a:1/style", 2.0)),
    ],
)
def test_parse(text_: str, want: tuple[str, float]) -> None:
    assert parse(text_) == (Path(want[0]), want[1])


def test_parse_prefers_a_file_of_this_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("style:2").touch()
    assert parse("style:2") == (Path("style:2"), 1.0)
    assert parse("style:3") == (Path("style"), 3.0)


@pytest.mark.parametrize("text_", ["", ":", ":0.5", "style:", "style:strong", "style:nan", "style:inf", "style:0.5:x"])
def test_parse_refuses(text_: str) -> None:
    with pytest.raises(InputError, match="expected FILE or FILE:SCALE"):
        parse(text_)
