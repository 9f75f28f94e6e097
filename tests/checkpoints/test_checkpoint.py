"""Loading a checkpoint from real files: where they lie, how they are named and cut, and everything wrong with them."""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, LAM, LATENTS, VOCABULARY, write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.locate import refuse_pickle
from zs2.errors import InputError
from zs2.models.tokenizer import Tokenizer

PROMPT = "red apple on a sky blue background"
WIDTHS = json.loads((CHECKPOINT / "unet" / "config.json").read_text())["block_out_channels"]
LEVELS, EPSILON = len(WIDTHS), {"prediction_type": "epsilon"}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def original() -> ZS2:
    return load(CHECKPOINT)


def load(folder: str | Path, **options: Any) -> ZS2:
    return ZS2.from_pretrained(folder, device="cpu", **options)


def weights(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors"


def write(path: Path, content: dict[str, Tensor] | bytes) -> None:
    """Replace a file, whatever it is a link to."""
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)


def change(folder: Path, part: str, how: Change) -> None:
    """Change the tensors of a part."""
    tensors = load_file(weights(folder, part))
    how(tensors)
    write(weights(folder, part), tensors)


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def config(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def split(folder: Path, part: str, variant: str = "") -> list[Path]:
    """Cut the weights of a part into two shards and an index, named as diffusers and transformers name them."""
    whole, stem = weights(folder, part), STEMS[part] + variant
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = [folder / part / f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for shard, half in zip(shards, halves, strict=True):
        write(shard, {name: tensors[name] for name in half})
    index = {name: shard.name for shard, half in zip(shards, halves, strict=True) for name in half}
    file = folder / part / f"{STEMS[part]}.safetensors.index{variant}.json"
    file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    whole.unlink()
    return shards


def assert_same(got: ZS2, want: ZS2) -> None:
    """Assert that two models have the same weights, to the bit, and make the same latents of them."""
    for part in STEMS:
        a, b = getattr(got, part).state_dict(), getattr(want, part).state_dict()
        assert a.keys() == b.keys()
        assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []
    variants = (model.variant(lam=LAM) for model in (got, want))  # of the copy's and the checkpoint's own settings
    assert torch.equal(*(model.latents(PROMPT, frames=2, steps=1, guidance=5.0) for model in variants))


def refused(folder: str | Path, *words: str, alone: str = "") -> None:
    """Assert that nothing can be sampled from a folder, for a reason told in one line that has these words.

    alone: load no more than this part, for speed.
    """
    arguments = ("tma", 0.98) if alone == "unet" else ()
    with pytest.raises(InputError) as caught:
        getattr(Checkpoint(folder), alone)(*arguments) if alone else load(folder)(PROMPT, frames=1, steps=1)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700, message
    for word in words:
        assert word in message


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", STEMS)
def test_the_parameters_are_the_tensors_of_the_file(original, part):
    module, tensors = getattr(original, part), load_file(weights(CHECKPOINT, part))
    state = module.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.float())
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16])
@pytest.mark.long
def test_the_dtype_is_that_of_the_networks_and_the_vae_is_float32_for_float16(original, dtype):
    model = load(CHECKPOINT, dtype=dtype)
    want = getattr(torch, str(dtype).removeprefix("torch."))
    for part in STEMS:
        wanted = torch.float32 if (part, dtype) == ("vae", "float16") else want  # which some VAEs overflow
        for name, tensor in getattr(model, part).state_dict().items():
            assert torch.equal(tensor, getattr(original, part).state_dict()[name].to(wanted)), name
            assert tensor.dtype == wanted
    assert model.dtype == want
    pixels = torch.zeros(1, 3, 16, 16)
    assert model.vae.decode(model.vae.encode(pixels)).dtype == model.vae.encode(pixels).dtype == torch.float32


def test_nothing_is_drawn_at_random():
    before = torch.get_rng_state()
    load(CHECKPOINT)
    assert torch.equal(torch.get_rng_state(), before)


