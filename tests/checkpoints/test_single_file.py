"""Single files of Stable Diffusion 1 and 2 in the original layout: what is loaded, what is derived, what is refused.

The models are tiny; `fixtures/original.py` wrote their files from the diffusers layout, and diffusers and transformers
computed what the parts must compute.
"""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.original import TEXT, UNET, VAE, extras, write
from helpers import CHECKPOINT, MODULE, Fixture, assert_close
from torch import Tensor

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.original_names import unet_names, vae_tensors
from zs2.errors import InputError
from zs2.models.clip_config import TextConfig
from zs2.models.config import ScheduleConfig, UNetConfig, VAEConfig
from zs2.sample import main
from zs2.video.clip import read_settings

Tensors = dict[str, Tensor]
PARTS = ("unet", "vae", "text_encoder")
V = ("--prediction", "v")
PREDICTION = {1: None, 2: "v"}  # what Checkpoint must be told
LAYER = {1: TEXT[1] + "text_model.encoder.layers.0.", 2: TEXT[2] + "transformer.resblocks.0."}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, removed at once: pytest would keep its large files."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Assert that the command says in one line, with these words, why it can't sample from a file, and ends with 2."""

    def check(model: Path, *words: str, options: tuple[str, ...] = ()) -> str:
        status = main(["red apple", "--model", str(model), "--steps", "1", "--frames", "1", *options])
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        assert err.startswith("zs2: error: ")
        assert err.count("\n") == 1
        assert len(err) < 700, err
        for word in words:
            assert word in err
        return err

    return check


@cache
def fixture(version: int) -> Fixture:
    return Fixture(f"single_sd{version}")


def weights(version: int) -> Tensors:
    """The tensors of a file."""
    prefix = "file/weights/"
    tensors = fixture(version).tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """The file of each version, to be read only: it is written once, and removed after the last test."""
    folder = tmp_path_factory.mktemp("stored")

    @cache
    def path(version: int) -> Path:
        (folder / f"{version}").mkdir()
        write(folder / f"{version}" / "model.safetensors", weights(version))
        return folder / f"{version}" / "model.safetensors"

    yield path
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def loaded(stored: Callable[[int], Path]) -> Callable[[int], dict[str, Any]]:
    """The parts of each version's file in float32, loaded once, not to be changed."""
    return cache(lambda version: load(stored(version), version))


def save(tensors: Tensors, metadata: dict[str, str] | None = None, data: bool = True) -> Path:
    """A file of these tensors in the working directory.

    Args:
        data: False leaves all values 0, for tests of what is decided by names, dtypes and shapes alone.
    """
    path = Path("model.safetensors").absolute()
    write(path, tensors, metadata, data)
    return path


def load(path: Path, version: int, **options: Any) -> dict[str, Any]:
    """The parts of a file."""
    checkpoint = Checkpoint(path, prediction=PREDICTION[version], **options)
    return {"unet": checkpoint.unet("sa", 0.0), "vae": checkpoint.vae(), "text_encoder": checkpoint.text_encoder()}


def load_part(checkpoint: Checkpoint, name: str) -> Any:
    """The part to which a tensor of the file belongs."""
    if name.startswith(UNET):
        return checkpoint.unet("sa", 0.0)
    return checkpoint.vae() if name.startswith(VAE) else checkpoint.text_encoder()


