"""Weights that are NaN or infinite: the error names the part and the tensor, and advises nothing that can't help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures import tiny
from helpers import write_clip, write_tiny
from torch import nn

from zs2 import ZS2
from zs2.evaluation.clip_scorer import Parts, Scorer
from zs2.system.modules import not_finite


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ZS2]:
    made = {}
    for kind in tiny.JSONS:
        folder = write_tiny(tmp_path_factory.mktemp("models") / kind, kind)
        made[kind] = ZS2.from_pretrained(folder, device="cpu")
    return made


@pytest.fixture
def broken() -> Iterator[object]:
    """Changes a number of a weight, until the test ends."""
    before: list[tuple[nn.Parameter, torch.Tensor]] = []

    def change(module: nn.Module, name: str, value: float) -> None:
        weight = module.get_parameter(name)
        before.append((weight, weight.data))
        weight.data = weight.data.clone()
        weight.data.view(-1)[-1] = value

    yield change
    for weight, data in reversed(before):
        weight.data = data


PARTS = [  # kind, part, tensor
    ("sd", "unet", "conv_in.weight"),
    ("sd", "unet", "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight"),
    ("sd", "text_encoder", "text_model.final_layer_norm.bias"),
    ("xl", "text_encoder", "text_model.encoder.layers.0.mlp.fc2.weight"),
    ("xl", "text_encoder_2", "text_projection.weight"),
    ("xl", "unet", "add_embedding.linear_1.weight"),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("kind", "part", "name"), PARTS, ids=str)
def test_a_step_names_the_part_and_the_tensor(models, broken, kind, part, name, value):
    model = models[kind]
    encoders = model.text.encoders
    module = {"unet": model.unet, "text_encoder": encoders[0], "text_encoder_2": encoders[-1]}[part]
    broken(module, name, value)
    count = module.get_parameter(name).numel()
    prompt = f"{part} {value}"  # a new one, because encodings are kept
    with pytest.raises(FloatingPointError) as caught:
        model.latents(prompt, frames=1, steps=2, guidance=1.0, spacing="trailing", height=16, width=16)
    assert str(caught.value) == (
        "the latents are NaN or infinite after step 1 of 2 (timestep 99) in torch.float32, and so are weights, of "
        f"{part}: {name} (1 of {count} numbers): try another file"
    )


def test_decoding_names_the_tensor_of_the_vae(models, broken):
    broken(models["sd"].vae, "decoder.conv_out.bias", float("nan"))
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(FloatingPointError, match=r"weights, of vae: decoder.conv_out.bias \(1 of 3 numbers\): try ano"):
        models["sd"].decode(latents)


def test_several_tensors_are_counted(models, broken):
    for name in ("conv_in.weight", "conv_in.bias", "conv_out.bias"):
        broken(models["sd"].unet, name, float("nan"))
    assert not_finite({"unet": models["sd"].unet}) == "unet: conv_in.weight (1 of 288 numbers) and 2 more tensors"


def test_weights_whose_sum_overflows_are_finite():
    module = nn.Linear(2, 2)
    module.weight.data.fill_(3e38)
    assert not_finite({"linear": module}) == ""
    assert not_finite({"half": nn.Linear(300, 300).half()}) == ""
    module.half().weight.data.fill_(float("inf"))
    assert not_finite({"linear": module}) == "linear: weight (4 of 4 numbers)"


def test_the_clip_that_scores_names_its_tensor(tmp_path: Path, broken):
    folder = write_clip(tmp_path / "clip")
    scorer = Scorer(Parts.read(folder, "clip"), "clip", "cpu")
    broken(scorer.text, "text_model.final_layer_norm.bias", float("nan"))
    with pytest.raises(FloatingPointError, match=r"clip, the CLIP that scores, .* text tower: text_model.final"):
        scorer.embed_texts(["a cat"])
