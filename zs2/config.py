"""Model configurations: frozen dataclasses, read from the JSON files of a checkpoint in the diffusers layout.

Keys that a JSON file lacks take the defaults of diffusers and transformers. A key that asks for something that zs2
does not build is an error; a key that zs2 does not know is a warning, never silently dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zs2.errors import InputError, choose

Json = Mapping[str, Any]

DEFAULT_MODEL = "weights/emoji64"

# The variants that the project exists to compare, and the paper's values.
ATTENTION_KINDS = ("sa", "cfa", "tma", "tma-two-tap")
NOISE_KINDS = ("iid", "shared", "mixed", "progressive", "dnm", "dnm-search")
DTYPES = ("float32", "bfloat16", "float16")
MU, LAM = 0.98, 0.01
SEED_MAX = 2**32 - 1  # torch's CPU generator uses 32 bits: larger seeds would repeat smaller ones

# What the one UNet and VAE architecture of Stable Diffusion fixes. Any other value would need other code.
UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "addition_embed_type": None,
}
VAE_FIXED: dict[str, Any] = {"act_fn": "silu", "latents_mean": None, "latents_std": None, "shift_factor": None}
SCHEDULE_FIXED: dict[str, Any] = {"thresholding": False}

# Keys that change nothing here: training-only, or the other half of a setting that is refused when it is on.
UNET_IGNORED = {"dropout", "addition_embed_type_num_heads", "addition_time_embed_dim"} | {
    "projection_class_embeddings_input_dim"
}
UNET_RENAMED = {"down_block_types", "up_block_types", "transformer_layers_per_block", "attention_head_dim"}
VAE_IGNORED = {"sample_size", "down_block_types", "up_block_types", "force_upcast"}


def _warn_unknown(what: str, json: Json, known: set[str]) -> None:
    """Warn of keys that are on and that zs2 does not read: they may mean another model."""
    unknown = sorted(k for k, v in json.items() if k not in known and not k.startswith("_") and v not in (None, False))
    if unknown:
        warnings.warn(f"{what}: zs2 does not know {', '.join(unknown)}: the result may differ", stacklevel=3)


def _check_fixed(what: str, json: Json, fixed: Mapping[str, Any]) -> None:
    for key, want in fixed.items():
        if json.get(key, want) != want:
            raise InputError(f"{what}: {key} = {json[key]!r} is not supported, only {want!r}: another architecture")


def _levels(value: Any, count: int, what: str) -> tuple[int, ...]:
    """One whole number for every level of a network: a number counts for all."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count or not all(isinstance(v, int) and v >= 0 for v in values):
        raise InputError(f"{what}: expected one whole number, or {count} of them, got {value!r}")
    return values


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser. Tuples have one entry a level, from the largest resolution to the smallest."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    attention: tuple[bool, ...]  # whether a level has transformers
    transformer_layers: tuple[int, ...]  # blocks in each transformer
    heads: tuple[int, ...]
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float  # of the resnets; the transformers' own GroupNorm has 1e-6
    use_linear_projection: bool
    upcast_attention: bool
    downsample_padding: int
    flip_sin_to_cos: bool
    freq_shift: float
    sample_size: tuple[int, int]  # default latent height and width

    @classmethod
    def from_json(cls, json: Json) -> UNetConfig:
        """Read a `unet/config.json`.

        In it, `attention_head_dim` is the *number* of heads (a misnomer that diffusers keeps).
        Raises: InputError for an architecture that zs2 does not build.
        """
        what = "unet/config.json"
        _check_fixed(what, json, UNET_FIXED)
        channels = tuple(json.get("block_out_channels", (320, 640, 1280, 1280)))
        count = len(channels)
        down = json.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
        up = json.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
        for kind in (*down, *up):
            names = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
            choose(f"block type in {what}", kind, names)
        attention = tuple(kind.startswith("CrossAttn") for kind in down)
        if len(down) != count or tuple(kind.startswith("CrossAttn") for kind in up) != attention[::-1]:
            raise InputError(
                f"{what}: {count} levels, but blocks {list(down)} and {list(up)}: they must mirror each other"
            )
        sample = json.get("sample_size") or 64
        _warn_unknown(what, json, set(cls.__dataclass_fields__) | set(UNET_FIXED) | UNET_IGNORED | UNET_RENAMED)
        return cls(
            in_channels=json.get("in_channels", 4),
            out_channels=json.get("out_channels", 4),
            block_out_channels=_levels(channels, count, f"{what}: block_out_channels"),
            layers_per_block=_levels(json.get("layers_per_block", 2), count, f"{what}: layers_per_block"),
            attention=attention,
            transformer_layers=_levels(
                json.get("transformer_layers_per_block", 1), count, f"{what}: transformer layers"
            ),
            heads=_levels(json.get("attention_head_dim", 8), count, f"{what}: attention_head_dim"),
            cross_attention_dim=_levels(json.get("cross_attention_dim", 1280), 1, f"{what}: cross_attention_dim")[0],
            norm_num_groups=json.get("norm_num_groups", 32),
            norm_eps=json.get("norm_eps", 1e-5),
            use_linear_projection=json.get("use_linear_projection", False),
            upcast_attention=json.get("upcast_attention", False),
            downsample_padding=json.get("downsample_padding", 1),
            flip_sin_to_cos=json.get("flip_sin_to_cos", True),
            freq_shift=json.get("freq_shift", 0),
            sample_size=(sample, sample) if isinstance(sample, int) else (sample[0], sample[1]),
        )


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between pixels in [-1, 1] and latents; `scaling_factor` × latent is what the UNet sees."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool

    @property
    def reduction(self) -> int:
        """Pixels along one side of a latent: each level but the last halves."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: Json) -> VAEConfig:
        """Read a `vae/config.json`. Raises: InputError for an architecture that zs2 does not build."""
        what = "vae/config.json"
        _check_fixed(what, json, VAE_FIXED)
        for kind in (*json.get("down_block_types", ()), *json.get("up_block_types", ())):
            choose(f"block type in {what}", kind, ("DownEncoderBlock2D", "UpDecoderBlock2D"))
        channels = tuple(json.get("block_out_channels", (64,)))
        _warn_unknown(what, json, set(cls.__dataclass_fields__) | set(VAE_FIXED) | VAE_IGNORED)
        return cls(
            in_channels=json.get("in_channels", 3),
            out_channels=json.get("out_channels", 3),
            latent_channels=json.get("latent_channels", 4),
            block_out_channels=_levels(channels, len(channels), f"{what}: block_out_channels"),
            layers_per_block=json.get("layers_per_block", 1),
            norm_num_groups=json.get("norm_num_groups", 32),
            scaling_factor=json.get("scaling_factor", 0.18215),
            use_quant_conv=json.get("use_quant_conv", True),
            use_post_quant_conv=json.get("use_post_quant_conv", True),
            mid_block_add_attention=json.get("mid_block_add_attention", True),
        )


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text tower."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int

    @classmethod
    def from_json(cls, json: Json) -> TextConfig:
        """Read a `text_encoder/config.json`. Its many training-only keys are not read.

        Raises: InputError for an activation that zs2 does not have.
        """
        return cls(
            vocab_size=json.get("vocab_size", 49408),
            hidden_size=json.get("hidden_size", 512),
            intermediate_size=json.get("intermediate_size", 2048),
            projection_dim=json.get("projection_dim", 512),
            num_hidden_layers=json.get("num_hidden_layers", 12),
            num_attention_heads=json.get("num_attention_heads", 8),
            max_position_embeddings=json.get("max_position_embeddings", 77),
            hidden_act=choose("hidden_act", json.get("hidden_act", "quick_gelu"), ("quick_gelu", "gelu")),
            layer_norm_eps=json.get("layer_norm_eps", 1e-5),
            eos_token_id=json.get("eos_token_id", 49407),
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule that a checkpoint was trained with, and how steps are placed on it."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] | None
    rescale_betas_zero_snr: bool
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    set_alpha_to_one: bool
    clip_sample: bool
    clip_sample_range: float

    @classmethod
    def from_json(cls, json: Json) -> ScheduleConfig:
        """Read a `scheduler/scheduler_config.json`, whichever scheduler wrote it, for DDIM.

        DDIM's own files default to `clip_sample` true; another scheduler's file never meant to clip.
        Raises: InputError for a schedule, prediction or spacing that zs2 does not have.
        """
        _check_fixed("scheduler_config.json", json, SCHEDULE_FIXED)
        betas = json.get("trained_betas")
        schedules = ("linear", "scaled_linear", "squaredcos_cap_v2")
        predictions = ("epsilon", "v_prediction", "sample")
        return cls(
            num_train_timesteps=json.get("num_train_timesteps", 1000),
            beta_start=json.get("beta_start", 1e-4),
            beta_end=json.get("beta_end", 0.02),
            beta_schedule=choose("beta_schedule", json.get("beta_schedule", "linear"), schedules),
            trained_betas=None if betas is None else tuple(betas),
            rescale_betas_zero_snr=json.get("rescale_betas_zero_snr", False),
            prediction_type=choose("prediction_type", json.get("prediction_type", "epsilon"), predictions),
            timestep_spacing=choose(
                "timestep_spacing", json.get("timestep_spacing", "leading"), ("leading", "trailing", "linspace")
            ),
            steps_offset=json.get("steps_offset", 0),
            set_alpha_to_one=json.get("set_alpha_to_one", True),
            clip_sample=json.get("clip_sample", json.get("_class_name", "DDIMScheduler") == "DDIMScheduler"),
            clip_sample_range=json.get("clip_sample_range", 1.0),
        )