def no_part(path: Path, version: int, name: str, word: str) -> None:
    """Assert that the part of a tensor is refused, in one line with this word."""
    with pytest.raises(InputError) as caught:
        load_part(Checkpoint(path, prediction=PREDICTION[version]), name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700, message
    assert word in message


def states(parts: dict[str, Any]) -> Tensors:
    """The weights of parts, but not the text's projection, which files may lack."""
    named = {f"{part}.{name}": tensor for part in PARTS for name, tensor in parts[part].state_dict().items()}
    return {name: tensor for name, tensor in named.items() if "text_projection" not in name}


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Assert that two models have the same weights."""
    a, b = states(got), states(want)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_right(parts: dict[str, Any], version: int) -> None:
    """Assert that parts compute what the reference modules computed."""
    f = fixture(version)
    context = parts["text_encoder"](f["text/ids"])
    assert_close(context, f["text/out"], MODULE)
    assert_close(parts["unet"](f["unet/x"], f["unet/t"], f["text/out"], frames=1).prediction, f["unet/out"], MODULE)
    assert_close(parts["vae"].encode(f["encode/x"]), f["encode/out"], MODULE)
    assert_close(parts["vae"].decode(f["decode/x"]), f["decode/out"], MODULE)


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_the_parts_compute_what_the_reference_computes(loaded, version):
    assert_right(loaded(version), version)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_file_does_not_matter(here, stored):
    """The fixture's weights are few, and powers of 2: bfloat16 has them too, but for some of the vectors."""
    tensors = {k: v.to(stored) if v.is_floating_point() else v for k, v in weights(1).items()}
    parts = load(save(tensors), 1)
    assert {tensor.dtype for tensor in states(parts).values()} == {torch.float32}
    if stored == torch.float32:
        assert_right(parts, 1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_that_is_asked_for(stored, loaded, dtype, version):
    parts, full = load(stored(version), version, dtype=dtype), states(loaded(version))
    for name, tensor in states(parts).items():
        assert tensor.dtype == (torch.float32 if name.startswith("vae.") and dtype == torch.float16 else dtype)
        assert torch.equal(tensor, full[name].to(tensor.dtype)), name


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.long
def test_the_command_samples_from_a_file(here, capsys, version):
    """With 49,408 tokens, as CLIP's tokenizer needs."""
    tensors = weights(version)
    name = TEXT[version] + {1: "text_model.embeddings.token_embedding.weight", 2: "token_embedding.weight"}[version]
    tensors[name] = tensors[name].repeat(49408 // 64, 1)
    options = V if version == 2 else ()
    arguments = ["--steps", "1", "--frames", "2", "--size", "64x64", "--out", "clip.gif", *options]
    assert main(["red apple", "--model", str(save(tensors)), *arguments]) == 0, capsys.readouterr().err
    settings = read_settings(Path("clip.gif"))
    assert settings["model"] == "model"
    assert list(settings["weights"]) == ["file", "config"]
    if version == 1:
        return  # one replay will do
    assert main(["--replay", "clip.gif", "--model", "model.safetensors", *options, "--out", "again.gif"]) == 0
    assert Path("again.gif").read_bytes() == Path("clip.gif").read_bytes()


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "prediction"), [(1, "epsilon"), (2, "epsilon"), (2, "v")])
def test_the_configuration(stored, version, prediction):
    checkpoint = Checkpoint(stored(version), prediction=prediction)
    want, side = fixture(version).config, 96 if prediction == "v" else 64
    unet = UNetConfig.from_json(want["unet"])
    assert UNetConfig.from_json(checkpoint.source.json("unet")) == replace(unet, sample_size=(side, side))
    assert VAEConfig.from_json(checkpoint.source.json("vae")) == VAEConfig.from_json(want["vae"])
    got, text = (TextConfig.from_json(text) for text in (checkpoint.source.json("text_encoder"), want["text_encoder"]))
    layers = text.num_hidden_layers - (version == 2)  # the last is not used
    # the tokens of the tiny tower are others, and its projection is of no use
    text = replace(text, num_hidden_layers=layers, eos_token_id=49407, projection_dim=got.projection_dim)
    assert got == text


@pytest.mark.parametrize(("version", "prediction"), [(1, None), (1, "epsilon"), (2, "epsilon"), (2, "v")])
def test_the_schedule(stored, version, prediction):
    """As in scheduler_config.json of Stable Diffusion 1.5, 2.1-base and 2.1."""
    want = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if prediction == "v" else "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    assert Checkpoint(stored(version), prediction=prediction).schedule() == ScheduleConfig.from_json(want)


@pytest.mark.parametrize(("version", "padding"), [(1, 49407), (2, 0)])
def test_the_tokenizer_is_clip_s_and_pads_as_the_family_does(stored, version, padding):
    tokenizer = Checkpoint(stored(version), prediction=PREDICTION[version]).tokenizer()
    ids = tokenizer.encode(["a photo of a cat", ""]).tolist()
    assert ids[0] == [49406, 320, 1125, 539, 320, 2368, 49407] + [padding] * 70
    assert ids[1] == [49406, 49407] + [padding] * 75


# --- what it predicts -------------------------------------------------------------------------------------------------


def test_a_file_of_sd2_must_be_told_what_it_predicts(refused, stored):
    refused(stored(2), "model.safetensors", "--prediction v", "--prediction epsilon")
    with pytest.raises(InputError, match="--prediction"):
        Checkpoint(stored(2))


@pytest.mark.parametrize(("said", "want"), [("v", "v_prediction"), ("epsilon", "epsilon")])
def test_the_metadata_of_sd2_can_say(here, said, want):
    checkpoint = Checkpoint(save(weights(2), {"modelspec.prediction_type": said, "format": "pt"}, data=False))
    assert checkpoint.schedule().prediction_type == want


def test_metadata_that_says_something_else_is_not_an_answer(refused):
    refused(save(weights(2), {"modelspec.prediction_type": "rectified flow"}, data=False), "--prediction")


def test_what_is_given_wins_over_the_metadata(here):
    path = save(weights(2), {"modelspec.prediction_type": "epsilon"}, data=False)
    with pytest.warns(UserWarning, match="says that it predicts epsilon, but prediction is v"):
        assert Checkpoint(path, prediction="v").schedule().prediction_type == "v_prediction"


def test_a_file_of_sd1_predicts_epsilon_unless_it_is_said(stored):
    assert Checkpoint(stored(1)).schedule().prediction_type == "epsilon"
    assert Checkpoint(stored(1), prediction="v").schedule().prediction_type == "v_prediction"


@pytest.mark.parametrize("version", [1, 2])
def test_an_unknown_prediction(refused, stored, version):
    refused(stored(version), "'epsilom'", "did you mean 'epsilon'?", options=("--prediction", "epsilom"))


def test_a_folder_says_what_it_predicts():
    with pytest.warns(UserWarning, match="prediction has no effect"):
        assert Checkpoint(CHECKPOINT, prediction="epsilon").schedule().prediction_type == "v_prediction"


# --- more and fewer tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_harmless_tensors_are_dropped(here, loaded, version):
    tensors = weights(version)
    assert_same(load(save(tensors | extras(tensors)), version), loaded(version))


# What stands in one file of each family; the names of UNet and VAE are those of both.
STRANGE = [
    (1, "embedding_manager.weight"),
    (1, "control_model.input_blocks.0.0.weight"),
    (1, "model.other.weight"),
    (2, "cond_stage_model.other.weight"),
    (1, UNET + "label_emb.1.0.weight"),
    (1, UNET + "input_blocks.1.0.in_layers.9.weight"),
    (2, UNET + "input_blocks.99.0.in_layers.0.weight"),
    (1, UNET + "middle_block.3.weight"),
    (1, VAE + "encoder.down.0.attn.0.norm.weight"),
    (1, VAE + "decoder.other.weight"),
    (1, TEXT[1] + "other.weight"),
    (2, TEXT[2] + "other.weight"),
    (1, LAYER[1] + "other.weight"),
    (2, LAYER[2] + "other.weight"),
]


@pytest.mark.parametrize(("version", "name"), STRANGE)
def test_any_other_tensor_is_named(here, version, name):
    path = save(weights(version) | {name: torch.ones(4)}, data=False)
    no_part(path, version, name, name.rsplit(".", 2)[-2])


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        (UNET + "input_blocks.1.2.norm.weight", UNET + "input_blocks.1.1.norm.weight"),
        (UNET + "output_blocks.2.3.conv.weight", UNET + "output_blocks.2.1.conv.weight"),
    ],
)
def test_a_tensor_that_would_take_the_place_of_another(here, name, twin):
    tensors = weights(1)
    no_part(save(tensors | {name: tensors[twin]}, data=False), 1, name, name.removeprefix(UNET))


