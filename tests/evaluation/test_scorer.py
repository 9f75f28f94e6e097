"""The CLIP that scores: pixels and embeddings against transformers and torchmetrics, loading, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, MODULE, VOCABULARY, Fixture, assert_close, write_clip
from safetensors.torch import load_file, save_file
from torch import Tensor

from zs2.checkpoints.hub import DEFAULT_MODEL, STANDARD_CLIP
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import BATCH, Scorer, scoring_model
from zs2.evaluation.image_processor import ImageProcessor
from zs2.evaluation.metrics import clip_score
from zs2.models.clip_config import tower

KINDS = ("clip_quick_gelu", "clip_gelu")
CASES = ("old", "new", "crop not square", "squeezed", "plain")  # of preprocessor_config.json
SIZES = ("20x29", "64x64", "91x37", "33x250", "32x32", "37x37")
fixture = cache(Fixture)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The CLIP of each fixture as a folder. Not to be changed."""
    return {kind: write_clip(tmp_path_factory.mktemp("clips") / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def scorers(clips: dict[str, Path]) -> dict[str, Scorer]:
    return {kind: Scorer.from_pretrained(folder) for kind, folder in clips.items()}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A CLIP to change."""
    return write_clip(tmp_path / "clip")


@pytest.fixture
def model(folder: Path) -> Path:
    """The default checkpoint with its CLIP, to change."""
    for part in ("image_encoder", "feature_extractor"):
        shutil.copytree(CHECKPOINT / part, folder / part)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_weights(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file, which may be a link."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def pictures(count: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def refused(model: Path | str, *words: str) -> str:
    """The one line that says why it is refused, which has these words."""
    with pytest.raises(InputError) as caught:
        Scorer.from_pretrained(model)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    for word in words:
        assert word in line
    return line


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case, size):
    f = fixture("clip_images")
    pixels = ImageProcessor.from_json(f.config[case])(f[size][None].numpy())
    assert pixels.dtype == torch.float32
    assert_close(pixels, f[f"{case}/{size}"], MODULE)


def test_every_stored_case_is_compared():
    f = fixture("clip_images")
    assert f.config.keys() == set(CASES)
    assert f.tensors.keys() == {*SIZES, *(f"{case}/{size}" for case in CASES for size in SIZES)}


def test_frames_become_pixels_one_by_one():
    f, process = fixture("clip_images"), ImageProcessor.from_json(fixture("clip_images").config["new"])
    frames = np.stack([f["64x64"].numpy(), 255 - f["64x64"].numpy()])
    assert torch.equal(process(frames), torch.cat([process(frame[None]) for frame in frames]))


def test_an_empty_json_is_openais():
    """Null is not: see test_nulls.py."""
    openai = ImageProcessor.from_json({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}})
    assert ImageProcessor.from_json({}) == openai
    assert ImageProcessor.from_json({"size": 224, "crop_size": 224, "size_divisor": 7}) == openai


@pytest.mark.parametrize(
    ("json", "words"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "'SiglipImageProcessor' is not supported, only CLIPImage"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "'ViTFeatureExtractor' is not supported"),
        ({"do_pad": True}, "do_pad = True is not supported, only False"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}: expected height and width, or shortest_edge"),
        ({"crop_size": {"height": 224}}, "crop_size is {'height': 224}: expected height and width"),
        ({"size": "224"}, "size is '224': expected a whole number"),
        ({"size": 0}, "size is 0: expected at least 1"),
        ({"size": {"shortest_edge": 1.5}}, "size: shortest_edge is 1.5: expected a whole number"),
        ({"crop_size": {"height": 0, "width": 4}}, "crop_size: height is 0: expected at least 1"),
        ({"resample": 6}, "resample is 6: expected from 0 to 5"),
        ({"resample": "bicubic"}, "resample is 'bicubic': expected a whole number"),
        ({"image_mean": [0.5]}, "image_mean has 1 numbers: expected three"),
        ({"image_std": 0.5}, "image_std is 0.5: expected a list of numbers"),
        ({"image_std": [1, 0, 1]}, r"image_std is [1, 0, 1]: expected numbers other than 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255': expected a number"),
        ({"do_normalize": "yes"}, "do_normalize is 'yes': expected true or false"),
    ],
    ids=str,
)
def test_a_processor_that_is_another_is_refused(json, words):
    with pytest.raises(InputError, match=rf"^preprocessor_config\.json: {re.escape(words)}[^\n]*$"):
        ImageProcessor.from_json(json)


def test_too_little_to_crop_is_refused():
    process = ImageProcessor.from_json({"do_resize": False, "crop_size": 32})
    assert process(pictures(1, 32, 33)).shape == (1, 3, 32, 32)
    with pytest.raises(InputError, match=r"frames of \(31, 40\) pixels can't be cropped to \(32, 32\): too small"):
        process(pictures(1, 31, 40))


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_texts_are_embedded_as_by_transformers(scorers, kind):
    f, scorer = fixture(kind), scorers[kind]
    assert_close(scorer.images(f["frames"].numpy()), f["pixels"], MODULE)
    assert_close(scorer.embed_frames(f["frames"].numpy()), f["image_embeds"], MODULE)
    assert_close(scorer.embed_texts(f.config["prompts"]), f["text_embeds"], MODULE)


@pytest.mark.parametrize("kind", KINDS)
def test_clip_scores_are_those_of_torchmetrics(scorers, kind):
    f, scorer = fixture(kind), scorers[kind]
    images, prompts, want = scorer.embed_frames(f["frames"].numpy()), f.config["prompts"], f.config["scores"]
    one = [clip_score(images, scorer.embed_texts([prompt] * len(images))) for prompt in prompts]
    assert one == pytest.approx(want["one"], abs=1e-4)
    assert max(one) - min(one) > 1
    assert clip_score(images, scorer.embed_texts(prompts)) == pytest.approx(want["each"], abs=1e-4)


def test_embeddings_are_unit_vectors_of_doubles(scorers):
    scorer = scorers["clip_gelu"]
    for rows in (scorer.embed_frames(pictures(3)), scorer.embed_texts(["red apple", "", "blue star"])):
        assert (rows.shape, rows.dtype, rows.device.type) == ((3, 24), torch.float64, "cpu")
        assert not rows.requires_grad
        assert rows.norm(dim=1) == pytest.approx(torch.ones(3), abs=1e-12)


def test_equal_frames_and_texts_are_embedded_once(scorers):
    scorer, rows = scorers["clip_quick_gelu"], []
    hooks = [
        tower.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        for tower in (scorer.vision.vision_model, scorer.text.text_model)
    ]
    order = [2, 0, 0, 1, 2, 0]
    got = scorer.embed_frames(pictures(3)[order])
    assert rows == [3]
    scorer.embed_texts(["once", "twice", "once"])
    scorer.embed_texts(["twice"])
    assert rows == [3, 1, 1]
    for hook in hooks:
        hook.remove()
    assert_close(got, scorer.embed_frames(pictures(3))[order], MODULE)


def test_any_number_of_frames_is_embedded_in_batches(scorers):
    scorer, frames = scorers["clip_quick_gelu"], pictures(2 * BATCH + 3, 8, 8)
    assert_close(scorer.embed_frames(frames), torch.cat([scorer.embed_frames(one[None]) for one in frames]), MODULE)


def test_a_long_prompt_loses_its_last_words_and_not_its_end():
    scorer = Scorer.from_pretrained(CHECKPOINT)
    with pytest.warns(UserWarning, match=r"the prompt has \d+ tokens, this model reads 32: cut off") as caught:
        rows = scorer.embed_texts(["apple " * 60, "apple " * 30, "apple " * 29])
    assert len(caught) == 1
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])


def test_pixels_of_another_size_are_refused(scorers):
    vision = scorers["clip_gelu"].vision
    for shape in ((1, 3, 32, 40), (1, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"this vision tower reads \(b, 3, 32, 32\)"):
            vision.embed(torch.zeros(shape))


def test_frames_that_are_not_cropped_to_the_towers_size_are_refused(clip):
    edit(clip / "preprocessor_config.json", do_center_crop=False)
    scorer = Scorer.from_pretrained(clip)
    assert scorer.embed_frames(pictures(1, 50, 50)).shape == (1, 24)
    message = (
        rf"^frames of 52x40 become 41x32 by {re.escape(str(clip))}'s preprocessor_config\.json, but it reads 32x32"
    )
    with pytest.raises(InputError, match=message):
        scorer.embed_frames(pictures(1))


def test_nan_is_never_a_score(clip):
    edit_weights(clip / "model.safetensors", lambda t: t["visual_projection.weight"].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match="NaN"):
        Scorer.from_pretrained(clip).embed_frames(pictures(1))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_default_models_own_clip_compares_only_with_itself():
    scorer = Scorer.from_pretrained(CHECKPOINT)
    assert not scorer.comparable
    assert scorer.name == str(CHECKPOINT)
    assert scorer.digests.keys() == {"text_encoder", "image_encoder", "config"}
    for part in ("text_encoder", "image_encoder"):
        content = (CHECKPOINT / part / "model.safetensors").read_bytes()
        assert scorer.digests[part] == hashlib.sha256(content).hexdigest()


def test_a_public_clip_is_comparable(clips, scorers):
    for kind in KINDS:
        assert scorers[kind].comparable
        assert scorers[kind].name == str(clips[kind])
        content = (clips[kind] / "model.safetensors").read_bytes()
        assert scorers[kind].digests["model"] == hashlib.sha256(content).hexdigest()
        assert scorers[kind].digests.keys() == {"model", "config"}


@pytest.mark.parametrize(
    ("file", "changes", "same"),
    [
        ("config.json", {"transformers_version": "4.0", "logit_scale_init_value": 1.0}, True),
        ("preprocessor_config.json", {"resample": 3, "do_convert_rgb": False}, True),
        ("preprocessor_config.json", {"resample": 2}, False),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, False),
        ("config.json", {"vision_config_dict": fixture(KINDS[0]).config["config"]["vision_config"]}, False),
        ("tokenizer_config.json", {"model_max_length": 16}, False),
    ],
    ids=str,
)
def test_the_digest_is_of_all_that_decides_an_embedding(clip, scorers, file, changes, same):
    before = scorers["clip_quick_gelu"].digests
    edit(clip / file, **changes)
    after = Scorer.from_pretrained(clip).digests
    assert after["model"] == before["model"]
    assert (after["config"] == before["config"]) is same


def test_other_weights_have_another_digest(clip, scorers):
    edit_weights(clip / "model.safetensors", lambda t: t["visual_projection.weight"].neg_())
    before, after = scorers["clip_quick_gelu"].digests, Scorer.from_pretrained(clip).digests
    assert after["model"] != before["model"]
    assert after["config"] == before["config"]


def test_a_tokenizer_in_one_file_and_a_processor_in_another_are_read(clip, scorers):
    """As newer versions of transformers write them."""
    vocab = json.loads((clip / "vocab.json").read_text())
    merges = [line for line in (clip / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    (clip / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab, "merges": merges}}))
    images = json.loads((clip / "preprocessor_config.json").read_text())
    (clip / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    for name in ("vocab.json", "merges.txt", "preprocessor_config.json"):
        (clip / name).unlink()
    assert Scorer.from_pretrained(clip).digests == scorers["clip_quick_gelu"].digests


def test_a_processor_json_without_the_images_leaves_it_to_the_other_file(clip, scorers):
    (clip / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert Scorer.from_pretrained(clip).digests == scorers["clip_quick_gelu"].digests


def test_the_models_own_clip_scores_its_clips(folder, monkeypatch, tmp_path):
    assert scoring_model(CHECKPOINT) == str(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    assert scoring_model(DEFAULT_MODEL) == DEFAULT_MODEL
    for other in (folder, "sd15", "no/such/model"):
        assert scoring_model(other) == STANDARD_CLIP
    (folder / "image_encoder").mkdir()
    assert scoring_model(folder) == str(folder)


# --- what is refused --------------------------------------------------------------------------------------------------

PROJECTION = "visual_projection.weight"


def without(*names: str) -> Callable[[Path], None]:
    return lambda clip: edit_weights(clip / "model.safetensors", lambda t: [t.pop(name) for name in names])


def put(name: str, change: Callable[[Tensor], Tensor], of: str = "") -> Callable[[Path], None]:
    return lambda clip: edit_weights(clip / "model.safetensors", lambda t: t.update({name: change(t[of or name])}))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda clip: edit(clip / "config.json", **changes)


def text_config(**changes: Any) -> Callable[[Path], None]:
    return lambda clip: edit(
        clip / "config.json", text_config_dict=fixture(KINDS[0]).config["config"]["text_config_dict"] | changes
    )


def pickled(clip: Path) -> None:
    (clip / "model.safetensors").unlink()
    torch.save({"logit_scale": torch.zeros(())}, clip / "pytorch_model.bin")


def misnamed(clip: Path) -> None:
    (clip / "model.safetensors").rename(clip / "pytorch_model.bin")


def smaller_vocabulary(clip: Path) -> None:
    name = "text_model.embeddings.token_embedding.weight"
    put(name, lambda t: t[:1000])(clip)
    text_config(vocab_size=1000)(clip)


BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no projection": (without("text_projection.weight"), ["has no text_projection, so it can't score"]),
    "no image processor": (lambda c: (c / "preprocessor_config.json").unlink(), ["preprocessor_config.json: no such"]),
    "no vocabulary": (lambda c: (c / "vocab.json").unlink(), ["no CLIP vocabulary", "tokenizer.json: no such file"]),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), ["has no model.safetensors"]),
    "a pickle": (pickled, ["pytorch_model.bin is a pickle, which can run any code", "convert"]),
    "no pickle": (misnamed, ["pytorch_model.bin is a safetensors file", "rename it to pytorch_model.safetensors"]),
    "no configuration": (lambda c: (c / "config.json").unlink(), ["has no CLIP that can score", STANDARD_CLIP]),
    "another model": (config(model_type="siglip"), ["is of the type 'siglip': expected a CLIPModel ('clip')"]),
    "a flipped shape": (put(PROJECTION, lambda t: t.T), [PROJECTION, "(48, 24) instead of (24, 48)", "vision tower"]),
    "another width": (config(projection_dim=25), ["text_projection.weight (24, 32) instead of (25, 32)", "text tower"]),
    "no bias": (
        without("text_model.final_layer_norm.bias"),
        ["missing: text_model.final_layer_norm.bias", "text tower"],
    ),
    "one tensor more": (put("logit_bias", torch.clone, "logit_scale"), ["not expected: logit_bias", "vision tower"]),
    "an activation": (text_config(hidden_act="relu"), ["'relu'", "quick_gelu, gelu"]),
    "no number": (text_config(hidden_size="wide"), ["hidden_size is 'wide': expected a whole number"]),
    "no object": (config(vision_config_dict=3), ["vision_config is 3: expected a JSON object"]),
    "grey pictures": (config(vision_config_dict={"num_channels": 1}), ["num_channels = 1 is not supported, only 3"]),
    "other images": (
        lambda c: edit(c / "preprocessor_config.json", feature_extractor_type="ViTFeatureExtractor"),
        ["'ViTFeatureExtractor' is not supported"],
    ),
    "a smaller vocabulary": (
        smaller_vocabulary,
        [f"its tokenizer has {VOCABULARY} tokens", "its text encoder has 1000"],
    ),
    "another end": (text_config(eos_token_id=49407), [f"ends a text with {VOCABULARY - 1}", "looks for 49407"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_clip_that_is_broken_is_refused_in_one_line(clip, case):
    breaking, words = BROKEN[case]
    breaking(clip)
    refused(clip, *words)


def test_the_same_projection_is_needed_on_both_sides(model):
    edit(model / "image_encoder" / "config.json", projection_dim=64)
    refused(model, "texts are projected to 128 numbers, pictures to 64: expected the same")


def test_a_model_without_projection_can_not_score(model):
    edit_weights(model / "text_encoder" / "model.safetensors", lambda t: t.pop("text_projection.weight"))
    refused(model, str(model), "no text_projection", "give another CLIP")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("image_encoder", ["has no CLIP that can score", "image_encoder/", STANDARD_CLIP]),
        ("text_encoder", ["has an image_encoder/ but no text_encoder/"]),
        ("feature_extractor", ["feature_extractor/preprocessor_config.json: no such file"]),
        ("tokenizer", ["tokenizer/: no CLIP vocabulary"]),
    ],
)
def test_a_model_that_lacks_a_part_of_its_clip_is_refused(model, part, words):
    shutil.rmtree(model / part)
    refused(model, *words)


def test_what_is_no_folder_is_refused(clip):
    refused("no/such/clip", "no such model: 'no/such/clip'")
    refused(clip / "config.json", "config.json", "has no CLIP that can score")
    (clip / "model.bin").write_bytes(b"\x80\x02}q\x00.")
    refused(clip / "model.bin", "model.bin is a pickle")


# --- the configuration of a tower -------------------------------------------------------------------------------------


def test_a_tower_is_what_the_dict_says_where_there_is_one_and_the_width_is_the_models():
    assert tower({"text_config": {"a": 1, "projection_dim": 3}, "projection_dim": 4}, "text") == {
        "a": 1,
        "projection_dim": 4,
    }
    both = {"text_config": {"a": 1, "b": 1}, "text_config_dict": {"a": 2}}
    assert tower(both, "text") == {"a": 2, "projection_dim": 512}
    assert tower({"text_config_dict": None, "vision_config": None}, "vision") == {"projection_dim": 512}
