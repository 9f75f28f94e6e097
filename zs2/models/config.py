"""Model configurations: frozen dataclasses, read from the JSON files of a checkpoint in the diffusers layout.

A missing key has the default of diffusers or transformers. A key that asks for something that zs2 does not build is an
error. In the file of a UNet or a VAE, an unknown key is a warning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from zs2.errors import InputError, brief
from zs2.system.json_files import MOST_CHANNELS, MOST_LAYERS, MOST_TIMESTEPS, Json, Reader

Fixed: TypeAlias = dict[str, tuple[Any, ...]]

# Values that Stable Diffusion's one architecture of UNet and VAE fixes. Any other value would need other code. None
# among them: with null there, diffusers builds the same.
UNET_FIXED: Fixed = {
    "act_fn": ("silu",),
    "attention_type": ("default", None),
    "center_input_sample": (False, None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "quantization_config": (None,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
VAE_FIXED: Fixed = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "quantization_config": (None,),
    "shift_factor": (None,),
}
SCHEDULE_FIXED: Fixed = {"thresholding": (False, None), "use_flow_sigmas": (False, None)}
REFUSED_SCHEDULERS = ("FlowMatch", "EDM")  # words in the names of those for models of another kind
SPACINGS = ("leading", "trailing", "linspace")

# Keys that zs2 does not read, and with null in which diffusers fails.
UNET_NOT_NULL = {"_class_name", "dropout"}
VAE_NOT_NULL = {"_class_name", "sample_size"}
SCHEDULE_NOT_NULL = {"_class_name"}

# Bookkeeping of training that has no effect: what diffusers' EMAModel writes into a configuration, and a dtype.
BOOKKEEPING = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
BOOKKEEPING |= {"torch_dtype"}
# Keys without effect in this architecture: for training only, of other blocks, or of a setting that is refused.
UNET_IGNORED = BOOKKEEPING | {
    "addition_embed_type_num_heads",
    "cross_attention_norm",
    "dropout",
    "mid_block_only_cross_attention",
    "resnet_out_scale_factor",
    "resnet_skip_time_act",
}
UNET_RENAMED = {
    "down_block_types",
    "up_block_types",
    "transformer_layers_per_block",
    "attention_head_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
}
# By part and key: what null leaves out. Weights of it that a file has nevertheless are not used, by name.
LEFT_OUT = {
    "unet": {"mid_block_type": r"mid_block\..*"},
    "vae": {
        "mid_block_add_attention": r"(en|de)coder\.mid_block\.attentions\..*",
        "use_post_quant_conv": r"post_quant_conv\..*",
        "use_quant_conv": r"quant_conv\..*",
    },
}
VAE_IGNORED = BOOKKEEPING | {"sample_size", "down_block_types", "up_block_types"}


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of the denoiser. Tuples have one entry per level, from the largest resolution to the smallest."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    attention: tuple[bool, ...]  # whether a level has transformers
    transformer_layers: tuple[int, ...]  # blocks in each transformer
    heads: tuple[int, ...]
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float  # eps of the resnets' GroupNorm; that of the transformers' GroupNorm is 1e-6
    use_linear_projection: bool
    upcast_attention: bool
    downsample_padding: int
    flip_sin_to_cos: bool
    freq_shift: float
    sample_size: tuple[int, int] | None  # default latent height and width; None: a call must give the size
    mid_block: bool  # whether there is a middle block; some distilled models have none
    added_dim: int  # SDXL: width of the pooled text and the sinusoids of six sizes together; otherwise 0
    added_size_dim: int  # SDXL: width of the sinusoids of one size; otherwise 0

    @property
    def layers(self) -> int:
        """How many resnets and transformer blocks there are at least. Each has tensors of its own."""
        rows = zip(self.layers_per_block, self.attention, self.transformer_layers, strict=True)
        return sum(2 * layers * (1 + attention * blocks) for layers, attention, blocks in rows)

    @classmethod
    def from_json(cls, json: Json, what: str = "unet/config.json") -> UNetConfig:
        """Read `unet/config.json`. what: its name, for errors.

        In this file, `attention_head_dim` is the *number* of heads (a misnomer that diffusers keeps).
        Raises: InputError for an architecture that zs2 does not build.
        """
        xl = json.get("addition_embed_type") is not None
        # in Stable Diffusion's pipeline diffusers compares versions
        not_null = UNET_NOT_NULL if xl else UNET_NOT_NULL | {"_diffusers_version"}
        read = Reader(what, json, UNET_FIXED, not_null)
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
        groups = read.whole("norm_num_groups", 32, most=MOST_CHANNELS)
        mid_block = json.get("mid_block_type", "") is not None
        used = (*attention[:-1], attention[-1] or mid_block)  # the middle block has the last level's sizes
        if not any(used):
            raise InputError(f"{read.what}: no block has transformers: the text would have no effect")
        heads = read.levels("attention_head_dim", 8, count, used)
        read.check_divides(channels, (groups,) * count, "norm_num_groups")
        read.check_divides(channels, heads, "attention_head_dim (the number of heads)")
        kind = json.get("addition_embed_type")
        if kind not in (None, "text_time"):
            raise InputError(
                f"{read.what}: addition_embed_type = {brief(kind)} is not supported, only 'text_time' (SDXL) and none"
            )
        added = kind == "text_time"
        read.warn_of_unknown(set(UNetConfig.__dataclass_fields__) | set(UNET_FIXED) | UNET_IGNORED | UNET_RENAMED)
        return UNetConfig(
            in_channels=read.whole("in_channels", 4, most=MOST_CHANNELS),
            out_channels=read.whole("out_channels", 4, most=MOST_CHANNELS),
            block_out_channels=channels,
            layers_per_block=read.levels("layers_per_block", 2, count, most=MOST_LAYERS),
            attention=attention,
            transformer_layers=read.levels("transformer_layers_per_block", 1, count, used, most=MOST_LAYERS),
            heads=heads,
            cross_attention_dim=read.levels("cross_attention_dim", 1280, 1)[0],
            norm_num_groups=groups,
            norm_eps=read.number("norm_eps", 1e-5),
            use_linear_projection=read.flag("use_linear_projection", False),
            upcast_attention=read.flag("upcast_attention", False),
            downsample_padding=read.whole("downsample_padding", 1, least=0, most=1),
            flip_sin_to_cos=read.flag("flip_sin_to_cos", True),
            freq_shift=read.number("freq_shift", 0),
            sample_size=(64, 64) if not xl and _of_an_old_version(json) else read.pair("sample_size"),
            mid_block=mid_block,
            added_dim=read.whole("projection_class_embeddings_input_dim", None, most=MOST_CHANNELS) if added else 0,
            added_size_dim=read.whole("addition_time_embed_dim", None, most=MOST_CHANNELS) if added else 0,
        )


def _of_an_old_version(json: Json) -> bool:
    """Whether diffusers takes 64 for the size: files from before its version 0.9 have a smaller one by mistake."""
    match = re.match(r"0\.(\d{1,4})", str(json.get("_diffusers_version")))
    size = json.get("sample_size")
    return match is not None and int(match[1]) < 9 and isinstance(size, int) and size < 64


@dataclass(frozen=True)
class VAEConfig:
    """Configuration of the autoencoder: pixels in [-1, 1] to latents. The UNet sees the latents × `scaling_factor`."""

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
    force_upcast: bool  # whether it overflows float16

    @property
    def layers(self) -> int:
        """How many resnets there are at least. Each has tensors of its own."""
        return 2 * self.layers_per_block * len(self.block_out_channels)

    @property
    def reduction(self) -> int:
        """Pixels per latent along one side: each level but the last halves the resolution."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: Json) -> VAEConfig:
        """Read `vae/config.json`. Raises: InputError for an architecture that zs2 does not build."""
        read = Reader("vae/config.json", json, VAE_FIXED, VAE_NOT_NULL)
        for side in ("down", "up"):
            read.kinds(f"{side}_block_types", (), ("DownEncoderBlock2D", "UpDecoderBlock2D"))
        channels = read.levels("block_out_channels", (64,))
        groups = read.whole("norm_num_groups", 32, most=MOST_CHANNELS)
        read.check_divides(channels, (groups,) * len(channels), "norm_num_groups")
        read.warn_of_unknown(set(cls.__dataclass_fields__) | set(VAE_FIXED) | VAE_IGNORED)
        return cls(
            in_channels=read.whole("in_channels", 3, most=MOST_CHANNELS),
            out_channels=read.whole("out_channels", 3, most=MOST_CHANNELS),
            latent_channels=read.whole("latent_channels", 4, most=MOST_CHANNELS),
            block_out_channels=channels,
            layers_per_block=read.whole("layers_per_block", 1, most=MOST_LAYERS),
            norm_num_groups=groups,
            scaling_factor=read.number("scaling_factor", 0.18215, 1e-6, 1e6),
            use_quant_conv=read.flag("use_quant_conv", True),
            use_post_quant_conv=read.flag("use_post_quant_conv", True),
            mid_block_add_attention=read.flag("mid_block_add_attention", True),
            force_upcast=read.flag("force_upcast", True),
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule that a checkpoint was trained with, and how sampling steps are placed on it."""

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
        """Read `scheduler/scheduler_config.json` of any scheduler, for DDIM.

        Only in DDIM's own files does `clip_sample` default to true; other schedulers never meant to clip.
        Raises: InputError for a schedule, prediction or spacing that zs2 does not have.
        """
        read = Reader("scheduler_config.json", json, SCHEDULE_FIXED, SCHEDULE_NOT_NULL)
        if any(word in str(json.get("_class_name")) for word in REFUSED_SCHEDULERS):
            name = brief(json["_class_name"])
            raise InputError(f"{read.what}: {name} is for models of another kind: zs2 samples by DDIM")
        total, betas = read.whole("num_train_timesteps", 1000, most=MOST_TIMESTEPS), read.numbers("trained_betas", 0, 1)
        if betas is not None and len(betas) != total:
            raise InputError(f"{read.what}: {len(betas)} trained_betas for {total} timesteps: expected one each")
        # what is not used may be null
        schedules = ("linear", "scaled_linear", "squaredcos_cap_v2")
        schedule = "trained" if betas else read.name("beta_schedule", "linear", schedules)
        spacing = read.name("timestep_spacing", "leading", SPACINGS)
        offset = spacing == "leading" or json.get("steps_offset") is not None
        clip = read.flag("clip_sample", json.get("_class_name", "DDIMScheduler") == "DDIMScheduler")
        start, end = 1e-4, 0.02
        if schedule in ("linear", "scaled_linear"):
            start, end = read.number("beta_start", start), read.number("beta_end", end)
            for key, value in (("beta_start", start), ("beta_end", end)):
                if not 0 < value < 1:
                    raise InputError(f"{read.what}: {key} is {value}: expected a number between 0 and 1")
        return cls(
            num_train_timesteps=total,
            beta_start=start,
            beta_end=end,
            beta_schedule=schedule,
            trained_betas=betas,
            rescale_betas_zero_snr=read.flag("rescale_betas_zero_snr", False),
            prediction_type=read.name("prediction_type", "epsilon", ("epsilon", "v_prediction", "sample")),
            timestep_spacing=spacing,
            steps_offset=read.whole("steps_offset", 0, least=0, most=total - 1) if offset else 0,
            set_alpha_to_one=read.flag("set_alpha_to_one", True),
            clip_sample=clip,
            clip_sample_range=read.number("clip_sample_range", 1.0) if clip else 1.0,
        )
