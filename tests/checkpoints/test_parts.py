"""Which parts of a model are where: diagnoses of files and folders, variants of weights, averages, VAEs from elsewhere.

What a part must compute is in the fixtures `single_sd1` (a file's) and `loading` (the tiny folders').
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import original, tiny
from fixtures.original import TEXT, UNET, VAE, extras, write
from helpers import MODULE, TESTS, Fixture, assert_close, tiny_weights, write_tiny
from safetensors.torch import save_file
from torch import Tensor

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.hub import choose_files
from zs2.checkpoints.original_names import average_names, vae_tensors
from zs2.checkpoints.tensor_files import weight_files
from zs2.errors import InputError
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.unet import UNet as Network
from zs2.sample import main
from zs2.system.modules import without_weights
from zs2.video.clip import read_settings

Tensors = dict[str, Tensor]
STEM = "diffusion_pytorch_model"
EMA = "model_ema."


@cache
def single() -> Tensors:
    """The tensors of a file of Stable Diffusion 1."""
    prefix, tensors = "file/weights/", Fixture("single_sd1").tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def without(*prefixes: str) -> Tensors:
    return {name: tensor for name, tensor in single().items() if not name.startswith(prefixes)}


def of(prefix: str, new: str = "") -> Tensors:
    return {new + name.removeprefix(prefix): t for name, t in single().items() if name.startswith(prefix)}


def averages(*more: str) -> Tensors:
    """The moving average of the UNet, as the original code stores it, with tensors that keep its books."""
    names = [name for name in extras(single()) if name.startswith(EMA)]
    made = {name: tensor for name, tensor in extras(single()).items() if name in names}
    assert len(made) == len(of(UNET)) + 2
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny Stable Diffusion in the diffusers layout."""
    return write_tiny(tmp_path / "model", "sd")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Writes a file; by default all its values are 0, because names and shapes decide."""

    def save(tensors: Tensors, name: str = "model.safetensors", data: bool = False) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, tensors, data=data)
        return tmp_path / name

    yield save
    shutil.rmtree(tmp_path)


def refused(words: str, make: Callable[[], Any]) -> None:
    """Assert that this is refused in one line that has these words, which `…` separates."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500, message
    for word in words.split(" … "):
        assert word in message


# --- what a file holds ------------------------------------------------------------------------------------------------

ONE = torch.ones(2, 2)
LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ONE}
# In the words, UNET, VAE and TEXT stand for the number of tensors of that part.
HELD: dict[str, tuple[Callable[[], Tensors], str]] = {
    "no VAE": (
        lambda: without(VAE),
        "it has a UNet (UNET tensors), a text encoder of SD 1 (TEXT tensors), but no vae: give one with --vae",
    ),
    "no text encoder": (
        lambda: without(TEXT[1]),
        "it has a UNet (UNET tensors), a VAE (VAE tensors), but no text_encoder",
    ),
    "no UNet": (
        lambda: without(UNET),
        "it has a VAE (VAE tensors), a text encoder of SD 1 (TEXT tensors), but no unet",
    ),
    "a UNet": (lambda: of(UNET, UNET), "it has a UNet (UNET tensors), but no vae, text_encoder"),
    "a bare UNet": (lambda: of(UNET), "a UNet without model.diffusion_model. (UNET tensors), but no unet, vae, text"),
    "an average": (averages, "it has the moving average of a UNet (UNET tensors), but no vae, text_encoder"),
    "a VAE": (lambda: of(VAE, VAE), "it has a VAE (VAE tensors), but no unet, text_encoder: give a model, and this as"),
    "a bare VAE": (
        lambda: of(VAE),
        "it has a VAE (VAE tensors), but no unet, vae, text_encoder: give a model, … --vae",
    ),
    "a text encoder": (lambda: of(TEXT[1], TEXT[1]), "it has a text encoder of SD 1 (TEXT tensors), but no unet, vae"),
    "a LoRA": (lambda: LORA, "it has a LoRA (1 tensor), … : give a model, and this as its --lora"),
    "an embedding": (
        lambda: {"emb_params": ONE},
        "it has a textual inversion (1 tensor), … : give a model, and this as its --embedding",
    ),
    "an embedding of SDXL": (lambda: {"clip_l": ONE, "clip_g": 2 * ONE}, "a textual inversion (2 tensors)"),
    "a ControlNet": (
        lambda: {"control_model.zero_convs.0.0.weight": ONE},
        "it has a ControlNet (1 tensor), but no unet",
    ),
    "a refiner": (
        lambda: of(UNET, UNET) | of(VAE, VAE) | {"conditioner.embedders.0.model.ln_final.weight": ONE},
        "it has a UNet (UNET tensors), a VAE (VAE tensors), the text encoder of an SDXL refiner (1 tensor), "
        "but no text_encoder: a refiner needs a picture to refine",
    ),
    "SD 3": (
        lambda: {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ONE},
        "it has a transformer, as of SD 3 (1 tensor), but no",
    ),
    "a vision tower": (lambda: {"vision_model.post_layernorm.weight": ONE}, "it has a vision tower (1 tensor)"),
    "a pipeline": (lambda: {"unet.conv_in.weight": ONE}, "it has parts of a pipeline of diffusers (1 tensor), but no"),
    "nothing": (dict, "it has none of unet, vae, text_encoder: no tensors"),
    "something else": (
        lambda: {"weight": ONE},
        "it has none of unet, vae, text_encoder: only tensors of other names, such as 'weight'",
    ),
}


