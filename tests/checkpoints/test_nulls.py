"""Null in the JSONs of a checkpoint: the same output as diffusers or transformers with null there, or an error.

The fixture `loading` goes through every value of every JSON of two tiny models and of two CLIPs, and through all keys
that published files have or that the libraries' classes take. Null is a flag's false, whatever its default; some keys
become their default, many are not used, and on some the libraries fail.
"""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from helpers import CLIP, MODULE, Fixture, assert_close, write_clip, write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Parts, Scorer
from zs2.evaluation.image_processor import ImageProcessor
from zs2.method import ATTENTION_KINDS
from zs2.models.clip_config import TextConfig, VisionConfig
from zs2.models.config import ScheduleConfig, UNetConfig, VAEConfig

FILES = [(kind, file) for kind, files in tiny.JSONS.items() for file in files]
PICTURE = {key: value for key, value in tiny.PICTURE.items() if key != "prompt"}


@cache
def fixture() -> Fixture:
    return Fixture("loading")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models. Not to be changed."""
    place = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny(place / kind, kind) for kind in tiny.JSONS}


def with_values(folder: Path, kind: str, file: str, values: dict[str, Any], to: Path) -> Path:
    """A copy of a model with other values at these places of a JSON."""
    shutil.copytree(folder, to)
    (to / file).write_text(json.dumps(tiny.with_values(tiny.JSONS[kind][file], values)))
    return to


def fit(folder: Path) -> None:
    """Give the UNet and the VAE the weights that their JSONs ask for."""
    for part in ("unet", "vae"):
        file = folder / part / f"{tiny.STEMS[part]}.safetensors"
        tensors, config = load_file(file), json.loads((folder / part / "config.json").read_text())
        gone = {"mid_block_type": "mid_block.", "use_quant_conv": "quant_conv.", "use_post_quant_conv": "post_quant"}
        for key, start in gone.items():
            if config.get(key, key) is None:
                tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}
        if config.get("mid_block_add_attention", 1) is None:
            tensors = {name: tensor for name, tensor in tensors.items() if ".attentions." not in name}
        if config.get("use_linear_projection", 1) is None:
            ends = ("proj_in.weight", "proj_out.weight")
            tensors |= {name: t[..., None, None] for name, t in tensors.items() if name.endswith(ends)}
        file.unlink()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@torch.no_grad()
def output(folder: Path, file: str, size: bool = True) -> Tensor:
    """What the fixture compares: latents, or what the VAE makes of stored latents and pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ZS2.from_pretrained(folder, device="cpu")
    if file.startswith("vae"):
        noise = lambda seed, *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed))  # noqa: E731
        z, pixels, scale = noise(410, 1, 4, 3, 5), noise(411, 1, 3, 6, 10).clamp(-1, 1), model.vae.config.scaling_factor
        return torch.cat([model.vae.decode(z / scale).flatten(), (model.vae.encode(pixels) * scale).flatten()])
    options = PICTURE if size else {key: value for key, value in PICTURE.items() if key not in ("height", "width")}
    return model.latents(tiny.PICTURE["prompt"], frames=1, **options)


def read(folder: Path) -> list[Any]:
    """All that zs2 takes from the JSONs of a model."""
    checkpoint = Checkpoint(folder)
    towers = checkpoint.source.towers
    texts = [TextConfig.from_json(checkpoint.source.json(tower), tower) for tower in towers]
    unet, vae = UNetConfig.from_json(checkpoint.source.json("unet")), VAEConfig.from_json(checkpoint.source.json("vae"))
    return [unet, vae, *texts, checkpoint.schedule(), checkpoint.source.zero_empty]


@pytest.mark.parametrize(("kind", "file"), FILES, ids=[f"{kind}-{file}" for kind, file in FILES])
@pytest.mark.long
def test_a_null_is_what_diffusers_makes_of_it(folders, tmp_path, kind, file):
    """Where the picture stays the same, it is enough that the configuration does."""
    f, wrong, base = fixture(), [], f"{kind}/vae/code" if file.startswith("vae") else f"{kind}/latents"
    assert_close(output(folders[kind], file), f[base], CLIP)
    same = read(folders[kind])
    for number, (place, outcome) in enumerate(f.config["nulls"][kind][file].items()):
        values = tiny.UNUSED[place][1] if place in tiny.UNUSED else {place.removesuffix(", fitting"): None}
        if place == "no size":
            values = {"sample_size": None}
        if " = " in place:
            continue  # no null: see below
        model = with_values(folders[kind], kind, file, values, tmp_path / f"{number}")
        if place.endswith(", fitting"):
            fit(model)
        got: Tensor | None = None
        with contextlib.suppress(InputError):
            if outcome == "base" and read(model) == same:
                continue
            got = output(model, file, size=place != "no size")
        if (got is None) != (outcome == "fails"):
            wrong.append(f"{place}: {'refused' if got is None else 'works'}, but diffusers: {outcome}")
        elif got is not None:
            try:
                assert_close(got, f[base if outcome == "base" else outcome], CLIP)
            except AssertionError as error:
                wrong.append(f"{place}: {error}")
    assert wrong == []


