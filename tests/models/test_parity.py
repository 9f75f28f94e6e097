"""The networks against the reference outputs of tests/fixtures, which diffusers and transformers made.

Solvers, images and clips: sampling/test_sampling_parity.py.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, MODULE, TESTS, Fixture, assert_close
from torch import Tensor

from zs2 import ZS2
from zs2.models.attention import Call, SpatialTransformer, TransformerBlock
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.layers import Conv2d, Downsample, ResnetBlock, Upsample, timestep_embedding
from zs2.models.temporal import momentum
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE

KINDS = (("sa", 0.98), ("cfa", 0.98), ("tma", 0.98), ("tma", 0.5), ("tma-two-tap", 0.25))
SELF = momentum("sa")

fixture = cache(Fixture)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("flip", [True, False])
def test_timestep_embedding(flip: bool, shift: int) -> None:
    f = fixture("timestep_embedding")
    got = timestep_embedding(f["t"], 32, flip_sin_to_cos=flip, freq_shift=shift)
    assert_close(got, f[f"flip={flip} shift={shift}/out"], MODULE)


def test_resnet_block_of_the_unet() -> None:
    f = fixture("layers")
    block = f.load(ResnetBlock(16, 24, groups=8, eps=1e-5, embed_dim=24), "resnet")
    embedding = torch.nn.functional.silu(f["resnet/embedding"])  # zs2 activates it once for all blocks
    assert_close(block(f["resnet/x"], embedding), f["resnet/out"], MODULE)


def test_resnet_block_of_the_vae() -> None:
    f = fixture("layers")
    block = f.load(ResnetBlock(16, 16, groups=8, eps=1e-6, embed_dim=None), "resnet of the vae")
    assert_close(block(f["resnet of the vae/x"]), f["resnet of the vae/out"], MODULE)


@pytest.mark.parametrize("padding", [0, 1])
def test_downsample(padding: int) -> None:
    f, case = fixture("layers"), f"downsample padding={padding}"
    assert_close(f.load(Downsample(16, padding), case)(f[f"{case}/x"]), f[f"{case}/out"], MODULE)


@pytest.mark.parametrize("name", ["twice", "sized"])
def test_upsample(name: str) -> None:
    f, want = fixture("layers"), fixture("layers")[f"upsample/{name}"]
    upsample = f.load(Upsample(16), "upsample")
    assert_close(upsample(f["upsample/x"], (want.shape[2], want.shape[3])), want, MODULE)


def call_with(blocks: Any, context: Tensor) -> Call:
    """A call of one frame a branch, with this text."""
    for index, block in enumerate(blocks):
        block.index = index
    return Call(1, [block.attn2.keys_values(context) for block in blocks], [None] * len(blocks))


def test_transformer_block() -> None:
    f = fixture("layers")
    block = f.load(TransformerBlock(16, 12, 2, SELF, upcast=False), "block")
    assert_close(block(f["block/x"], call_with([block], f["block/context"])), f["block/out"], MODULE)


@pytest.mark.parametrize("linear", [False, True])
def test_spatial_transformer(linear: bool) -> None:
    f, case = fixture("layers"), f"transformer linear={linear}"
    transformer = SpatialTransformer(16, 12, 2, 2, SELF, groups=8, linear=linear, upcast=linear)
    f.load(transformer, case)
    call = call_with(transformer.transformer_blocks, f[f"{case}/context"])
    assert_close(transformer(f[f"{case}/x"], call), f[f"{case}/out"], MODULE)


SHAPES = [  # channels in and out, size, stride, padding, pictures, height and width
    (8, 1024, 3, 1, 1, 2, (12, 12)),
    (8, 1024, 3, 1, 1, 9, (12, 11)),  # in parts
    (8, 1030, 3, 2, 1, 2, (9, 6)),
    (8, 1024, 3, 2, 0, 3, (9, 9)),
    (8, 1024, 1, 1, 0, 2, (3, 5)),
    (8, 1024, 3, 1, 1, 1, (1, 1)),
]


@pytest.mark.parametrize("pictures", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_as_a_product(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int, int, int, int, tuple[int, int]],
    weights: torch.memory_format,
    pictures: torch.memory_format,
) -> None:
    """Of few places and many channels; it is torch's convolution in float64, and in the layout of torch's."""
    channels, out, size, stride, padding, number, sides = shape
    torch.manual_seed(0)
    convolution = Conv2d(channels, out, size, stride=stride, padding=padding).to(memory_format=weights)
    x = torch.randn(number, channels, *sides).to(memory_format=pictures)
    weight, bias = convolution.weight.double(), convolution.bias.double()
    want = torch.nn.functional.conv2d(x.double(), weight, bias, stride, padding)
    torchs = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, stride, padding)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", only(set(), torch.nn.Conv2d.forward))
    got = convolution(x)
    assert_close(got, want.float(), MODULE)
    for layout in (torch.contiguous_format, torch.channels_last) * (size > 1):  # a weight of one pixel has either
        assert got.is_contiguous(memory_format=layout) == torchs.is_contiguous(memory_format=layout)
    half = convolution.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), want.float(), 0.02)


@pytest.mark.parametrize(("out", "sides"), [(1024, (13, 12)), (1023, (4, 4))])
def test_a_convolution_of_more_places_or_fewer_channels_is_none(
    monkeypatch: pytest.MonkeyPatch, out: int, sides: tuple[int, int]
) -> None:
    convolution, x = Conv2d(8, out, 3, padding=1), torch.randn(1, 8, *sides)
    want = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    monkeypatch.setattr(Conv2d, "_product", None)
    assert torch.equal(convolution(x), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_convolution_in_another_dtype_is_no_product(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    convolution, x = Conv2d(8, 1024, 3, padding=1).to(dtype), torch.randn(1, 8, 4, 4, dtype=dtype)
    want = torch.nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    monkeypatch.setattr(Conv2d, "_product", None)
    assert torch.equal(convolution(x), want)


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (1, 5)])
def test_a_convolution_of_no_place_is_torchs_error(sides: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        Conv2d(8, 1024, 3)(torch.randn(1, 8, *sides))


def only(modules: set[torch.nn.Module], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward of these modules; it fails for others."""

    def checked(module: torch.nn.Module, x: Tensor) -> Tensor:
        assert module in modules, f"{module} is no product"
        return forward(module, x)

    return checked


