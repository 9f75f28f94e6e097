"""SDXL: two text towers, pooled text and sizes beside the timestep; a folder, a single file, a LoRA, the command.

The model is tiny; diffusers and transformers computed what it must compute.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from fixtures.original import UNET, XL_TEXT, extras, single_file_xl, write
from helpers import CHECKPOINT, CLIP, LATENTS, MODULE, STEMS, VOCABULARY, Fixture, assert_close, write_xl
from torch import Tensor

from zs2 import ZS2, Request
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.lora import merge
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, NOISE_MODELS
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.sample import main

TOWERS = ("text_encoder", "text_encoder_2")
APPLE = "red apple on a sky blue background"
NOISE_KINDS = [name for name, row in NOISE_MODELS.items() if row.start is None]


@pytest.fixture(scope="module")
def reference() -> Fixture:
    return Fixture("xl")


@pytest.fixture(scope="module")
def folder(reference: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model in the diffusers layout. It is removed at the end: pytest would keep its large files."""
    folder = write_xl(tmp_path_factory.mktemp("xl"), reference)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> ZS2:
    return ZS2.from_pretrained(folder, device="cpu")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, to be changed. Its weights are links: unlink one before writing another."""
    copy = shutil.copytree(folder, tmp_path / "xl", ignore=shutil.ignore_patterns("*.safetensors"))
    for part, stem in STEMS.items():
        (copy / part / f"{stem}.safetensors").symlink_to(folder / part / f"{stem}.safetensors")
    return copy


def change_json(file: Path, **changes: object) -> None:
    said = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(said | changes))


def tensors_of_file(reference: Fixture) -> dict[str, Tensor]:
    """The model as a file, with 49,408 tokens, as CLIP's tokenizer needs; the end token is the last here too."""
    tensors = single_file_xl(*(reference.weights(part) for part in STEMS))
    for name in (XL_TEXT[1] + "text_model.embeddings.token_embedding.weight", XL_TEXT[2] + "token_embedding.weight"):
        table = tensors[name]
        tensors[name] = torch.cat([table, table.repeat(49408 // len(table), 1)[: 49408 - 2 * len(table)], table])
    return tensors


# --- what it computes -------------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_right(checkpoint: Checkpoint, reference: Fixture, end: int) -> None:
    """Assert that text towers and UNet compute what transformers and diffusers computed."""
    for tower in TOWERS:
        ids = reference[f"{tower}/ids"]
        states, embedding = checkpoint.text_encoder(tower).before_last(ids.where(ids != VOCABULARY - 1, end))
        assert_close(states, reference[f"{tower}/out"], MODULE)
    assert_close(embedding, reference["text_encoder_2/embed"], MODULE)
    for attn in ("sa", "cfa", "tma"):
        net = checkpoint.unet(attn, 0.98)
        added = net.added_embedding(reference["unet/pooled"], (24, 40))
        got = net(reference["unet/x"], 601, reference["unet/context"], frames=2, added=added)
        assert_close(got.prediction, reference[f"unet {attn}/out"], MODULE)


def test_the_parts_compute_what_the_reference_computes(folder, reference):
    assert_right(Checkpoint(folder), reference, end=VOCABULARY - 1)


@pytest.mark.parametrize("number", range(3))
def test_frame_0_is_the_image_of_diffusers(model, reference, number):
    """Without a negative prompt, with one and another size, and without guidance."""
    latents = model.latents(**reference.config["images"][number], frames=1)
    assert_close(latents, reference[f"image {number}/latents"], CLIP)


@pytest.mark.long
def test_every_noise_and_attention_works_unchanged(model, reference):
    """Frame 0 is the same picture whatever the variant, and frame 1 is another."""
    image = reference.config["images"][1]
    want = reference["image 1/latents"]
    for settings in (*({"noise": noise} for noise in NOISE_KINDS), *({"attn": attn} for attn in ATTENTION_KINDS)):
        got = model.variant(**({"lam": 0.3} if settings.get("noise", "dnm").startswith("dnm") else {}), **settings)
        latents = got.latents(**image, frames=2)
        assert_close(latents[:1], want, CLIP)
        assert (latents[1] - latents[0]).abs().max() > 0.01 or settings["noise"] == "shared"


def test_a_prompt_for_each_frame(model):
    """Each frame has its own text, pooled too, so without momentum it is the frame of a clip of its own prompt."""
    sa = model.variant(attn="sa", noise="shared")
    both = sa.latents(["panda face", APPLE], frames=2, steps=2)
    for frame, prompt in enumerate(["panda face", APPLE]):
        assert_close(both[frame : frame + 1], sa.latents(prompt, frames=1, steps=2), CLIP)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_an_empty_negative_prompt_is_zeros_unless_the_model_says_otherwise(model, copy):
    encoded = model.text(["panda face"], [""])
    assert encoded.context.shape == (2, 32, 192)
    assert encoded.pooled.shape == (2, 96)
    assert not encoded.context[0].any()
    assert not encoded.pooled[0].any()
    assert model.text([""]).context.any()  # an empty prompt is encoded
    change_json(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    other = ZS2.from_pretrained(copy, device="cpu")
    assert torch.equal(other.text(["panda face"], [""]).context[0], model.text([""]).context[0])
    assert other.checkpoint.digests["config"] != model.checkpoint.digests["config"]


def test_the_size_is_a_condition(model):
    embedding = model.unet.added_embedding(torch.zeros(1, 96), (32, 32))
    assert (embedding - model.unet.added_embedding(torch.zeros(1, 96), (32, 40))).abs().max() > 1e-4


def test_conditions_that_are_missing_or_too_many(model):
    x, context = torch.zeros(1, 4, 8, 8), torch.zeros(1, 32, 192)
    with pytest.raises(InputError, match="SDXL needs `added`"):
        model.unet(x, 1, context, frames=1)
    small = Checkpoint(CHECKPOINT).unet("sa", 0.0)
    with pytest.raises(InputError, match="no added conditions"):
        small.added_embedding(torch.zeros(1, 96), (32, 32))
    with pytest.raises(InputError, match="no added conditions"):
        small(torch.zeros(1, *LATENTS), 1, torch.zeros(1, 32, 192), frames=1, added=torch.zeros(1, 384))


@pytest.mark.parametrize(("dtype", "vae"), [("float16", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.long
def test_half_precision(folder, dtype, vae):
    """XL's VAE is known to overflow float16."""
    half = ZS2.from_pretrained(folder, device="cpu", dtype=dtype)
    assert {p.dtype for p in half.vae.parameters()} == {vae}
    assert {p.dtype for encoder in half.text.encoders for p in encoder.parameters()} == {half.dtype}
    want = ZS2.from_pretrained(folder, device="cpu").latents(APPLE, frames=2, steps=2)
    assert_close(half.latents(APPLE, frames=2, steps=2), want, 0.05)


# --- a folder that is not right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: shutil.rmtree(f / "tokenizer_2"), "it has no tokenizer_2/"),
        (lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(), "text_encoder_2"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "reads text of width 192, the text encoder makes 64"),
        (lambda f: change_json(f / "unet" / "config.json", addition_embed_type="image"), "'image' is not supported"),
        (lambda f: change_json(f / "unet" / "config.json", addition_embed_type=None), "not expected: add_embedding"),
        (
            lambda f: change_json(f / "unet" / "config.json", addition_time_embed_dim=128),
            "added conditions are 1632 wide, expected 864",
        ),
        (
            lambda f: change_json(f / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler"),
            "models of another kind",
        ),
    ],
)
def test_a_folder_that_is_not_right(copy, spoil, words):
    spoil(copy)
    with pytest.raises(InputError) as caught:
        ZS2.from_pretrained(copy, device="cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_tower_without_projection(copy, reference):
    tensors = {k: v for k, v in reference.weights("text_encoder_2").items() if k != "text_projection.weight"}
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    write(copy / "text_encoder_2" / "model.safetensors", tensors)
    with pytest.raises(InputError, match="the second text encoder has no text_projection"):
        ZS2.from_pretrained(copy, device="cpu")


# --- a single file ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors(reference: Fixture) -> Mapping[str, Tensor]:
    return MappingProxyType(tensors_of_file(reference))


@pytest.fixture(scope="module")
def file(tensors: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as a file, with what files that were not pruned have besides; removed as the folder is."""
    folder = tmp_path_factory.mktemp("file")
    write(folder / "xl.safetensors", {**tensors, **extras(tensors)})
    yield folder / "xl.safetensors"
    shutil.rmtree(folder)


def test_a_file_computes_the_same(file, reference):
    assert_right(Checkpoint(file), reference, end=49407)


def test_the_configuration_of_a_file(file, reference):
    checkpoint = Checkpoint(file)
    want = reference.config
    unet = UNetConfig.from_json(want["unet"])
    assert UNetConfig.from_json(checkpoint.source.json("unet")) == replace(
        unet, sample_size=(128, 128), transformer_layers=(1, 2, 3)
    )
    assert VAEConfig.from_json(checkpoint.source.json("vae")) == VAEConfig.from_json(want["vae"])
    for tower in TOWERS:
        got, text = (TextConfig.from_json(json) for json in (checkpoint.source.json(tower), want[tower]))
        text = replace(text, vocab_size=49408, eos_token_id=49407)
        assert got == replace(text, projection_dim=96 if tower[-1] == "2" else got.projection_dim)
    assert checkpoint.tokenizer("text_encoder").pad_id == 49407
    assert checkpoint.tokenizer("text_encoder_2").pad_id == 0
    assert checkpoint.source.zero_empty


def test_the_schedule_of_a_file_is_that_of_the_folder(file, folder):
    assert Checkpoint(file).schedule() == Checkpoint(folder).schedule()


@pytest.mark.parametrize(
    ("marks", "given", "want"),
    [
        ((), None, ("epsilon", False)),
        ((), "v", ("v_prediction", False)),
        (("v_pred", "ztsnr"), None, ("v_prediction", True)),
    ],
)
def test_what_a_file_predicts(tensors, tmp_path, marks, given, want):
    """Files of v prediction may say so by empty tensors."""
    write(tmp_path / "xl.safetensors", {**tensors, **{mark: torch.zeros(0) for mark in marks}}, data=False)
    schedule = Checkpoint(tmp_path / "xl.safetensors", prediction=given).schedule()
    assert (schedule.prediction_type, schedule.rescale_betas_zero_snr) == want


@pytest.mark.long
def test_the_command_samples_from_a_file(tensors, tmp_path, monkeypatch, capsys):
    """And once more, from what it wrote."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "xl.safetensors", tensors)
    options = ["--model", "xl.safetensors", "--steps", "1", "--frames", "2", "--size", "32x32", "--out", "clip.webp"]
    assert main([APPLE, *options]) == 0, capsys.readouterr().err
    assert main(["--replay", "clip.webp", "--model", "xl.safetensors", "--out", "again.webp"]) == 0
    assert Path("again.webp").read_bytes() == Path("clip.webp").read_bytes()
    Path("xl.safetensors").unlink()  # pytest would keep it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(XL_TEXT[2] + "text_projection"), "second text encoder has no text_projection"),
        (lambda t: t.pop(UNET + "label_emb.0.2.bias"), "add_embedding.linear_2.bias"),
        (lambda t: t.pop(UNET + "label_emb.0.0.weight"), "add_embedding.linear_1.weight"),
        (
            lambda t: t.update({"conditioner.embedders.2.weight": torch.ones(1)}),
            "of no known part, such as conditioner",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith(XL_TEXT[1])],
            "(546 tensors), a VAE (120 tensors), the second text encoder of SDXL (43 tensors), but no text_encoder",
        ),
    ],
)
def test_a_file_that_is_not_whole(tensors, tmp_path, change, words):
    changed = dict(tensors)
    change(changed)
    write(tmp_path / "xl.safetensors", changed, data=False)
    with pytest.raises(InputError) as caught:
        ZS2.from_pretrained(tmp_path / "xl.safetensors", device="cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refiner_is_named(tensors, tmp_path):
    renamed = {n.replace("embedders.1.", "embedders.0."): t for n, t in tensors.items()}
    renamed = {n: t for n, t in renamed.items() if not n.startswith(XL_TEXT[1])}
    write(tmp_path / "refiner.safetensors", renamed, data=False)
    with pytest.raises(InputError, match="SDXL refiner"):
        Checkpoint(tmp_path / "refiner.safetensors")


# --- LoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["kohya", "kohya of the original layout", "diffusers"])
def test_a_lora_for_the_unet_and_both_towers(folder, tmp_path, naming):
    model = ZS2.from_pretrained(folder, device="cpu")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_model.encoder.layers.1.mlp.fc1"
    stems = {
        "kohya": ("lora_unet_" + layer.replace(".", "_"), "lora_te1_", "lora_te2_"),
        "kohya of the original layout": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
            "lora_te1_",
            "lora_te2_",
        ),
        "diffusers": (f"unet.{layer}", "text_encoder.", "text_encoder_2."),
    }[naming]
    of_text = text if naming == "diffusers" else text.replace(".", "_")
    modules = [model.unet.get_submodule(layer), *(encoder.get_submodule(text) for encoder in model.text.encoders)]
    names = [stems[0], stems[1] + of_text, stems[2] + of_text]
    down, up = ("lora_A", "lora_B") if naming == "diffusers" else ("lora_down", "lora_up")
    tensors, want = {}, []
    for number, (name, module) in enumerate(zip(names, modules, strict=True)):
        a = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(number))
        b = torch.randn(module.out_features, 2, generator=torch.Generator().manual_seed(10 + number))
        tensors |= {f"{name}.{down}.weight": a, f"{name}.{up}.weight": b}
        want.append(module.weight + 0.5 * b @ a)
    write(tmp_path / "lora.safetensors", tensors)
    merge(tmp_path / "lora.safetensors", 0.5, model.unet, model.text.encoders)
    for module, expected in zip(modules, want, strict=True):
        assert_close(module.weight, expected, MODULE)


# --- the text ---------------------------------------------------------------------------------------------------------


def test_what_was_encoded_before_changes_nothing(folder):
    """An encoding does not depend, to the last bit, on what was asked for before or beside it; many are forgotten."""
    fresh, used = (Checkpoint(folder).text() for _ in range(2))
    for number in range(70):
        used([f"panda face {number}", APPLE][: 1 + number % 2], ["blue"])
    assert len(used._known) <= 64
    got, want = used([APPLE], ["blue"]), fresh([APPLE], ["blue"])
    assert torch.equal(got.context, want.context)
    assert torch.equal(got.pooled, want.pooled)


def test_settings_name_the_parts(model):
    assert model.settings(model.plan(Request(APPLE, frames=2, steps=1)), 8)["weights"].keys() == {*STEMS, "config"}