MISSING = [
    (1, TEXT[1] + "text_model.embeddings.token_embedding.weight"),
    (1, TEXT[1] + "text_model.embeddings.position_embedding.weight"),
    (1, LAYER[1] + "mlp.fc1.weight"),
    (1, LAYER[1] + "self_attn.q_proj.bias"),
    (1, TEXT[1] + "text_model.final_layer_norm.bias"),
    (2, TEXT[2] + "token_embedding.weight"),
    (2, TEXT[2] + "positional_embedding"),
    (2, TEXT[2] + "ln_final.weight"),
    (2, LAYER[2] + "mlp.c_fc.weight"),
    (2, LAYER[2] + "attn.in_proj_weight"),
    (1, UNET + "input_blocks.0.0.weight"),
    (1, UNET + "input_blocks.1.0.in_layers.2.weight"),
    (1, UNET + "input_blocks.1.1.proj_out.weight"),
    (1, UNET + "input_blocks.3.0.op.weight"),
    (2, UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"),
    (2, UNET + "middle_block.1.proj_in.weight"),
    (1, UNET + "out.2.weight"),
    (1, UNET + "out.2.bias"),
    (1, VAE + "encoder.down.0.block.0.conv1.weight"),
    (1, VAE + "decoder.conv_in.weight"),
    (1, VAE + "decoder.up.3.block.0.norm1.bias"),
    (1, VAE + "quant_conv.weight"),
]


@pytest.mark.parametrize(("version", "name"), MISSING)
def test_a_tensor_is_missing(here, version, name):
    tensors = weights(version)
    del tensors[name]
    no_part(save(tensors, data=False), version, name, "missing")


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (1, UNET + "out.2.weight"),
        (1, VAE + "quant_conv.weight"),
        (1, LAYER[1] + "layer_norm1.weight"),
        (2, LAYER[2] + "ln_1.weight"),
    ],
)
def test_a_tensor_is_of_another_shape(here, version, name):
    tensors = weights(version)
    tensors[name] = tensors[name][..., :-1] if tensors[name].ndim == 1 else tensors[name][:, :-1]
    no_part(save(tensors, data=False), version, name, "shape")