# --- whole networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", ["even", "odd", "narrow"])
@pytest.mark.parametrize("name", ["unet_sd1", "unet_sd2", "unet_8_channels"])
def test_unet(
    monkeypatch: pytest.MonkeyPatch, name: str, size: str, layout: torch.memory_format, products: bool
) -> None:
    """products: all convolutions of its blocks are products of matrices, and not only those of many channels."""
    f = fixture(name)
    unet = f.load(UNet(UNetConfig.from_json(f.config), attn="sa"), "model").to(memory_format=layout)
    if products:
        monkeypatch.setattr(Conv2d, "PLACES", 10**6)
        monkeypatch.setattr(Conv2d, "CHANNELS", 1)
        monkeypatch.setattr(torch.nn.Conv2d, "forward", only({unet.conv_in, unet.conv_out}, torch.nn.Conv2d.forward))
    assert_close(
        unet(f[f"{size}/x"], f[f"{size}/t"], f[f"{size}/context"], frames=1).prediction, f[f"{size}/out"], MODULE
    )


@pytest.mark.parametrize("size", ["even", "odd"])
@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("name", ["vae", "vae_plain"])
def test_vae(name: str, way: str, size: str) -> None:
    f, case = fixture(name), f"{way} {size}"
    vae = f.load(VAE(VAEConfig.from_json(f.config)), "model")
    assert_close(getattr(vae, way)(f[f"{case}/x"]), f[f"{case}/out"], MODULE)


@pytest.mark.parametrize("name", ["text_quick_gelu", "text_gelu"])
def test_text_encoder(name: str) -> None:
    f = fixture(name)
    encoder = f.load(TextEncoder(TextConfig.from_json(f.config)), "model")
    assert_close(encoder(f["out/ids"]), f["out/last"], MODULE)
    assert_close(encoder.embed(f["out/ids"]), f["out/embed"], MODULE)


# --- attention over frames --------------------------------------------------------------------------------------------


# Where attention is compared. The trained UNet's reference is in float64: its weights enlarge float32's rounding.
ATTENTIONS = [
    ("attention_tiny", torch.float32),
    ("attention_checkpoint", torch.float32),
    ("attention_checkpoint", torch.float64),
]