@pytest.mark.filterwarnings("ignore:.*moving average")
@pytest.mark.parametrize("case", HELD)
def test_a_diagnosis_names_what_a_file_holds_and_lacks(file, case):
    make, words = HELD[case]
    for what, prefix in (("UNET", UNET), ("VAE", VAE), ("TEXT", TEXT[1])):
        words = words.replace(f"({what} ", f"({len(of(prefix))} ")
    refused(f"model.safetensors is no Stable Diffusion model: … {words}", lambda: Checkpoint(file(make())))


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("conditioner.embedders.1.", "the first text encoder of SDXL ( … ), but no text_encoder_2"),
        ("conditioner.embedders.0.", "the second text encoder of SDXL ( … ), but no text_encoder"),
    ],
)
def test_an_xl_of_one_text_tower(file, lost, words):
    parts: dict[str, Tensors] = {"unet": {}, "vae": {}, "text_encoder": {}, "text_encoder_2": {}}
    for name, tensor in Fixture("xl").tensors.items():
        if "/weights/" in name:
            part, weight = name.split("/weights/")
            parts[part][weight] = tensor
    tensors = original.single_file_xl(*parts.values())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    refused(f"it has … {words}", lambda: Checkpoint(file(kept)))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (f"unet/{STEM}.safetensors", "it has a UNet of a folder ("),
        (f"vae/{STEM}.safetensors", "it has a VAE ("),
        ("text_encoder/model.safetensors", "it has a text encoder of a folder ("),
        ("model_index.json", "JSON, no weights"),
        ("unet/config.json", "JSON, no weights"),
    ],
)
def test_a_file_of_a_folder_is_answered_with_the_folder(folder, place, words):
    refused(f"{words} … give … {str(folder)!r}", lambda: Checkpoint(folder / place))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (("vae",), "it has no vae/, only scheduler/, text_encoder/, tokenizer/, unet/: give one with --vae"),
        (("unet", "scheduler"), "it has no unet/, scheduler/, only text_encoder/, tokenizer/, vae/"),
    ],
)
def test_a_folder_that_lacks_parts(folder, gone, words):
    for part in gone:
        shutil.rmtree(folder / part)
    refused(words, lambda: Checkpoint(folder))


def test_folders_that_are_something_else(folder, tmp_path):
    refused(
        f"it looks like one part of a model: give the folder around it, {str(folder)!r}",
        lambda: Checkpoint(folder / "unet"),
    )
    refused(f"there are model folders in it ({folder}): give one of them", lambda: Checkpoint(tmp_path))
    (tmp_path / "files").mkdir()
    refused("it has no unet/, vae/, text_encoder/, tokenizer/, scheduler/", lambda: Checkpoint(tmp_path / "files"))
    save_file({"a": ONE}, tmp_path / "files" / "v1-5.safetensors")
    refused("it has single files (v1-5.safetensors): give one of them", lambda: Checkpoint(tmp_path / "files"))


def test_a_part_without_weights(folder):
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / "weights.safetensors")
    words = f"unet/ has no {STEM}.safetensors, nor a variant of it; it has config.json, weights.safetensors"
    refused(words, lambda: Checkpoint(folder))


