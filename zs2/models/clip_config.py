"""Configurations of CLIP's two towers, read from a checkpoint's JSON files. A missing key has transformers' default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zs2.errors import InputError, brief
from zs2.system.json_files import MOST_CHANNELS, MOST_LAYERS, MOST_PIXELS, MOST_TOKENS, Json, Reader

FIXED: dict[str, tuple[Any, ...]] = {"quantization_config": (None,)}
# Keys that zs2 does not read, and with null in which transformers fails.
NOT_NULL = {"initializer_factor", "initializer_range"}
MODEL_NOT_NULL = {"initializer_factor", "logit_scale_init_value", "projection_dim", "return_dict"}


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text tower."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    projection_dim: int  # 0: there is no projection
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int

    @classmethod
    def from_json(cls, json: Json, part: str = "text_encoder") -> TextConfig:
        """Read `text_encoder/config.json`, or the file of another part. The many training-only keys are ignored.

        Raises: InputError for an activation that zs2 does not have.
        """
        not_null = NOT_NULL | {"return_dict"} if part == "text_encoder_2" else NOT_NULL
        read = Reader(f"{part}/config.json", json, FIXED, not_null)
        width = read.whole("hidden_size", 512, most=MOST_CHANNELS)
        heads = read.whole("num_attention_heads", 8, most=MOST_CHANNELS)
        read.check_divides([width], [heads], "num_attention_heads")
        projected = json.get("projection_dim", 512) is not None
        return cls(
            vocab_size=read.whole("vocab_size", 49408, most=MOST_TOKENS),
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size", 2048, most=MOST_CHANNELS),
            projection_dim=read.whole("projection_dim", 512, most=MOST_CHANNELS) if projected else 0,
            num_hidden_layers=read.whole("num_hidden_layers", 12, most=MOST_LAYERS),
            num_attention_heads=heads,
            max_position_embeddings=read.whole("max_position_embeddings", 77, most=MOST_PIXELS),
            hidden_act=read.name("hidden_act", "quick_gelu", ("quick_gelu", "gelu")),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5),
            eos_token_id=read.whole("eos_token_id", 49407, least=0, most=MOST_TOKENS),
        )


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision tower."""

    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    @classmethod
    def from_json(cls, json: Json, part: str = "image_encoder") -> VisionConfig:
        """Read `image_encoder/config.json`, or the file of another part. The many training-only keys are ignored.

        Raises: InputError for an activation that zs2 does not have, or for pictures that are not RGB.
        """
        read = Reader(f"{part}/config.json", json, FIXED | {"num_channels": (3,)}, NOT_NULL)
        width = read.whole("hidden_size", 768, most=MOST_CHANNELS)
        heads = read.whole("num_attention_heads", 12, most=MOST_CHANNELS)
        read.check_divides([width], [heads], "num_attention_heads")
        return cls(
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size", 3072, most=MOST_CHANNELS),
            projection_dim=read.whole("projection_dim", 512, most=MOST_CHANNELS),
            num_hidden_layers=read.whole("num_hidden_layers", 12, most=MOST_LAYERS),
            num_attention_heads=heads,
            image_size=read.whole("image_size", 224, most=MOST_PIXELS),
            patch_size=read.whole("patch_size", 32, most=MOST_PIXELS),
            hidden_act=read.name("hidden_act", "quick_gelu", ("quick_gelu", "gelu")),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5),
        )


def tower(json: Json, which: str) -> Json:
    """The configuration of one tower, `text` or `vision`, from that of a CLIPModel, as transformers reads it.

    In an old file, `text_config_dict` takes precedence: `text_config` was derived from it. The width of the projection
    is an entry of the model; a tower's own entry is ignored.
    Raises: InputError for a configuration with null where transformers fails.
    """
    Reader("config.json", json, FIXED, MODEL_NOT_NULL)
    own = json.get(f"{which}_config_dict")
    if own is None:
        own = json.get(f"{which}_config") or {}
    if not isinstance(own, dict):
        raise InputError(f"config.json: {which}_config is {brief(own)}: expected a JSON object")
    Reader(f"config.json: {which}_config", own, {}, {"projection_dim"} if which == "vision" else ())
    return own | {"projection_dim": json.get("projection_dim", 512)}