@pytest.mark.parametrize("name", [UNET + "time_embed.0.weight", VAE + "encoder.conv_in.bias"])
def test_a_tensor_of_whole_numbers(here, name):
    tensors = weights(1)
    tensors[name] = tensors[name].int()
    no_part(save(tensors, data=False), 1, name, "not floating point")


@pytest.mark.parametrize("part", [UNET, VAE, "cond_stage_model."])
@pytest.mark.parametrize("version", [1, 2])
def test_a_part_is_missing(refused, version, part):
    tensors = {name: tensor for name, tensor in weights(version).items() if not name.startswith(part)}
    refused(save(tensors, data=False), {UNET: "unet", VAE: "vae"}.get(part, "text"), options=V * (version == 2))


# --- other files of these families ------------------------------------------------------------------------------------


def test_text_of_sd2_without_the_layer_that_it_does_not_use(here, loaded):
    """diffusers' convert_diffusers_to_original_stable_diffusion.py writes 23 layers, and no projection."""
    tensors = weights(2)
    trimmed = {name: tensor for name, tensor in tensors.items() if ".resblocks.2." not in name}
    for name in ("text_projection", "logit_scale", "attn_mask"):
        del trimmed[TEXT[2] + name]
    assert_same(load(save(trimmed), 2), loaded(2))


def test_text_of_sd1_by_its_older_names(here, loaded):
    """Files that were merged or saved by an early transformers lack `text_model.`."""
    older = {name.replace("text_model.", ""): tensor for name, tensor in weights(1).items()}
    assert_same(load(save(older), 1), loaded(1))


def test_text_of_sd1_with_a_projection(here, loaded):
    """Some tools save the whole tower, with its projection."""
    projection = {TEXT[1] + "text_projection.weight": torch.eye(768)}
    assert_same(load(save(weights(1) | projection), 1), loaded(1))


def test_an_inpainting_model(refused):
    name = UNET + "input_blocks.0.0.weight"
    tensors = weights(1)
    tensors[name] = torch.cat([tensors[name], tensors[name], tensors[name][:, :1]], dim=1)
    refused(save(tensors, data=False), "9 channels", "inpainting")


# --- files that are something else ------------------------------------------------------------------------------------

ONE = torch.ones(4, 4)
LORAS = {
    "kohya": ("lora_unet_mid_block_attentions_0_proj_in.lora_{}.weight", ("down", "up")),
    "kohya text": ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight", ("down", "up")),
    "peft": ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight", ("A", "B")),
    "diffusers": ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight", ("down", "up")),
    "old diffusers": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight",
        ("down", "up"),
    ),
}


@pytest.mark.parametrize("kind", LORAS)
def test_a_lora(refused, kind):
    pattern, names = LORAS[kind]
    refused(save({pattern.format(name): ONE for name in names}), "model.safetensors", "LoRA")


@pytest.mark.parametrize(
    ("part", "what"), [("unet/diffusion_pytorch_model", "UNet"), ("vae/diffusion_pytorch_model", "VAE")]
)
def test_a_part_of_a_folder(refused, part, what):
    refused(CHECKPOINT / f"{part}.safetensors", what)


def test_the_text_encoder_of_a_folder(refused):
    refused(CHECKPOINT / "text_encoder" / "model.safetensors", "text")


@pytest.mark.parametrize("prefix", ["", VAE])
def test_a_vae_in_the_original_layout(refused, prefix):
    tensors = {name.replace(VAE, prefix): tensor for name, tensor in weights(1).items() if name.startswith(VAE)}
    refused(save(tensors, data=False), "model.safetensors", "VAE")


def test_tensors_of_no_model_at_all(refused):
    refused(save({"weight": ONE}), "model.safetensors", "no Stable Diffusion model")
    refused(save({}), "model.safetensors", "no Stable Diffusion model")