# --- the moving average alone -----------------------------------------------------------------------------------------


def test_the_average_alone_is_loaded_as_the_unet(file):
    """In `extras`, its weights are twice those of the UNet."""
    average = {name: t / 2 if t.is_floating_point() and "decay" not in name else t for name, t in averages().items()}
    path = file(without(UNET) | average, data=True)
    with pytest.warns(UserWarning, match=r"model.safetensors has the UNet only as a moving average \(model_ema.…\)"):
        checkpoint = Checkpoint(path)
    f = Fixture("single_sd1")
    got = checkpoint.unet("sa", 0.0)(f["unet/x"], f["unet/t"], f["text/out"], frames=1).prediction
    assert_close(got, f["unet/out"], MODULE)


def test_beside_the_unet_the_average_is_not_used(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = Checkpoint(file(single() | averages()))
    assert not any("ema" in name for name in checkpoint.source.tensors("unet"))


def test_an_average_of_something_else_is_named(file):
    with pytest.warns(UserWarning, match="moving average"):
        checkpoint = Checkpoint(file(without(UNET) | averages() | {f"{EMA}diffusion_modelother0weight": ONE}))
    refused("1 tensor not expected: diffusion_modelother0weight", lambda: checkpoint.unet())


@pytest.mark.parametrize("model", ["sd-1.5", "sd-2.1", "sdxl-base-1.0"])
def test_the_names_of_the_averages_of_published_models(model):
    config = TESTS / "fixtures" / "published" / model / "unet" / "config.json"
    with without_weights():
        network = Network(UNetConfig.from_json(json.loads(config.read_text())))
    names = list(original.unet(network.state_dict()))
    flat = {f"diffusion_model{name}".replace(".", ""): name for name in names}
    assert len(flat) == len(names) > 600
    assert average_names(flat) == flat


# --- variants of weights ----------------------------------------------------------------------------------------------


def sharded(variant: str, count: int = 2) -> list[str]:
    """The names of an index and its shards."""
    stem, index = STEM + f".{variant}" * bool(variant), f".{variant}" * bool(variant)
    return [
        f"{STEM}.safetensors.index{index}.json",
        *(f"{stem}-0000{i + 1}-of-0000{count}.safetensors" for i in range(count)),
    ]


def named(*variants: str) -> list[str]:
    return [f"{STEM}.{variant}.safetensors" if variant else f"{STEM}.safetensors" for variant in variants]


# Files of a part; the variant that is asked for; what is chosen in float32 and in half precision, or an error.
VARIANTS: list[tuple[list[str], str | None, str, str]] = [
    (named("", "fp16", "bf16"), None, named("")[0], named("fp16")[0]),
    (named("", "bf16"), None, named("")[0], named("")[0]),
    (named("fp16", "bf16"), None, named("fp16")[0], named("fp16")[0]),
    (named("bf16"), None, named("bf16")[0], named("bf16")[0]),
    (named("non_ema"), None, named("non_ema")[0], named("non_ema")[0]),
    (named("", "fp16", "bf16"), "bf16", named("bf16")[0], named("bf16")[0]),
    (named("", "fp16", "non_ema"), "non_ema", named("non_ema")[0], named("non_ema")[0]),
    (named("", "fp16"), "plain", named("")[0], named("")[0]),
    (named("", "fp16"), "fp16", named("fp16")[0], named("fp16")[0]),
    ([*named("fp16"), *sharded("bf16")], "bf16", *[sharded("bf16")[1]] * 2),
    (sharded("bf16"), None, *[sharded("bf16")[1]] * 2),
    (sharded("non_ema", 3), None, *[sharded("non_ema", 3)[1]] * 2),
    ([*sharded("bf16"), *named("non_ema")], None, *["there in the variants … bf16 … non_ema … --variant"] * 2),
    (named("bf16", "ema"), None, *["variants bf16, ema: choose one with --variant"] * 2),
    (named("bf16", "ema"), "ema", *named("ema", "ema")),
    (named("", "fp16"), "bf16", *["no part has weights of the variant 'bf16', only of fp16, plain"] * 2),
    (named("", "fp16"), "../x", *["no part has weights of the variant '../x'"] * 2),
]


@pytest.mark.parametrize(("names", "variant", "full", "half"), VARIANTS)
def test_the_variant_that_is_chosen(folder, names, variant, full, half):
    """In a folder here, and of the files on the hub."""
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "weights")
    for part, file in (("vae", f"{STEM}{{}}.safetensors"), ("text_encoder", "model{}.safetensors")):
        if variant in ("bf16", "non_ema", "ema") and "no part" not in full:  # all parts have it, and another one
            shutil.copy(folder / part / file.format(""), folder / part / file.format(f".{variant}"))
    shards = [name for name in names if "-of-" in name]
    for name in names:
        if name.endswith(".json"):
            (folder / "unet" / name).write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
        else:
            shutil.copy(folder / "weights", folder / "unet" / name)
    (folder / "weights").unlink()
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for dtype, want in ((torch.float32, full), (torch.float16, half), (torch.bfloat16, half)):
        if not want.endswith(".safetensors"):
            refused(want, lambda dtype=dtype: Checkpoint(folder, dtype, variant=variant))
            refused(want, lambda dtype=dtype: choose_files(there, str(dtype).removeprefix("torch."), variant))
            continue
        files = Checkpoint(folder, dtype, variant=variant).source.files["unet"]
        chosen = choose_files(there, str(dtype).removeprefix("torch."), variant)
        assert files[0].name == want
        assert [file.name for file in files] == (shards if want in shards else [want])
        on_hub = [name for name in chosen if name.startswith("unet/") and name.endswith(".safetensors")]
        assert on_hub == [f"unet/{file.name}" for file in files]


