"""zs2 against diffusers and transformers, live: models of SD 1.5's, SD 2.1's and SDXL's size with random weights.

Deselected by default, for it needs both libraries, 16 GiB of memory, 30 GiB of disk and a quarter of an hour:
`python -m pytest -m reference tests/test_reference.py`. The test of CLIP's own vocabulary needs open_clip_torch as
well, of which it reads one file (`pip install --no-deps open_clip_torch` will do).
"""

from __future__ import annotations

import gc
import gzip
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.original import single_file, single_file_xl, unet, write
from fixtures.prompts import random_prompts
from fixtures.reference import noise, over_frames, set_attention
from fixtures.store import scramble
from helpers import CHECKPOINT, MODULE, Fixture, assert_close, assert_same_picture
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from zs2 import ZS2, Request
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.controlnets import ControlNetFiles
from zs2.errors import InputError
from zs2.models.config import ScheduleConfig
from zs2.models.temporal import SelfAttention, momentum
from zs2.models.tokenizer import Tokenizer
from zs2.sampling.conditioning import interpolated
from zs2.sampling.ddim import timesteps

pytestmark = pytest.mark.reference

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "act_fn": "silu",
}
SD21_UNET = SD15_UNET | {
    "sample_size": 96,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}
SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
SD21_TEXT = SD15_TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FAMILIES = {
    "sd15": (SD15_UNET, SD15_TEXT, SCHEDULE),
    "sd21": (SD21_UNET, SD21_TEXT, SCHEDULE | {"prediction_type": "v_prediction"}),
}
VERSIONS = {"sd15": 1, "sd21": 2}  # of the original layout
XL_UNET = SD15_UNET | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
XL_TEXT_2 = SD21_TEXT | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}
XL_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
FRAMES = 2  # and two branches of guidance
T = 601


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed at once: pytest would keep the last three, 5 GiB each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def inputs(context_dim: int) -> dict[str, Tensor]:
    """What both sides compute from."""
    ids = torch.randint(3, 49000, (2, 77), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[0, 9:], ids[1, 70:] = 49406, 49407, 49407
    return {
        "x": noise(2, 2 * FRAMES, 4, 32, 32),
        "odd": noise(3, 2 * FRAMES, 4, 9, 13),
        "context": noise(4, 2, 77, context_dim),
        "ids": ids,
        "pixels": noise(5, 1, 3, 64, 96).clamp(-1, 1),
        "z": noise(6, 1, 4, 8, 12),
    }


def reference_outputs(family: str, folder: Path, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Build a model by the libraries, save it in the diffusers layout, and return what it computes."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet_config, text_config, schedule = FAMILIES[family]
    parts = StableDiffusionPipeline(
        unet=scramble(UNet2DConditionModel(**unet_config), 10),
        vae=scramble(AutoencoderKL(**VAE), 11),
        text_encoder=scramble(CLIPTextModel(CLIPTextConfig(**text_config)), 12),
        tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
        scheduler=DDIMScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts.save_pretrained(folder)
    outputs = {
        "text": parts.text_encoder(given["ids"]).last_hidden_state,
        "encoded": parts.vae.encode(given["pixels"]).latent_dist.mean,
        "decoded": parts.vae.decode(given["z"]).sample,
    }
    context = over_frames(given["context"], FRAMES)
    for attn, mu in (("sa", 0.0), ("tma", 0.98), ("cfa", 1.0)):
        set_attention(parts.unet, attn, mu, FRAMES)
        for size in ("x", "odd"):
            outputs[f"{attn} {size}"] = parts.unet(given[size], T, encoder_hidden_states=context).sample
    return outputs


def assert_computes(model: ZS2, given: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Assert that the parts of a model compute what the reference computed."""
    assert_close(model.text_encoder(given["ids"]), want["text"], MODULE)
    assert_close(model.vae.encode(given["pixels"]), want["encoded"], MODULE)
    assert_close(model.vae.decode(given["z"]), want["decoded"], MODULE)
    for attn in ("sa", "tma", "cfa"):
        unet = model.variant(attn=attn).unet
        for size in ("x", "odd"):
            assert_close(
                unet(given[size], T, given["context"], frames=FRAMES).prediction, want[f"{attn} {size}"], MODULE
            )


def parts_of(folder: Path) -> list[dict[str, Tensor]]:
    """The weights of UNet, VAE and text tower, memory-mapped."""
    names = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    return [load_file(folder / f"{name}.safetensors") for name in names]


def assert_diffusers_reads_the_same(file: Path, folder: Path) -> None:
    """Assert that diffusers reads a single file to the weights of the folder: the converter is right."""
    from diffusers import StableDiffusionPipeline

    read = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    for part, want in zip((read.unet, read.vae, read.text_encoder), parts_of(folder), strict=True):
        # transformers puts `text_model.` before the names that it saves
        got, want = (
            {name.removeprefix("text_model."): value for name, value in weights.items()}
            for weights in (part.state_dict(), want)
        )
        assert got.keys() == want.keys()
        assert [name for name in got if not torch.equal(got[name], want[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_model_of_full_size(family: str, scratch: Path) -> None:
    """In both layouts; one model in memory at a time."""
    folder, file = scratch / "folder", scratch / "file.safetensors"
    given = inputs(FAMILIES[family][0]["cross_attention_dim"])
    want = reference_outputs(family, folder, given)
    gc.collect()
    model = ZS2.from_pretrained(folder, attn="sa", device="cpu")
    assert_computes(model, given, want)
    configs = (model.unet.config, model.vae.config, model.text_encoder.config, model.schedule)
    del model
    gc.collect()

    write(file, single_file(VERSIONS[family], *parts_of(folder)))
    assert_diffusers_reads_the_same(file, folder)
    gc.collect()
    prediction = "v" if FAMILIES[family][2].get("prediction_type") == "v_prediction" else None
    model = ZS2.from_pretrained(file, attn="sa", device="cpu", prediction=prediction)
    assert_computes(model, given, want)
    text = model.text_encoder.config
    assert text.eos_token_id == 49407  # the folders' files are old: they name another, which no prompt has
    text = replace(text, projection_dim=configs[2].projection_dim, eos_token_id=configs[2].eos_token_id)
    assert (model.unet.config, model.vae.config, text, model.schedule) == configs


@pytest.mark.parametrize("family", FAMILIES)
def test_controlnet_of_full_size(family: str, scratch: Path) -> None:
    """A folder and both kinds of file; diffusers reads the file in the original layout to the same weights."""
    from diffusers import ControlNetModel

    unet_config, _, _ = FAMILIES[family]
    shared = {key: value for key, value in unet_config.items() if key not in ("sample_size", "out_channels")}
    shared.pop("up_block_types")
    reference = scramble(ControlNetModel(**shared), 20)
    reference.save_pretrained(scratch / "control")
    x, context = noise(2, 2 * FRAMES, 4, 32, 32), noise(4, 2, 77, unet_config["cross_attention_dim"])
    hints = torch.rand(FRAMES, 3, 256, 256, generator=torch.Generator().manual_seed(7))
    want = {}
    for attn, mu in (("sa", 0.0), ("tma", 0.98)):
        set_attention(reference, attn, mu, FRAMES)
        want[attn] = reference(x, T, over_frames(context, FRAMES), torch.cat([hints] * 2), 0.7, return_dict=False)
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    del reference
    gc.collect()
    save_file({f"control_model.{name}": one for name, one in unet(tensors).items()}, scratch / "file.safetensors")
    read = ControlNetModel.from_single_file(str(scratch / "file.safetensors"), config=str(scratch / "control"))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read.state_dict().items())
    del read, tensors
    for place in ("control", "file.safetensors"):
        network = ControlNetFiles(scratch / place, torch.float32).network(
            torch.device("cpu"), torch.float32, SelfAttention()
        )
        for attn in want:
            control = network.with_momentum(momentum(attn, mu=0.98))
            got, _ = control(x, T, context, control.encode_hints(hints), frames=FRAMES, scale=0.7)
            for one, other in zip((*got.skips, got.middle), (*want[attn][0], want[attn][1]), strict=True):
                assert_close(one, other, MODULE)


def test_an_editing_model_of_full_size(scratch: Path) -> None:
    """The latents of InstructPix2Pix's pipeline, from a picture and an instruction, and the picture."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet_config, text_config, schedule = FAMILIES["sd15"]
    tokenizer = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text_config = text_config | {"vocab_size": len(tokenizer), **ends}
    pipeline = StableDiffusionInstructPix2PixPipeline(
        unet=scramble(UNet2DConditionModel(**unet_config | {"in_channels": 8}), 10),
        vae=scramble(AutoencoderKL(**VAE), 11),
        text_encoder=scramble(CLIPTextModel(CLIPTextConfig(**text_config)), 12),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(scratch)
    source = torch.randint(256, (128, 192, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    kept: list[Tensor] = []
    picture = pipeline(
        "make it golden",
        image=Image.fromarray(source.numpy()),
        num_inference_steps=2,
        guidance_scale=4.0,
        image_guidance_scale=1.5,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        callback_on_step_end=lambda pipe, i, t, values: kept.append(values["latents"].clone()) or {},
    ).images[0]
    del pipeline
    gc.collect()
    model = ZS2.from_pretrained(scratch, attn="sa", noise="iid", device="cpu")
    asked = {"source": source.numpy(), "frames": 1, "steps": 2, "guidance": 4.0, "image_guidance": 1.5, "seed": 5}
    got = model.latents("make it golden", **asked, width=192, height=128)
    assert_close(got, kept[-1], MODULE)
    want = torch.from_numpy((picture * 255).round().astype("uint8"))
    assert_same_picture(torch.from_numpy(model.decode(got))[0], want)


def xl_outputs(folder: Path, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Build the parts of SDXL by the libraries, one in memory at a time, write them in the diffusers layout, and return
    what they compute."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def keep(part: str, module: Any) -> None:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(
            (module if hasattr(module, "to_json_string") else module.config).to_json_string()
        )
        write(folder / part / f"{XL_STEMS[part]}.safetensors", module.state_dict())

    outputs = {}
    with torch.device("meta"):  # every parameter is set by scramble
        unet = UNet2DConditionModel(**XL_UNET)
    unet = scramble(unet.to_empty(device="cpu"), 20)
    keep("unet", unet)
    sizes = torch.tensor([[512.0, 768.0, 0.0, 0.0, 512.0, 768.0]]).expand(2 * FRAMES, -1)
    added = {"text_embeds": over_frames(given["pooled"], FRAMES), "time_ids": sizes}
    context = over_frames(given["context"], FRAMES)
    for attn, mu in (("sa", 0.0), ("tma", 0.98), ("cfa", 1.0)):
        set_attention(unet, attn, mu, FRAMES)
        out = unet(given["odd"], T, encoder_hidden_states=context, added_cond_kwargs=added)
        outputs[f"unet {attn}"] = out.sample
    del unet
    gc.collect()

    vae = scramble(AutoencoderKL(**VAE | {"scaling_factor": 0.13025}), 21)
    keep("vae", vae)
    outputs["encoded"] = vae.encode(given["pixels"]).latent_dist.mean
    outputs["decoded"] = vae.decode(given["z"]).sample
    text = scramble(CLIPTextModel(CLIPTextConfig(**SD15_TEXT)), 22)
    keep("text_encoder", text)
    outputs["text_encoder"] = text(given["ids"], output_hidden_states=True).hidden_states[-2]
    text_2 = scramble(CLIPTextModelWithProjection(CLIPTextConfig(**XL_TEXT_2)), 23)
    keep("text_encoder_2", text_2)
    states = text_2(given["ids"], output_hidden_states=True)
    outputs |= {"text_encoder_2": states.hidden_states[-2], "pooled": states.text_embeds}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULE))
    for tokenizer in ("tokenizer", "tokenizer_2"):
        shutil.copytree(CHECKPOINT / "tokenizer", folder / tokenizer)
    return outputs


def test_sdxl_of_full_size_part_by_part(scratch: Path) -> None:
    """In both layouts; one part in memory at a time, for all of them together have 14 GB."""
    folder, file = scratch / "folder", scratch / "file.safetensors"
    given = inputs(2048) | {"pooled": noise(7, 2, 1280)}
    want = xl_outputs(folder, given)
    gc.collect()
    for path in (folder, file):
        if path == file:
            parts = (load_file(folder / part / f"{stem}.safetensors") for part, stem in XL_STEMS.items())
            write(file, single_file_xl(*parts))
        checkpoint = Checkpoint(path)
        for tower in ("text_encoder", "text_encoder_2"):
            states, pooled = checkpoint.text_encoder(tower).before_last(given["ids"])
            assert_close(states, want[tower], MODULE)
        assert pooled is not None
        assert_close(pooled, want["pooled"], MODULE)
        vae = checkpoint.vae()
        assert_close(vae.encode(given["pixels"]), want["encoded"], MODULE)
        assert_close(vae.decode(given["z"]), want["decoded"], MODULE)
        for attn in ("sa", "tma", "cfa"):
            unet = checkpoint.unet(attn, 0.98)
            added = unet.added_embedding(given["pooled"], (512, 768))
            got = unet(given["odd"], T, given["context"], frames=FRAMES, added=added)
            assert_close(got.prediction, want[f"unet {attn}"], MODULE)
            del unet


def test_diffusers_reads_the_tiny_file_of_sdxl_the_same(scratch: Path) -> None:
    """The converter of the tests is right for SDXL too: diffusers makes of its file the weights that it was made of."""
    from diffusers import StableDiffusionXLPipeline

    fixture = Fixture("xl")
    weights = {
        part: {
            name.removeprefix(f"{part}/weights/"): tensor.float()
            for name, tensor in fixture.tensors.items()
            if name.startswith(f"{part}/weights/")
        }
        for part in XL_STEMS
    }
    classes = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
    classes |= {"text_encoder": ("transformers", "CLIPTextModel")}
    classes |= {"text_encoder_2": ("transformers", "CLIPTextModelWithProjection")}
    classes |= {"scheduler": ("diffusers", "EulerDiscreteScheduler")}
    classes |= dict.fromkeys(("tokenizer", "tokenizer_2"), ("transformers", "CLIPTokenizer"))
    folder = scratch / "folder"
    for part in (*XL_STEMS, "scheduler"):
        (folder / part).mkdir(parents=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(fixture.config[part]))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(CHECKPOINT / "tokenizer", folder / name)
    index = {"_class_name": "StableDiffusionXLPipeline"} | {part: list(names) for part, names in classes.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    write(scratch / "file.safetensors", single_file_xl(*weights.values()))
    read = StableDiffusionXLPipeline.from_single_file(
        str(scratch / "file.safetensors"), config=str(folder), local_files_only=True, add_watermarker=False
    )
    for part, want in weights.items():
        got = {name.removeprefix("text_model."): value for name, value in getattr(read, part).state_dict().items()}
        want = {name.removeprefix("text_model."): value for name, value in want.items()}
        assert got.keys() == want.keys()
        assert [name for name in got if not torch.equal(got[name], want[name])] == []


def test_the_default_checkpoint_makes_the_pictures_of_diffusers() -> None:
    """Of its own size and steps, to one grey level: a prompt of each kind."""
    from diffusers import StableDiffusionPipeline

    model = ZS2.from_pretrained(CHECKPOINT, dtype="float32", device="cpu")
    parts = StableDiffusionPipeline.from_pretrained(CHECKPOINT, dtype=torch.float32)
    own = model.own_settings
    for seed, prompt in enumerate((own.prompts[0], own.open_prompts[1])):
        generator = torch.Generator("cpu").manual_seed(seed)
        made = parts(prompt, num_inference_steps=25, guidance_scale=5.0, generator=generator, output_type="np").images
        clip = model(prompt, frames=1, steps=25, guidance=5.0, seed=seed)
        assert_same_picture(torch.from_numpy(clip.frames), torch.from_numpy((made * 255).round().astype("uint8")))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_every_number_of_steps(spacing: str) -> None:
    from diffusers import DDIMScheduler

    given = {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")}
    scheduler, config = DDIMScheduler(**given), ScheduleConfig.from_json(given)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        want = scheduler.timesteps.tolist()[:steps]  # trailing spacing sometimes has one more, -1, by a rounding error
        if want[0] >= 1000:  # diffusers fails later, when it looks up what the schedule does not have
            with pytest.raises(InputError):
                timesteps(config, steps)
        else:
            assert timesteps(config, steps) == want, f"{steps} steps"


def assert_same_ids(tokenizer: Tokenizer, reference: Any) -> None:
    """Assert that two tokenizers agree on 10,000 prompts, token for token."""
    length = reference.model_max_length
    prompts = random_prompts(10_000, seed=7)
    want = reference(prompts, padding="max_length", max_length=length, truncation=True).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many are too long
        got = tokenizer.encode(prompts).tolist()
    for prompt, a, b in zip(prompts, got, want, strict=True):
        assert a == b, f"{prompt!r}"


def test_tokenizer_on_many_prompts() -> None:
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    assert_same_ids(Tokenizer.from_folder(CHECKPOINT / "tokenizer"), reference)


def clip_merges() -> list[str]:
    """The merges of CLIP's vocabulary, as open_clip_torch carries it; the package itself, which needs torchvision, is
    not imported. The file has more merges than CLIP's 49,408 tokens: 256 bytes, each at a word's end or not, and two
    special tokens are the others."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    try:
        (path,) = (file for file in files("open_clip_torch") or () if file.name == name)
    except PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed: pip install --no-deps open_clip_torch")
    lines = gzip.decompress(path.read_binary()).decode("utf-8").split("\n")
    return lines[1 : 1 + 49408 - 2 * 256 - 2]


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_clip_s_tokenizer_on_many_prompts(tmp_path: Path, pad_token: str) -> None:
    """`!` is what SD 2 pads with."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges, letters = clip_merges(), list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token, **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(reference) == 49408
    assert reference("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert reference.pad_token_id == (0 if pad_token == "!" else 49407)
    assert_same_ids(Tokenizer.of_clip(77, pad_token=pad_token), reference)


def test_a_schedule_of_prompts_is_that_of_free_noise() -> None:
    """diffusers interpolates the embeddings between two prompts of `AnimateDiffFreeNoiseMixin` likewise."""
    from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

    ends = ["red apple", "blue star"]
    encoded = ZS2.from_pretrained(CHECKPOINT, device="cpu").text(ends)
    expected = AnimateDiffFreeNoiseMixin()._lerp(0, 6, *encoded.context.split(1))
    frames = Request({0: ends[0], 6: ends[1]}, frames=7).prompts(0, 7)
    assert_close(interpolated(encoded, ends, frames).context, expected, 1e-6)