def test_converted_convolutions_of_the_unet_are_channels_last(original):
    """They make its feature maps so; the VAE would lose a digit by it, in float32."""
    half = Checkpoint(CHECKPOINT, torch.bfloat16)
    for network in (original.unet, half.unet("tma", 0.98), half.vae()):
        convolutions = [w for w in network.parameters() if w.ndim == 4]
        assert convolutions
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    assert all(w.is_contiguous() for w in original.vae.parameters())
    text = torch.randn(1, 4, original.unet.config.cross_attention_dim)
    out = original.unet(torch.randn(2, *LATENTS), 500, text, frames=2)
    assert out.prediction.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("part", "dtype"), [("vae", "float32"), ("unet", "float16"), ("text_encoder", "float16")])
def test_weights_in_their_files_dtype_are_the_mapped_file_itself(folder, part, dtype, sharded):
    if part == "vae":  # always computed in float32, so a file of float32 is what can be mapped
        stored = {name: tensor.float() for name, tensor in load_file(weights(folder, part)).items()}
        weights(folder, part).unlink()
        save_file(stored, weights(folder, part))
    files = split(folder, part) if sharded else [weights(folder, part)]
    model = load(folder, dtype=dtype)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, path = line.split(maxsplit=5)
        if path in {str(file.resolve()) for file in files}:
            mapped.append([int(end, 16) for end in place.split("-")])
    for name, parameter in getattr(model, part).named_parameters():
        first, last = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
        assert any(start <= first and last <= end for start, end in mapped), name


def test_digests_are_those_of_the_files(folder):
    shards = split(folder, "vae")
    digests = Checkpoint(folder).digests
    assert digests["unet"] == hashlib.sha256(weights(CHECKPOINT, "unet").read_bytes()).hexdigest()
    assert digests["vae"] == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()


# --- where it is looked for -------------------------------------------------------------------------------------------


def test_a_folder_here_comes_before_the_one_beside_the_package(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = Checkpoint(DEFAULT_MODEL).digests
    assert beside == Checkpoint(CHECKPOINT).digests
    change(folder, "vae", lambda tensors: tensors["decoder.conv_out.bias"].add_(1))
    Path("weights").mkdir()
    folder.rename(DEFAULT_MODEL)
    here = Checkpoint(DEFAULT_MODEL).digests
    assert [part for part in here if here[part] != beside[part]] == ["vae"]


@pytest.mark.parametrize("name", ["no/such/model", "emoji65", "a" * 300])
def test_no_such_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^no such model: '.*': expected a folder in the diffusers layout"):
        Checkpoint(name)


@pytest.mark.parametrize("part", STEMS)
def test_a_file_of_one_part_is_no_model(folder, part):
    refused(weights(folder, part), weights(folder, part).name)


@pytest.mark.parametrize("part", [*STEMS, "tokenizer", "scheduler"])
def test_a_folder_without_a_part(folder, part):
    shutil.rmtree(folder / part)
    refused(folder, f"is not a model folder: it has no {part}/")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "is not a model folder", "unet/, vae/, text_encoder/, tokenizer/, scheduler/")