def test_a_part_without_the_variant_is_named(folder):
    shutil.copy(folder / "unet" / f"{STEM}.safetensors", folder / "unet" / f"{STEM}.non_ema.safetensors")
    with pytest.warns(UserWarning, match=r"vae, text_encoder: no variant 'non_ema', another one is used"):
        files = Checkpoint(folder, variant="non_ema").source.files
    assert [paths[0].name for paths in files.values()] == [*named("non_ema", ""), "model.safetensors"]


def test_a_folder_with_variants_alone_makes_the_same_picture(folder):
    """The `.bf16.` of each part, one of them in shards."""
    for part, stem in tiny.STEMS.items():
        if (folder / part).is_dir():
            (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.bf16.safetensors")
    tensors = tiny_weights("sd")["unet"]
    index, *shards = sharded("bf16")
    (folder / "unet" / f"{STEM}.bf16.safetensors").unlink()
    for i, shard in enumerate(shards):
        save_file({name: tensors[name] for name in list(tensors)[i::2]}, folder / "unet" / shard)
    weight_map = {name: shards[i % 2] for i, name in enumerate(tensors)}
    (folder / "unet" / index).write_text(json.dumps({"weight_map": weight_map}))
    latents = ZS2.from_pretrained(folder, device="cpu").latents(**tiny.PICTURE, frames=1)
    assert_close(latents, Fixture("loading")["sd/latents"], MODULE)


def test_a_single_file_has_no_variants(file):
    with pytest.warns(UserWarning, match="variant has no effect on a single file"):
        Checkpoint(file(single()), variant="fp16")


def test_a_part_of_a_clip_that_scores_is_chosen_likewise(tmp_path):
    save_file({"a": ONE}, tmp_path / "model.bf16.safetensors")
    assert weight_files(tmp_path, "model", torch.float32)[0].name == "model.bf16.safetensors"


# --- a VAE from elsewhere ---------------------------------------------------------------------------------------------


@cache
def diffusers_vae(old: bool = False) -> Tensors:
    """The VAE of `single_sd1` by the names of the diffusers layout, or by those of its older files."""
    today = vae_tensors(of(VAE))
    back = original.vae(today)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in of(VAE).items()}
    assert all(torch.equal(tensor, back[name]) for name, tensor in of(VAE).items())
    named = {}
    for name, tensor in today.items():
        if old:
            for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                name = name.replace(f".{new}.", f".{before}.")
        named[name] = tensor
    return named