def unet_of(name: str, dtype: torch.dtype, model: ZS2, attn: str, mu: float) -> UNet:
    """The UNet of an attention fixture, under one kind of attention."""
    if name == "attention_checkpoint":
        unet = model.variant(attn=attn, mu=mu if attn.startswith("tma") else None).unet
        return copy.deepcopy(unet).to(dtype)
    weights = fixture("unet_sd1")
    return weights.load(UNet(UNetConfig.from_json(weights.config), attn=attn, mu=mu), "model")


@pytest.mark.parametrize(("attn", "mu"), KINDS)
@pytest.mark.parametrize(("name", "dtype"), ATTENTIONS)
def test_attention_over_frames(model: ZS2, name: str, dtype: torch.dtype, attn: str, mu: float) -> None:
    f = fixture(name)
    unet, t, want = unet_of(name, dtype, model, attn, mu), int(f["t"]), f[f"{attn} mu={mu}/out"]
    x, context = f["x"].to(dtype), f["context"].to(dtype)
    assert_close(unet(x, t, context, frames=4).prediction, want, MODULE)
    assert_close(
        unet(x, t, context.repeat_interleave(4, dim=0), frames=4).prediction, want, MODULE
    )  # a text for each row


@pytest.mark.parametrize("chunks", [(1, 3), (2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize(("attn", "mu"), KINDS)
@pytest.mark.parametrize(("name", "dtype"), ATTENTIONS)
def test_attention_over_chunks_of_frames(
    model: ZS2, name: str, dtype: torch.dtype, attn: str, mu: float, chunks: tuple[int, ...]
) -> None:
    f = fixture(name)
    unet, t = unet_of(name, dtype, model, attn, mu), int(f["t"])
    x, context = f["x"].to(dtype).unflatten(0, (2, 4)), f["context"].to(dtype)
    pieces, states = [], ()
    for chunk in x.split(chunks, dim=1):
        out = unet(chunk.flatten(0, 1), t, context, frames=chunk.shape[1], states=states)
        states = out.states
        pieces.append(out.prediction.unflatten(0, (2, -1)))
    assert_close(torch.cat(pieces, dim=1).flatten(0, 1), f[f"{attn} mu={mu}/out"], MODULE)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_tokenizer() -> None:
    tokenizer = Tokenizer.from_folder(CHECKPOINT / "tokenizer")
    entries = json.loads((TESTS / "fixtures" / "tokenizer.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are too long
        ids = tokenizer.encode([entry["prompt"] for entry in entries])
    assert ids.dtype == torch.int64
    for entry, got in zip(entries, ids.tolist(), strict=True):
        assert got == entry["ids"], f"{entry['prompt']!r}"


def test_tokenizer_warns_of_a_cut() -> None:
    tokenizer = Tokenizer.from_folder(CHECKPOINT / "tokenizer")
    for entry in json.loads((TESTS / "fixtures" / "tokenizer.json").read_text()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokenizer.encode([entry["prompt"]])
        assert bool(caught) == (entry["length"] > len(entry["ids"])), f"{entry['prompt']!r}"
        assert all(warning.category is UserWarning for warning in caught)


# --- the real checkpoint ----------------------------------------------------------------------------------------------


def test_checkpoint_text(model: ZS2) -> None:
    f = fixture("checkpoint_parts")
    assert_close(model.text_encoder(f["text/ids"]), f["text/last"], MODULE)
    assert_close(model.text_encoder.embed(f["text/ids"]), f["text/embed"], MODULE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [1, 401, 981])
def test_checkpoint_unet(model: ZS2, t: int, dtype: torch.dtype) -> None:
    f, case = fixture("checkpoint_parts"), f"unet t={t}"
    x, context = f[f"{case}/x"].to(dtype), f[f"{case}/context"].to(dtype)
    unet = copy.deepcopy(model.unet).to(dtype)
    assert_close(unet(x, t, context, frames=1).prediction, f[f"{case}/out"], MODULE)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_checkpoint_vae(model: ZS2, way: str) -> None:
    f = fixture("checkpoint_parts")
    assert_close(getattr(model.vae, way)(f[f"{way}/x"]), f[f"{way}/out"], MODULE)
