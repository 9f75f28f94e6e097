"""Model configurations: frozen dataclasses, read from the JSON files of a checkpoint in the diffusers layout.

Keys that a JSON file lacks take the defaults of diffusers and transformers. A key that asks for something that zs2
does not build is an error; in a UNet's or VAE's file, a key that zs2 does not know is a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from zs2.errors import InputError
from zs2.system.json_files import Json, Reader

DEFAULT_MODEL = "weights/emoji64"
STANDARD_CLIP = "openai/clip-vit-large-patch14"  # scores what has no CLIP of its own; torchmetrics' default, too

# The variants that the project exists to compare, and the paper's values.
ATTENTION_KINDS = ("sa", "cfa", "tma", "tma-two-tap")
NOISE_KINDS = ("iid", "shared", "mixed", "progressive", "dnm", "dnm-search")
TEXT2VIDEO_ZERO = "text2video-zero"  # a noise of its own kind: it needs the sampler
SAMPLERS = ("ddim", "dpm++")  # the paper's, and DPM-Solver++(2M)
# Fewer and cheaper steps whose clips score as those of 50 DDIM steps, by benchmarks/fewer_steps.py. Guidance that ends
# early is not among them: it takes motion away.
FAST: dict[str, Any] = {"sampler": "dpm++", "steps": 20, "deep_cache": 2}
DTYPES = ("float32", "bfloat16", "float16")
MU, LAM = 0.98, 0.01
LAM_MAX = math.sqrt(math.e)  # of independent noises: see noise.py
ALPHA = {"mixed": 1.0, "progressive": 2.0}  # PYoCo's own choices of a
SEED_MAX = 2**32 - 1  # torch's CPU generator uses 32 bits: larger seeds would repeat smaller ones


def uses_lam(noise: str) -> bool:
    """Whether λ has an effect on this noise model."""
    return noise.startswith("dnm")


def uses_mu(attn: str) -> bool:
    """Whether μ has an effect on this kind of attention."""
    return attn.startswith("tma")


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
}
VAE_FIXED: dict[str, Any] = {"act_fn": "silu", "latents_mean": None, "latents_std": None, "shift_factor": None}
SCHEDULE_FIXED: dict[str, Any] = {"thresholding": False}

# Keys that change nothing here: training-only, or the other half of a setting that is refused when it is on.
UNET_IGNORED = {"dropout", "addition_embed_type_num_heads"}
UNET_RENAMED = {
    "down_block_types",
    "up_block_types",
    "transformer_layers_per_block",
    "attention_head_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
}
VAE_IGNORED = {"sample_size", "down_block_types", "up_block_types", "force_upcast"}


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
    added_dim: int  # SDXL: width of the pooled text beside the sinusoids of six sizes; otherwise 0
    added_size_dim: int  # SDXL: width of the sinusoids of one size; otherwise 0

    @classmethod
    def from_json(cls, json: Json) -> UNetConfig:
        """Read a `unet/config.json`.

        In it, `attention_head_dim` is the *number* of heads (a misnomer that diffusers keeps).
        Raises: InputError for an architecture that zs2 does not build.
        """
        read = Reader("unet/config.json", json, UNET_FIXED)
        channels = read.levels("block_out_channels", (320, 640, 1280, 1280))
        count = len(channels)
        downs, ups = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
        down = read.kinds("down_block_types", (downs[0],) * 3 + (downs[1],), downs)
        up = read.kinds("up_block_types", (ups[1],) + (ups[0],) * 3, ups)
        attention = tuple(kind.startswith("CrossAttn") for kind in down)
        mirrored = tuple(kind.startswith("CrossAttn") for kind in reversed(up))
        if len(down) != count or mirrored != attention:
            raise InputError(
                f"{read.what}: {count} levels, but blocks {list(down)} and {list(up)}: they must mirror each other"
            )
        groups = read.whole("norm_num_groups", 32)
        heads = read.levels("attention_head_dim", 8, count)
        read.check_divides(channels, (groups,) * count, "norm_num_groups")
        read.check_divides(channels, heads, "attention_head_dim (the number of heads)")
        kind = json.get("addition_embed_type")
        if kind not in (None, "text_time"):
            raise InputError(
                f"{read.what}: addition_embed_type = {kind!r} is not supported, only 'text_time' (SDXL) and none"
            )
        added = kind == "text_time"
        read.warn_of_unknown(set(cls.__dataclass_fields__) | set(UNET_FIXED) | UNET_IGNORED | UNET_RENAMED)
        return cls(
            in_channels=read.whole("in_channels", 4),
            out_channels=read.whole("out_channels", 4),
            block_out_channels=channels,
            layers_per_block=read.levels("layers_per_block", 2, count),
            attention=attention,
            transformer_layers=read.levels("transformer_layers_per_block", 1, count),
            heads=heads,
            cross_attention_dim=read.levels("cross_attention_dim", 1280, 1)[0],
            norm_num_groups=groups,
            norm_eps=read.number("norm_eps", 1e-5),
            use_linear_projection=read.flag("use_linear_projection", False),
            upcast_attention=read.flag("upcast_attention", False),
            downsample_padding=read.whole("downsample_padding", 1, least=0),
            flip_sin_to_cos=read.flag("flip_sin_to_cos", True),
            freq_shift=read.number("freq_shift", 0),
            sample_size=read.pair("sample_size", 64),
            added_dim=read.whole("projection_class_embeddings_input_dim", None) if added else 0,
            added_size_dim=read.whole("addition_time_embed_dim", None) if added else 0,
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
        read = Reader("vae/config.json", json, VAE_FIXED)
        for side in ("down", "up"):
            read.kinds(f"{side}_block_types", (), ("DownEncoderBlock2D", "UpDecoderBlock2D"))
        channels = read.levels("block_out_channels", (64,))
        groups = read.whole("norm_num_groups", 32)
        read.check_divides(channels, (groups,) * len(channels), "norm_num_groups")
        read.warn_of_unknown(set(cls.__dataclass_fields__) | set(VAE_FIXED) | VAE_IGNORED)
        return cls(
            in_channels=read.whole("in_channels", 3),
            out_channels=read.whole("out_channels", 3),
            latent_channels=read.whole("latent_channels", 4),
            block_out_channels=channels,
            layers_per_block=read.whole("layers_per_block", 1),
            norm_num_groups=groups,
            scaling_factor=read.number("scaling_factor", 0.18215),
            use_quant_conv=read.flag("use_quant_conv", True),
            use_post_quant_conv=read.flag("use_post_quant_conv", True),
            mid_block_add_attention=read.flag("mid_block_add_attention", True),
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
    def from_json(cls, json: Json, part: str = "text_encoder") -> TextConfig:
        """Read a `text_encoder/config.json`, or that of another part. Its many training-only keys are not read.

        Raises: InputError for an activation that zs2 does not have.
        """
        read = Reader(f"{part}/config.json", json, {})
        width, heads = read.whole("hidden_size", 512), read.whole("num_attention_heads", 8)
        read.check_divides([width], [heads], "num_attention_heads")
        return cls(
            vocab_size=read.whole("vocab_size", 49408),
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size", 2048),
            projection_dim=read.whole("projection_dim", 512),
            num_hidden_layers=read.whole("num_hidden_layers", 12),
            num_attention_heads=heads,
            max_position_embeddings=read.whole("max_position_embeddings", 77),
            hidden_act=read.name("hidden_act", "quick_gelu", ("quick_gelu", "gelu")),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5),
            eos_token_id=read.whole("eos_token_id", 49407, least=0),
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
        """Read an `image_encoder/config.json`, or that of another part. Its many training-only keys are not read.

        Raises: InputError for an activation that zs2 does not have, or for pictures that are not RGB.
        """
        read = Reader(f"{part}/config.json", json, {"num_channels": 3})
        width, heads = read.whole("hidden_size", 768), read.whole("num_attention_heads", 12)
        read.check_divides([width], [heads], "num_attention_heads")
        return cls(
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size", 3072),
            projection_dim=read.whole("projection_dim", 512),
            num_hidden_layers=read.whole("num_hidden_layers", 12),
            num_attention_heads=heads,
            image_size=read.whole("image_size", 224),
            patch_size=read.whole("patch_size", 32),
            hidden_act=read.name("hidden_act", "quick_gelu", ("quick_gelu", "gelu")),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5),
        )


def tower(json: Json, which: str) -> Json:
    """The configuration of a tower, `text` or `vision`, within that of a CLIPModel, as transformers reads it.

    In an old file `text_config_dict` is what counts, and `text_config` was derived from it. The projection's width
    is the model's: a tower's own entry is not used.
    """
    said = json.get(f"{which}_config_dict")
    if said is None:
        said = json.get(f"{which}_config") or {}
    if not isinstance(said, dict):
        raise InputError(f"config.json: {which}_config is {said!r}: expected a JSON object")
    return said | {"projection_dim": json.get("projection_dim", 512)}


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
        read = Reader("scheduler_config.json", json, SCHEDULE_FIXED)
        if any(word in str(json.get("_class_name")) for word in ("FlowMatch", "EDM")):
            raise InputError(f"{read.what}: {json['_class_name']} is for models of another kind: zs2 samples by DDIM")
        for key in ("beta_start", "beta_end"):
            if not 0 < read.number(key, 0.01) < 1:
                raise InputError(f"{read.what}: {key} is {json[key]}: expected a number between 0 and 1")
        total, betas = read.whole("num_train_timesteps", 1000), read.numbers("trained_betas")
        if betas is not None and len(betas) != total:
            raise InputError(f"{read.what}: {len(betas)} trained_betas for {total} timesteps: expected one each")
        return cls(
            num_train_timesteps=total,
            beta_start=read.number("beta_start", 1e-4),
            beta_end=read.number("beta_end", 0.02),
            beta_schedule=read.name("beta_schedule", "linear", ("linear", "scaled_linear", "squaredcos_cap_v2")),
            trained_betas=betas,
            rescale_betas_zero_snr=read.flag("rescale_betas_zero_snr", False),
            prediction_type=read.name("prediction_type", "epsilon", ("epsilon", "v_prediction", "sample")),
            timestep_spacing=read.name("timestep_spacing", "leading", ("leading", "trailing", "linspace")),
            steps_offset=read.whole("steps_offset", 0, least=0),
            set_alpha_to_one=read.flag("set_alpha_to_one", True),
            clip_sample=read.flag("clip_sample", json.get("_class_name", "DDIMScheduler") == "DDIMScheduler"),
            clip_sample_range=read.number("clip_sample_range", 1.0),
        )