@pytest.mark.parametrize("case", tiny.PICTURES)
def test_a_null_in_the_preprocessor_is_what_transformers_makes_of_it(case):
    f, wrong = fixture(), []
    for place, outcome in f.config["nulls"]["pictures"][case].items():
        try:
            process = ImageProcessor.from_json(tiny.with_values(tiny.PICTURES[case], {place: None}))
            got: Tensor | None = process(f["picture"][None].numpy())
        except InputError:
            got = None
        if (got is None) != (outcome == "fails"):
            wrong.append(f"{place}: {'refused' if got is None else 'works'}, but transformers: {outcome}")
        elif got is not None:
            assert_close(got, f[f"pictures/{case}" if outcome == "base" else outcome], MODULE)
    assert wrong == []


@pytest.mark.parametrize(
    "size", [{"height": None, "width": None, "shortest_edge": 7}, {"height": 5, "longest_edge": None}]
)
@pytest.mark.parametrize("used", [True, False])
def test_sizes_with_other_sides_are_refused_as_by_transformers(size, used):
    with pytest.raises(InputError, match="expected height and width, or shortest_edge"):
        ImageProcessor.from_json(tiny.STEPS | {"size": size, "do_resize": used})


@torch.no_grad()
@pytest.mark.parametrize("case", ["clip_gelu", "clip_quick_gelu"])
def test_a_null_in_the_clip_that_scores_is_what_transformers_makes_of_it(tmp_path, case):
    f, wrong, same = fixture(), [], None
    folder = write_clip(tmp_path / "clip", case)
    config, pixels = json.loads((folder / "config.json").read_text()), Fixture(case)["pixels"][:1]
    for place, outcome in {"": "base", **f.config["nulls"]["clips"][case]}.items():
        values = {place: None} if place else {}
        (folder / "config.json").write_text(json.dumps(tiny.with_values(config, values)))
        got: Tensor | None = None
        with contextlib.suppress(InputError):
            parts = Parts.read(folder, "clip")
            if outcome == "base" and same == (parts.text, parts.vision):
                continue
            scorer = Scorer(parts, "clip", "cpu")
            got = torch.cat([scorer.text.embed(f["clip/ids"]), scorer.vision.embed(pixels)])
            same = same or (parts.text, parts.vision)
        if (case, place) == ("clip_quick_gelu", "text_config_dict"):
            assert (
                got is None
            )  # text_config has an end token that no prompt has: zs2 refuses that, transformers does not
        elif (got is None) != (outcome == "fails"):
            wrong.append(f"{place}: {'refused' if got is None else 'works'}, but transformers: {outcome}")
        elif got is not None:
            assert_close(got, f[f"{case}/embeddings" if outcome == "base" else outcome], MODULE)
    assert wrong == []


# --- what has no effect -----------------------------------------------------------------------------------------------


def test_the_bookkeeping_of_training_is_no_alarm(folders, tmp_path):
    """What EMAModel writes into a UNet's JSON, and other keys that change nothing in diffusers, are read in silence."""
    for kind, files in fixture().config["nulls"].items():
        found = {file: {p: v for p, v in outcomes.items() if " = " in p} for file, outcomes in files.items()}
        if kind not in folders:
            continue
        assert {"decay = 0.9999", "power = 0.75", "inv_gamma = 2.0"} < found["unet/config.json"].keys()
        assert len(found["unet/config.json"]) > 12
        model = shutil.copytree(folders[kind], tmp_path / kind)
        for file, outcomes in found.items():
            assert set(outcomes.values()) <= {"base"}
            values = {key: ast.literal_eval(value) for key, value in (place.split(" = ") for place in outcomes)}
            values.pop("force_upcast", None)  # which decides a dtype: tests/system/test_dtype.py
            (model / file).write_text(json.dumps(tiny.JSONS[kind][file] | values))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(model) == read(folders[kind])
            ZS2.from_pretrained(model, device="cpu")