@pytest.mark.parametrize("ending", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
def test_a_pickle_is_no_model(tmp_path, ending):
    file = tmp_path / f"model{ending}"
    torch.save({"weight": torch.zeros(1)}, file)
    refused(file, f"model{ending} is a pickle", "convert", "safetensors")
    assert refuse_pickle(file).count(file.name) == 1


# --- variants and shards ----------------------------------------------------------------------------------------------


def test_a_variant_is_found_by_its_name(folder, original):
    for part in STEMS:
        file = weights(folder, part)
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert_same(load(folder), original)


@pytest.mark.parametrize("variant", [".fp16.safetensors", ".safetensors.index.fp16.json"])
@pytest.mark.parametrize(("dtype", "plain"), [("float32", True), ("float16", False), ("bfloat16", False)])
def test_of_a_file_and_its_variant_the_one_nearer_the_dtype_is_taken(folder, variant, dtype, plain):
    tensors = load_file(weights(folder, "text_encoder"))
    if variant.endswith(".json"):
        split(folder, "text_encoder", ".fp16")
    else:
        weights(folder, "text_encoder").rename(folder / "text_encoder" / f"model{variant}")
    write(weights(folder, "text_encoder"), {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    loaded = load(folder, dtype=dtype).text_encoder.state_dict()
    assert all(not tensor.any() for tensor in loaded.values()) == plain


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards(folder, original, variant):
    for part in STEMS:
        split(folder, part, variant)
    assert_same(load(folder), original)


def test_a_missing_shard(folder):
    shard = split(folder, "vae")[1]
    shard.unlink()
    refused(folder, "index.json", f"names {shard.name}, which is not there", "download", alone="vae")


def test_a_shard_without_a_tensor_of_the_index(folder):
    shard = split(folder, "vae")[0]
    tensors = load_file(shard)
    del tensors["decoder.conv_in.bias"]
    write(shard, tensors)
    refused(folder, "vae", "1 tensor missing: decoder.conv_in.bias (128,)", alone="vae")


def test_a_tensor_in_two_shards(folder):
    first, second = split(folder, "vae")
    name, tensor = next(iter(load_file(first).items()))
    write(second, load_file(second) | {name: tensor})
    refused(folder, second.name, f"repeats {name}", alone="vae")


def test_a_broken_shard(folder):
    shard = split(folder, "vae")[1]
    write(shard, shard.read_bytes()[:-1])
    refused(folder, f"vae/{shard.name}", "not a whole safetensors file", alone="vae")


@pytest.mark.parametrize(
    "name", ["../vae/../outside.safetensors", "../outside.safetensors", "/outside.safetensors", "in/side.safetensors"]
)
def test_an_index_that_names_a_file_elsewhere(folder, name):
    """Such a file is not opened, even where it exists."""
    split(folder, "vae")[0].rename(folder / "outside.safetensors")
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder.conv_in.weight": name}}))
    refused(folder, index.name, name, "beside", alone="vae")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model-00001-of-00002.bin", "config.json", "..", ""])
def test_an_index_that_names_something_else_than_safetensors(folder, name):
    split(folder, "vae")
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder.conv_in.weight": name}}))
    refused(folder, index.name, name, "expected safetensors files", alone="vae")


@pytest.mark.parametrize(
    "text", ["{}", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(folder, text):
    split(folder, "vae")
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    refused(folder, "diffusion_pytorch_model.safetensors.index.json", alone="vae")


# --- the names of older files -----------------------------------------------------------------------------------------


def without_prefix(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("text_model.")]:
        tensors[name.removeprefix("text_model.")] = tensors.pop(name)


def with_position_ids(tensors: dict[str, Tensor]) -> None:
    tensors["text_model.embeddings.position_ids"] = torch.arange(32)[None]


def with_position_ids_without_prefix(tensors: dict[str, Tensor]) -> None:
    without_prefix(tensors)
    tensors["embeddings.position_ids"] = torch.arange(32)[None]


def with_old_attention(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".attentions.0.to_" in name]:
        old = name
        for today, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            old = old.replace(f".{today}.", f".{before}.")
        tensors[old] = tensors.pop(name)
    assert sum(".proj_attn." in name for name in tensors) == 4


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("text_encoder", without_prefix),
        ("text_encoder", with_position_ids),
        ("text_encoder", with_position_ids_without_prefix),
    ],
)
def test_older_names_give_the_same_model(folder, original, part, how):
    change(folder, part, how)
    model = load(folder)
    assert_same(model, original)
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    assert torch.equal(model.vae.encode(pixels), original.vae.encode(pixels))


def test_older_names_of_a_vae_s_attention_give_the_same_model(tmp_path):
    original = load(write_tiny(tmp_path / "new", "sd")).vae
    folder = write_tiny(tmp_path / "old", "sd")
    change(folder, "vae", with_old_attention)
    vae = load(folder).vae
    assert all(map(torch.equal, vae.state_dict().values(), original.state_dict().values()))
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    assert torch.equal(vae.encode(pixels), original.encode(pixels))


def test_a_text_encoder_without_projection(folder, original):
    change(folder, "text_encoder", lambda tensors: tensors.pop("text_projection.weight"))
    model = load(folder)
    assert model.text_encoder.text_projection is None
    request = {"frames": 1, "steps": 1, "guidance": 5.0}
    assert torch.equal(model.latents(PROMPT, **request), original.latents(PROMPT, **request))


def test_two_names_of_one_tensor(folder):
    """Which of the two would count? Neither, silently."""
    name = "embeddings.token_embedding.weight"
    change(folder, "text_encoder", lambda tensors: tensors.update({name: torch.zeros(VOCABULARY, 192)}))
    refused(folder, name)


# --- tensors that do not fit ------------------------------------------------------------------------------------------

TENSORS = [
    ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"),
    ("vae", "decoder.mid_block.resnets.0.conv1.bias"),
    ("text_encoder", "text_model.final_layer_norm.weight"),
]
parts = pytest.mark.parametrize(("part", "name"), TENSORS, ids=list(STEMS))


@parts
def test_a_missing_tensor(folder, part, name):
    change(folder, part, lambda tensors: tensors.pop(name))
    shape = tuple(load_file(weights(CHECKPOINT, part))[name].shape)
    refused(folder, part, f"1 tensor missing: {name} {shape}", alone=part)


@parts
def test_an_extra_tensor(folder, part, name):
    extra = name.replace(".0.", ".7.") + "_extra"
    change(folder, part, lambda tensors: tensors.update({extra: torch.zeros(1)}))
    refused(folder, part, f"1 tensor not expected: {extra}", alone=part)


@parts
def test_a_misshapen_tensor(folder, part, name):
    change(folder, part, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    shape = tuple(load_file(weights(CHECKPOINT, part))[name].shape)
    told = f"1 tensor of another shape: {name} {(shape[0] - 1, *shape[1:])} instead of {shape}"
    refused(folder, part, told, alone=part)


@parts
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_tensor_that_is_not_floating_point(folder, part, name, dtype):
    change(folder, part, lambda tensors: tensors.update({name: torch.ones_like(tensors[name], dtype=dtype)}))
    refused(folder, part, f"1 tensor not floating point: {name} {dtype}", alone=part)


def test_all_that_is_wrong_is_told_at_once_and_counted(folder):
    def how(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("encoder.")]:
            tensors[name + "x"] = tensors.pop(name)

    change(folder, "vae", how)
    count = sum(name.startswith("encoder.") for name in load_file(weights(CHECKPOINT, "vae")))
    refused(folder, f"{count} tensors missing: ", f"{count} tensors not expected: ", "encoder.conv_in.weight", "…")


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"block_out_channels": [*WIDTHS[:-1], WIDTHS[-1] + 32]}, ["of another shape", "instead of"]),
        ("unet", {"layers_per_block": 2}, ["missing", "down_blocks.0.resnets.1."]),
        ("unet", {"use_linear_projection": True}, ["of another shape", "proj_in.weight"]),
        ("vae", {"use_quant_conv": False}, ["not expected", "quant_conv.weight"]),
        ("vae", {"layers_per_block": 2}, ["missing", "down_blocks.0.resnets.1."]),
        ("text_encoder", {"num_hidden_layers": 5}, ["missing", "text_model.encoder.layers.4."]),
        ("text_encoder", {"max_position_embeddings": 77}, ["position_embedding.weight (32, 192) instead of (77, 192)"]),
    ],
)
def test_weights_of_another_configuration(folder, part, changes, words):
    edit(config(folder, part), **changes)
    refused(folder, part, *words, alone=part)