CONFIG = {"_class_name": "AutoencoderKL"}
# How a VAE can lie there: the files by place, and the path of --vae.
VAES: dict[str, tuple[Callable[[], dict[str, Tensors]], str]] = {
    "original names": (lambda: {"v.safetensors": of(VAE)}, "v.safetensors"),
    "with first_stage_model.": (lambda: {"v.safetensors": of(VAE, VAE)}, "v.safetensors"),
    "with training state": (
        lambda: {"v.safetensors": of(VAE) | {"loss.logvar": ONE, "model_ema.decay": ONE, "global_step": ONE}},
        "v.safetensors",
    ),
    "a whole model": (
        lambda: {"v.safetensors": of(VAE, VAE) | {f"{UNET}out.2.bias": ONE[0], f"{TEXT[1]}x": ONE}},
        "v.safetensors",
    ),
    "diffusers names": (lambda: {"v.safetensors": diffusers_vae()}, "v.safetensors"),
    "older diffusers names": (lambda: {"v.safetensors": diffusers_vae(old=True)}, "v.safetensors"),
    "a folder": (lambda: {f"v/{STEM}.safetensors": diffusers_vae()}, "v"),
    "a folder's variant": (lambda: {f"v/{STEM}.bf16.safetensors": diffusers_vae()}, "v"),
    "a file of a folder": (lambda: {f"v/{STEM}.safetensors": diffusers_vae()}, f"v/{STEM}.safetensors"),
    "a model's folder": (lambda: {f"m/vae/{STEM}.safetensors": diffusers_vae(old=True)}, "m"),
}


@pytest.mark.parametrize("case", VAES)
def test_a_vae_from_elsewhere(file, tmp_path, case):
    """For a single file that has none: the same weights and configuration. The first one codes as diffusers' VAE."""
    make, path = VAES[case]
    for name, tensors in make().items():
        place = file(tensors, name, data=True)
        if "/" in name:
            config = Fixture("single_sd1").config["vae"]
            (place.parent / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(file(without(VAE)), vae=tmp_path / path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = checkpoint.vae()
    want = diffusers_vae()
    got = vae.state_dict()
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name].float())] == []
    assert vae.config == VAEConfig.from_json(Fixture("single_sd1").config["vae"])
    if case == next(iter(VAES)):
        f = Fixture("single_sd1")
        with torch.no_grad():
            assert_close(vae.encode(f["encode/x"]), f["encode/out"], MODULE)
            assert_close(vae.decode(f["decode/x"]), f["decode/out"], MODULE)
        assert list(checkpoint.digests) == ["file", "vae", "config"]


def test_the_configuration_of_a_vae_from_elsewhere(file, folder, tmp_path):
    """A file has the model's factor of latents; a folder its own, and another one than the model's is a warning."""
    path = file(of(VAE), "v.safetensors")
    assert Checkpoint(file(without(VAE)), vae=path).vae().config.scaling_factor == 0.18215
    assert Checkpoint(folder, vae=path).vae().config.scaling_factor == 0.5
    shutil.rmtree(folder / "vae")
    assert Checkpoint(folder, vae=path).vae().config.scaling_factor == 0.18215
    other = write_tiny(tmp_path / "other", "sd")
    assert Checkpoint(other, vae=other / "vae").vae().config.scaling_factor == 0.5
    with pytest.warns(UserWarning, match=r"has the scaling factor 0.5, the model's own VAE 0.18215: it may be for"):
        Checkpoint(folder, vae=other).vae()


def test_an_xl_without_vae_has_the_factor_of_xl(file, tmp_path):
    model = write_tiny(tmp_path / "xl", "xl")
    shutil.rmtree(model / "vae")
    assert Checkpoint(model, vae=file(of(VAE), "v.safetensors")).vae().config.scaling_factor == 0.13025


def test_a_file_of_the_same_shapes_has_the_configuration_of_the_model_s_own_vae(file, folder):
    """Its number of groups, for one, which no shape tells."""
    path = file(tiny_weights("sd")["vae"], "v.safetensors", data=True)
    checkpoint = Checkpoint(folder, vae=path)
    assert checkpoint.json("vae") == Checkpoint(folder).json("vae")
    assert checkpoint.digests == Checkpoint(folder).digests | {"vae": checkpoint.digests["vae"]}
    latents = torch.linspace(-1, 1, 4 * 4 * 6).view(1, 4, 4, 6)
    assert torch.equal(checkpoint.vae().decode(latents), Checkpoint(folder).vae().decode(latents))