# --- broken files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, -1, -(2**20)])
def test_a_truncated_file(refused, size):
    path = save(weights(1), data=False)
    with path.open("r+b") as file:
        file.truncate(size if size >= 0 else path.stat().st_size + size)
    refused(path, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize("length", [0x80, 0x280, 0x20480, 0xFFFF80, 0x2000280])
@pytest.mark.parametrize("size", [1, 2, 8, 9, 120])
def test_a_truncated_file_whose_length_begins_as_a_pickle_does(refused, length, size):
    """The first byte of a pickle, 0x80, is also that of one in 32 of the lengths that a header can have."""
    path = Path("model.safetensors").absolute()
    path.write_bytes((length.to_bytes(8, "little") + b'{"weight": {"dtype": "F32", "shape": [1], ' + b" " * 100)[:size])
    refused(path, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize("claimed", [2**31, 2**63, 2**64 - 1])
def test_a_header_that_claims_gigabytes(refused, claimed):
    path = Path("model.safetensors").absolute()
    path.write_bytes(struct.pack("<Q", claimed) + b"{}" * 100)
    refused(path, "model.safetensors", "not a whole safetensors file")


def test_a_header_of_gigabytes(refused):
    path = Path("model.safetensors").absolute()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**31) + b"{")
        file.truncate(2**31 + 8)  # a hole in the file: it takes no space
    refused(path, "model.safetensors", "not a whole safetensors file")


def flips(path: Path, count: int) -> Iterator[int]:
    """Flip one bit of the header at a time, at places all over it; the place."""
    with path.open("r+b", buffering=0) as file:
        (size,) = struct.unpack("<Q", file.read(8))
        for i in range(count):
            place = i * (8 + size) // count
            file.seek(place)
            byte = file.read(1)[0]
            for new in (byte ^ 1 << (7 * i % 8), byte):
                file.seek(place)
                file.write(bytes([new]))
                if new != byte:
                    yield place


@pytest.mark.parametrize("version", [1, 2])
def test_a_flipped_bit_in_the_header(here, stored, version):
    """It is refused in one line; nothing else is raised, and nothing is loaded that is not the same as before."""
    path = Path(shutil.copyfile(stored(version), "model.safetensors"))
    loaded = 0
    for place in flips(path, 24):
        try:
            load(path, version)
            loaded += 1
        except InputError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 700, f"byte {place}: {message}"
    assert loaded < 12  # a name of what is dropped, or an order of two tensors alike, can change without a trace


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("head", [b"PK\x03\x04", *(pickle.dumps({"epoch": 1}, protocol) for protocol in (2, 3, 4, 5))])
def test_a_pickle(refused, name, head):
    path = Path(name).absolute()
    path.write_bytes(head + b"archive/data.pkl" * 100)
    refused(path, name, "pickle", "convert the model to safetensors")


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.PTH"])
def test_a_safetensors_file_with_a_pickle_s_name(refused, name):
    path = save({"weight": ONE}).rename(name).absolute()
    refused(path, f"{name} is a safetensors file with a pickle's name: rename it to model.safetensors")


OTHERS = {
    "zip": (b"PK\3\4" + bytes(22) + b"\x11\0\0\0model.safetensors" + bytes(600), "a ZIP archive: unpack it"),
    "html": (
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title>",
        "a text, such as a server's error: fetch it again; it begins '<!DOCTYPE html>",
    ),
    "json": (b'{"error": "Repository not found"}', 'it begins \'{"error": "Repository not found"}\''),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "GGUF, expected safetensors"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.bin"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_no_pickle(refused, name, kind):
    path = Path(name).absolute()
    path.write_bytes(OTHERS[kind][0])
    assert "pickle" not in refused(path, name, OTHERS[kind][1])


def test_what_has_a_pickle_s_name_is_not_waited_for(refused, folder):
    """A name of a folder's part that is a pickle's: its content is looked at only if it is a regular file."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.mkfifo(weights.with_suffix(".bin"))
    refused(folder, "diffusion_pytorch_model.bin is a pickle")


def test_a_pointer_of_git_lfs(refused):
    path = Path("model.safetensors").absolute()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n")
    refused(path, "model.safetensors", "git lfs pull")


def test_a_file_that_is_not_there(refused):
    refused(Path("missing.safetensors"), "missing.safetensors")


def test_numbers_in_names_are_those_of_blocks():
    """Others, of thousands of digits or of a first block that is none, are no block's: they stay as they are."""
    many = "9" * 5000
    for name in (f"input_blocks.{many}.0.op.weight", f"output_blocks.{many}.1.proj_in.weight"):
        assert unet_names([name, "input_blocks.0.0.op.weight", "input_blocks.2.0.op.weight"])[name] == name
    assert [*vae_tensors({f"decoder.up.{many}.upsample.conv.weight": torch.ones(1)})] == [
        f"decoder.up.{many}.upsample.conv.weight"
    ]