def test_a_vae_whose_configuration_has_no_attention(tmp_path):
    folder = write_tiny(tmp_path / "model", "sd")
    edit(config(folder, "vae"), mid_block_add_attention=False)
    refused(folder, "vae", "not expected", "mid_block.attentions.0", alone="vae")


def test_weights_of_another_part(folder):
    shutil.copy(weights(CHECKPOINT, "vae"), folder / "unet" / "x")
    (folder / "unet" / "x").replace(weights(folder, "unet"))
    want, got = (set(load_file(weights(CHECKPOINT, part))) for part in ("unet", "vae"))
    refused(folder, "unet", f"{len(want - got)} tensors missing", f"{len(got - want)} tensors not expected")


# --- files that are not weights ---------------------------------------------------------------------------------------


def cut(length: int | float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * length) if isinstance(length, float) else length]


def header(text: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    return lambda content: struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


TENSOR = b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [%d, %d]}}'
BROKEN = {
    "empty": cut(0),
    "half a length": cut(4),
    "a length only": cut(8),
    "half a header": cut(1000),
    "half of it": cut(0.5),
    "all but a byte": cut(-1),
    "a byte too much": lambda content: content + b"\0",
    "garbage": lambda content: bytes(range(1, 256)) * 100,
    "zeros": lambda content: bytes(1000),
    "a web page": lambda content: b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    "a header of 2 GB": header(b"{}", 2**31),
    "a header of 2^63": header(b"{}", 2**63),
    "a header that is no JSON": header(b"{!}"),
    "a header that is a list": header(b"[]"),
    "a tensor past the end": header(TENSOR % (0, 2**40)),
    "a tensor of another length": header(TENSOR % (0, 8)),
    "a tensor that ends before it begins": header(TENSOR % (16, 0)),
}