def test_vaes_that_are_refused(file, folder, tmp_path):
    model = file(without(VAE))

    def make(vae: str | Path) -> Callable[[], Any]:
        return lambda: Checkpoint(model, vae=vae).vae()

    refused("no such VAE: 'gone': expected a folder or a .safetensors file", make("gone"))
    refused("v.safetensors: it has a LoRA (1 tensor), but no VAE", make(file(LORA, "v.safetensors")))
    (tmp_path / "empty").mkdir()
    refused("is no VAE: it has no config.json, and no vae/ with one", make(tmp_path / "empty"))
    refused("is no VAE: its config.json is of 'UNet2DConditionModel', not of AutoencoderKL", make(folder / "unet"))
    torch.save({"a": ONE}, tmp_path / "v.pt")
    refused("v.pt is a pickle", make(tmp_path / "v.pt"))
    wide = {n: t.repeat_interleave(4, 1) if n == "decoder.conv_in.weight" else t for n, t in of(VAE).items()}
    refused("has 16 latent channels, the UNet 4: it is for another model", make(file(wide, "w.safetensors")))
    fewer = {name: t for name, t in of(VAE).items() if name != "encoder.conv_in.bias"}
    refused("vae: … 1 tensor missing: encoder.conv_in.bias", make(file(fewer, "f.safetensors")))
    refused("other.weight", make(file(of(VAE) | {"other.weight": ONE}, "o.safetensors")))


def test_the_files_of_the_hub_without_its_vae():
    listing = [*(f"{part}/config.json" for part in tiny.STEMS), "scheduler/scheduler_config.json"]
    listing += [f"{part}/{stem}.safetensors" for part, stem in tiny.STEMS.items()]
    listing += [f"{name}/tokenizer.json" for name in ("tokenizer", "tokenizer_2")]
    whole, own = choose_files(listing, "float32"), choose_files(listing, "float32", vae=False)
    assert [name for name in whole if name not in own] == [f"vae/{STEM}.safetensors"]
    bare = [name for name in listing if not name.startswith("vae/")]
    assert choose_files(bare, "float32", vae=False) == [name for name in own if name != "vae/config.json"]
    refused("it has no vae/: give one with --vae", lambda: choose_files(bare, "float32"))


def test_the_command_records_the_vae_and_a_replay_needs_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tiny_weights("sd")["vae"]
    for name, factor in (("one", 1.0), ("two", 0.5)):
        tiny.write_folder(tmp_path / name, "sd", {"vae": {key: tensor * factor for key, tensor in weights.items()}})
    arguments = ("--model", str(folder), "--steps", "1", "--frames", "1", "--size", "16x16", "--no-sheet")
    assert main(["a cat", *arguments, "--out", "plain.png"]) == 0
    assert main(["a cat", *arguments, "--vae", "one", "--out", "one.png"]) == 0
    assert main(["a cat", *arguments, "--vae", "two/vae", "--out", "two.png"]) == 0
    plain, one, two = (read_settings(Path(f"{name}.png")) for name in ("plain", "one", "two"))
    assert plain["vae"] is None
    assert one["vae"] == {"sha256": one["weights"]["vae"]} != two["vae"]
    assert one["weights"] | {"vae": plain["weights"]["vae"]} == plain["weights"]
    assert len({Path(f"{name}.png").read_bytes() for name in ("plain", "one", "two")}) == 3
    replay = ("--replay", "two.png", "--model", str(folder), "--out")
    assert main([*replay, "again.png", "--vae", "two"]) == 0
    assert Path("again.png").read_bytes() == Path("two.png").read_bytes()
    capsys.readouterr()
    for wrong in ((), ("--vae", "one")):
        assert main([*replay, "none.png", *wrong]) == 2
        assert "give the same --vae" in capsys.readouterr().err


def test_a_vae_that_can_not_decode(folder, tmp_path):
    weights = {name: t for name, t in tiny_weights("sd")["vae"].items() if name.startswith(("decoder", "post_quant"))}
    save_file(weights, tmp_path / "decoder.safetensors")
    refused(
        "the VAE has no encoder: expected a whole one",
        lambda: ZS2.from_pretrained(folder, vae=tmp_path / "decoder.safetensors"),
    )
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0}))
    refused("vae/config.json: scaling_factor is 0: expected a number from 1e-06", lambda: ZS2.from_pretrained(folder))