# --- the mechanism ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "key"), tiny.STRUCTURAL[:1] + tiny.STRUCTURAL[2:])
def test_weights_of_what_null_leaves_out_are_named(folders, tmp_path, file, key):
    """diffusers does not use them either; false beside such weights is an error, as before."""
    model = with_values(folders["sd"], "sd", file, {key: None}, tmp_path / "model")
    with pytest.warns(UserWarning, match=rf"^{file}: {key} is null: \d+ tensors, such as .*, are not used$") as caught:
        ZS2.from_pretrained(model, device="cpu")
    assert len(caught) == 1
    if key != "mid_block_type":
        (model / file).write_text(json.dumps(tiny.JSONS["sd"][file] | {key: False}))
        with pytest.raises(InputError, match="not expected"):
            ZS2.from_pretrained(model, device="cpu")


def test_a_unet_without_a_middle_block_has_every_attention_and_deep_cache(folders, tmp_path):
    """Distilled models have none."""
    model = with_values(folders["sd"], "sd", "unet/config.json", {"mid_block_type": None}, tmp_path / "model")
    fit(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zs2 = ZS2.from_pretrained(model, device="cpu", noise="iid")
    options = PICTURE | {"steps": 4}
    clips = {kind: zs2.variant(attn=kind).latents("a cat", frames=3, **options) for kind in ATTENTION_KINDS}
    for kind, clip in clips.items():
        assert clip.isfinite().all()
        assert_close(clip[:1], clips["sa"][:1], CLIP)
        whole = zs2.variant(attn=kind).latents("a cat", frames=3, chunk=2, **options)
        assert_close(whole, clip, CLIP)
    assert zs2.latents("a cat", frames=2, deep_cache=2, **options).isfinite().all()


def test_a_size_that_is_not_given_is_asked_for(folders, tmp_path):
    for changes in ({"sample_size": None}, {"sample_size/1": None}):
        model = with_values(folders["sd"], "sd", "unet/config.json", changes, tmp_path / f"{len(changes)}{changes}")
        zs2 = ZS2.from_pretrained(model, device="cpu")
        assert "no size of its own" in repr(zs2)
        for options in ({}, {"height": 16}, {"width": 16}):
            with pytest.raises(InputError, match=r"does not say which size .* give the width and the height"):
                zs2.latents("a cat", frames=1, steps=1, **options)
        assert zs2.latents("a cat", frames=1, steps=1, height=16, width=24).shape == (1, 4, 8, 12)


def test_an_old_size_is_64_as_in_diffusers(folders, tmp_path):
    """StableDiffusionPipeline: files from before its version 0.9 with less than 64 have it by mistake."""
    config = tiny.UNET | {"sample_size": 32}
    for version, want in (("0.8.1", 64), ("0.2.2", 64), ("0.9.0.dev0", 32), ("0.10.0", 32), ("1.0.0", 32)):
        assert UNetConfig.from_json(config | {"_diffusers_version": version}).sample_size == (want, want)
    old = {"_diffusers_version": "0.8.1"}
    assert UNetConfig.from_json(tiny.UNET_XL | old).sample_size == (8, 8)
    assert UNetConfig.from_json(config | old | {"sample_size": [32, 48]}).sample_size == (32, 48)
    assert UNetConfig.from_json(config | old | {"sample_size": 96}).sample_size == (96, 96)


def test_sdxl_steps_and_clips_as_its_file_says(folders, tmp_path):
    """StableDiffusionPipeline overrides what old files say; StableDiffusionXLPipeline does not."""
    said = {"clip_sample": True, "steps_offset": 0}
    for kind, want in (("sd", (False, 1)), ("xl", (True, 0))):
        schedule = Checkpoint(with_values(folders[kind], kind, tiny.SCHEDULER, said, tmp_path / kind)).schedule()
        assert (schedule.clip_sample, schedule.steps_offset) == want


def test_null_is_named_in_one_line():
    for config, content, key in (
        (UNetConfig, tiny.UNET, "dropout"),
        (VAEConfig, tiny.VAE, "sample_size"),
        (ScheduleConfig, tiny.SCHEDULE, "_class_name"),
        (TextConfig, tiny.TEXT, "initializer_range"),
        (VisionConfig, {}, "initializer_factor"),
    ):
        with pytest.raises(InputError, match=rf"/?config.json: {key} is null: expected a value") as caught:
            config.from_json(content | {key: None})
        assert "\n" not in str(caught.value)