@pytest.mark.parametrize("how", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file(folder, how):
    file = weights(folder, "text_encoder")
    write(file, how(file.read_bytes()))
    refused(
        folder, "text_encoder/model.safetensors", "not a whole safetensors file", "fetch it again", alone="text_encoder"
    )


def test_a_file_without_tensors(folder):
    write(weights(folder, "text_encoder"), {})
    refused(folder, "text_encoder", "tensors missing")


def test_a_folder_in_the_place_of_a_file(folder):
    weights(folder, "vae").unlink()
    weights(folder, "vae").mkdir()
    refused(folder, "vae", "diffusion_pytorch_model.safetensors")


def test_a_link_to_nowhere(folder):
    weights(folder, "vae").unlink()
    weights(folder, "vae").symlink_to(folder / "gone")
    refused(folder, "vae/", "diffusion_pytorch_model.safetensors")


class Trap:
    """Unpickled, it leaves a file: the proof that a pickle ran."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_renamed_to_safetensors_is_told_and_not_run(folder, tmp_path, zipped):
    file, ran = weights(folder, "unet"), tmp_path / "ran"
    file.unlink()
    torch.save({"weight": Trap(ran)}, file, _use_new_zipfile_serialization=zipped)
    refused(folder, "unet/diffusion_pytorch_model.safetensors", "is a pickle", "convert")
    assert not ran.exists()


def test_a_plain_pickle_renamed_to_safetensors(folder):
    write(weights(folder, "unet"), pickle.dumps({"weight": 1}))
    refused(folder, "unet/diffusion_pytorch_model.safetensors", "is a pickle")


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pt", ".pth"])
def test_a_part_that_has_only_a_pickle(folder, ending):
    weights(folder, "unet").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "unet" / f"diffusion_pytorch_model{ending}")
    refused(folder, f"diffusion_pytorch_model{ending} is a pickle", "convert", "safetensors")


def test_a_pickle_beside_the_weights_does_not_matter(folder, original):
    for part in STEMS:
        (folder / part / f"{STEMS[part]}.bin").write_bytes(b"\x80\x02")
    assert_same(load(folder), original)


@pytest.mark.parametrize("part", STEMS)
def test_a_git_lfs_pointer(folder, part):
    oid = hashlib.sha256(b"").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 39532096\n"
    write(weights(folder, part), pointer.encode())
    refused(folder, f"{part}/{STEMS[part]}.safetensors", "Git LFS pointer", "git lfs pull", alone=part)


@pytest.mark.parametrize("part", STEMS)
def test_a_part_without_weights(folder, part):
    weights(folder, part).unlink()
    refused(folder, f"{part}/ has no {STEMS[part]}.safetensors")


# --- configurations ---------------------------------------------------------------------------------------------------

JSON_FILES = [
    *(f"{part}/config.json" for part in STEMS),
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
]


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("content", [b"", b"[1]"])
def test_broken_json(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name, "JSON")


@pytest.mark.parametrize(
    "content", [b"{", b"{'a': 1}", b"\xff\xfe", b"null", b"[" * 100_000], ids=lambda text: repr(text[:8])
)
def test_broken_json_of_every_sort(folder, content):
    (folder / "unet" / "config.json").write_bytes(content)
    refused(folder, "unet/config.json", "JSON")


@pytest.mark.parametrize("name", [name for name in JSON_FILES if not name.startswith("tokenizer/")])
def test_missing_json(folder, name):
    (folder / name).unlink()
    refused(folder, name, "no such file")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "act_fn", "gelu"),
        ("unet", "addition_embed_type", "image"),
        ("unet", "class_embed_type", "projection"),
        ("unet", "conv_in_kernel", 1),
        ("unet", "dual_cross_attention", True),
        ("unet", "encoder_hid_dim_type", "ip_image_proj"),
        ("unet", "mid_block_type", "UNetMidBlock2D"),
        ("unet", "num_attention_heads", 8),
        ("unet", "num_class_embeds", 1000),  # the upscaler
        ("unet", "only_cross_attention", [True, True, False]),
        ("unet", "resnet_time_scale_shift", "scale_shift"),
        ("unet", "time_cond_proj_dim", 256),  # latent consistency models
        ("unet", "down_block_types", ["AttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
        ("unet", "down_block_types", ["CrossAttnUpBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
        ("vae", "act_fn", "relu"),
        ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.1]),
        ("vae", "shift_factor", 0.1),
        ("vae", "up_block_types", ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"]),
        ("text_encoder", "hidden_act", "relu"),
        ("scheduler", "thresholding", True),
        ("scheduler", "beta_schedule", "sigmoid"),
        ("scheduler", "prediction_type", "flow_prediction"),
        ("scheduler", "timestep_spacing", "karras"),
    ],
)
def test_another_architecture(folder, part, key, value):
    edit(config(folder, part), **{key: value})
    if key.endswith("block_types"):
        key, value = "block type", next(kind for kind in value if "Attn" in kind)  # the one that is wrong
    refused(folder, key, repr(value))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        # of the wrong kind
        ("unet", {"block_out_channels": 96}),
        ("unet", {"block_out_channels": "96"}),
        ("unet", {"down_block_types": None}),
        ("unet", {"in_channels": "4"}),
        ("unet", {"layers_per_block": None}),
        ("unet", {"layers_per_block": "one"}),
        ("unet", {"layers_per_block": [1] * (LEVELS + 1)}),
        ("unet", {"norm_eps": "small"}),
        ("unet", {"norm_num_groups": None}),
        ("unet", {"sample_size": "16"}),
        ("unet", {"sample_size": [16]}),
        ("vae", {"block_out_channels": 32}),
        ("vae", {"layers_per_block": 1.5}),
        ("vae", {"scaling_factor": None}),
        ("text_encoder", {"num_hidden_layers": "4"}),
        ("text_encoder", {"max_position_embeddings": None}),
        ("scheduler", {"num_train_timesteps": "1000"}),
        ("scheduler", {"beta_end": "0.012"}),
        ("scheduler", {"trained_betas": "linear"}),
        # of the right kind, but impossible
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"attention_head_dim": 5}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"sample_size": -16}),
        ("vae", {"block_out_channels": []}),
        ("vae", {"norm_num_groups": 7}),
        ("text_encoder", {"num_attention_heads": 5}),
        ("text_encoder", {"vocab_size": -1}),
        ("scheduler", {"num_train_timesteps": 0}),
        ("scheduler", {"trained_betas": [0.1]}),
        ("scheduler", EPSILON | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense(folder, part, changes):
    edit(config(folder, part), **changes)
    refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"up_block_types": ["UpBlock2D"] * LEVELS + ["CrossAttnUpBlock2D"]},
        {"up_block_types": ["CrossAttnUpBlock2D"]},
        {"down_block_types": ["CrossAttnDownBlock2D"] * (LEVELS - 1) + ["DownBlock2D"]},
    ],
    ids=str,
)
def test_blocks_that_do_not_mirror_each_other(folder, changes):
    edit(config(folder, "unet"), **changes)
    refused(folder, "unet/config.json", f"{LEVELS} levels", "mirror")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_an_unknown_key_is_a_warning(folder, original, part):
    edit(config(folder, part), frobnication=3, unused_frobnication=None, _private=1)
    with pytest.warns(UserWarning, match=rf"^{part}/config.json: zs2 does not know frobnication: ") as caught:
        model = load(folder)
    assert len(caught) == 1
    assert_same(model, original)


def test_the_default_checkpoint_loads_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(CHECKPOINT)


# --- parts that do not belong together --------------------------------------------------------------------------------


def test_a_unet_that_reads_another_text_encoder(folder):
    def how(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                tensors[name] = tensors[name][:, :128].clone()

    change(folder, "unet", how)
    edit(config(folder, "unet"), cross_attention_dim=128)
    refused(folder, "128", "192", "one checkpoint")


def test_an_inpainting_unet(folder):
    how: Change = lambda tensors: tensors.update({"conv_in.weight": torch.zeros(WIDTHS[0], 9, 3, 3)})  # noqa: E731
    change(folder, "unet", how)
    edit(config(folder, "unet"), in_channels=9)
    refused(folder, "takes 9 channels", f"makes {LATENTS[0]}", "inpainting")


def test_a_unet_that_also_predicts_a_variance(folder):
    def how(tensors: dict[str, Tensor]) -> None:
        tensors |= {name: torch.cat([tensors[name]] * 2) for name in ("conv_out.weight", "conv_out.bias")}

    change(folder, "unet", how)
    edit(config(folder, "unet"), out_channels=2 * LATENTS[0])
    refused(folder, f"{2 * LATENTS[0]} channels", str(LATENTS[0]))


def test_a_tokenizer_of_another_text_encoder(folder):
    def how(tensors: dict[str, Tensor]) -> None:
        name = "text_model.embeddings.token_embedding.weight"
        tensors[name] = tensors[name][:1000].clone()

    change(folder, "text_encoder", how)
    edit(config(folder, "text_encoder"), vocab_size=1000)
    refused(folder, str(VOCABULARY), "1000")


# --- the tokenizer's files --------------------------------------------------------------------------------------------


def one_file(folder: Path, pairs: Callable[[str], Any]) -> None:
    """Replace vocab.json and merges.txt by a tokenizer.json."""
    vocab, merges = folder / "tokenizer" / "vocab.json", folder / "tokenizer" / "merges.txt"
    lines = [line for line in merges.read_text().splitlines() if line and not line.startswith("#version")]
    model = {"type": "BPE", "vocab": json.loads(vocab.read_text()), "merges": [pairs(line) for line in lines]}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    vocab.unlink()
    merges.unlink()


@pytest.mark.parametrize("pairs", [str, str.split])
def test_a_tokenizer_in_one_file(folder, original, pairs):
    one_file(folder, pairs)
    prompts = [PROMPT, "", "A cat's 3 RED-apples!! 苹果 🍎", "<|endoftext|> twice"]
    assert torch.equal(load(folder).tokenizer.encode(prompts), original.tokenizer.encode(prompts))


def test_prompts_are_no_longer_than_the_text_encoder(folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert load(folder).tokenizer.max_length == 32
    assert Tokenizer.from_folder(folder / "tokenizer", 9).max_length == 9


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_a_file(folder, name):
    (folder / "tokenizer" / name).unlink()
    refused(folder, "tokenizer", "vocab.json", "merges.txt", "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.txt", "#version: 0.2\na b c\n"),
        ("merges.txt", "#version: 0.2\na\n"),
        ("merges.txt", "#version: 0.2\nno such\n"),
        ("merges.txt", "\ud800"),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": -1}'),
        ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 1}'),
        ("tokenizer_config.json", '{"model_max_length": "32"}'),
        ("tokenizer_config.json", '{"model_max_length": 0}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("special_tokens_map.json", '{"bos_token": 5}'),
    ],
)
def test_a_tokenizer_that_makes_no_sense(folder, name, content):
    (folder / "tokenizer" / name).write_bytes(content.encode(errors="surrogatepass"))
    refused(folder, "tokenizer")


def test_a_special_token_that_is_not_in_the_vocabulary(folder):
    edit(folder / "tokenizer" / "special_tokens_map.json", bos_token="<|start|>")
    refused(folder, "tokenizer", f"bos_token '<|start|>' is not in its vocabulary of {VOCABULARY}")


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(folder, on):
    was = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        ZS2.from_pretrained(folder, device="cpu")
        assert gc.isenabled() == on
        (folder / "unet" / "config.json").unlink()
        with pytest.raises(InputError):
            ZS2.from_pretrained(folder, device="cpu")
        assert gc.isenabled() == on
    finally:
        (gc.enable if was else gc.disable)()
