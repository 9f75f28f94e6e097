"""The names of the original layout of Stable Diffusion 1.x, 2.x and XL, translated to those of the diffusers layout;
and how the files of LoRA name a layer of either."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from zs2.errors import InputError

# Original name → name in the diffusers layout. A pattern matches the beginning of a name; the rest of the name stays.
UNET_NAMES = (
    (r"time_embed\.0", "time_embedding.linear_1"),
    (r"time_embed\.2", "time_embedding.linear_2"),
    (r"label_emb\.0\.0", "add_embedding.linear_1"),
    (r"label_emb\.0\.2", "add_embedding.linear_2"),
    (r"input_blocks\.0\.0", "conv_in"),
    (r"middle_block\.0", "mid_block.resnets.0"),
    (r"middle_block\.1", "mid_block.attentions.0"),
    (r"middle_block\.2", "mid_block.resnets.1"),
    (r"out\.0", "conv_norm_out"),
    (r"out\.2", "conv_out"),
)
RESNET_NAMES = (
    (r"in_layers\.0", "norm1"),
    (r"in_layers\.2", "conv1"),
    (r"emb_layers\.1", "time_emb_proj"),
    (r"out_layers\.0", "norm2"),
    (r"out_layers\.3", "conv2"),
    (r"skip_connection", "conv_shortcut"),
)
VAE_NAMES = (
    (r"(encoder|decoder)\.mid\.block_1", r"\1.mid_block.resnets.0"),
    (r"(encoder|decoder)\.mid\.block_2", r"\1.mid_block.resnets.1"),
    (r"(encoder|decoder)\.mid\.attn_1\.norm", r"\1.mid_block.attentions.0.group_norm"),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out", r"\1.mid_block.attentions.0.to_out.0"),
    (r"(encoder|decoder)\.mid\.attn_1\.([qkv])", r"\1.mid_block.attentions.0.to_\2"),
    (r"(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
    (r"encoder\.down\.(\d+)\.block\.(\d+)", r"encoder.down_blocks.\1.resnets.\2"),
    (r"encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0"),
)
OPENCLIP_NAMES = (
    (r"token_embedding", "text_model.embeddings.token_embedding"),
    (r"ln_final", "text_model.final_layer_norm"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])", r"text_model.encoder.layers.\1.layer_norm\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj", r"text_model.encoder.layers.\1.self_attn.out_proj"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc", r"text_model.encoder.layers.\1.mlp.fc1"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj", r"text_model.encoder.layers.\1.mlp.fc2"),
)

# In LoRA: the beginning of a layer's name → the part of the model. PEFT and LyCORIS can leave the part out.
LORA_PARTS = (
    (
        r"lora_unet_|unet\.|diffusion_model\.|(lycoris_)?"
        r"(?=((down|up)_blocks|mid_block|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding)([._]|$))",
        "unet",
    ),
    (
        r"lora_te1?_|text_encoder\.|text_encoders\.clip_l\.transformer\.|(lycoris_)?"
        r"(?=(text_model|encoder|final_layer_norm|text_projection)([._]|$))",
        "text_encoder",
    ),
    (r"lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.transformer\.", "text_encoder_2"),
)

# In LoRA: other names of the same layer within a part, with underscores for dots.
LORA_ALIASES = (
    (r"^text_model_", ""),
    (r"_processor_", "_"),
    (r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj"),
    (r"(attn\d_to_out)$", r"\1_0"),
)

CONTROL = "control_model."  # before the names of a ControlNet, in a file of the original layout
CONTROL_NAMES = (
    (r"input_hint_block\.0", "controlnet_cond_embedding.conv_in"),
    (r"zero_convs\.(\d+)\.0", r"controlnet_down_blocks.\1"),
    (r"middle_block_out\.0", "controlnet_mid_block"),
)

# The pieces of a name of the UNet. A block's number, before the number of its module, may have two digits.
PIECES = re.compile(
    r"(?<=put_blocks)\d+(?=\d)|\d|time_embed|label_emb|(?:in|out)put_blocks|middle_block|in_layers|emb_layers|out_layers"
    r"|skip_connection|transformer_blocks|attn\d|to_[qkv]|to_out|ff|net|proj_in|proj_out|proj|norm\d?|conv|out|op"
    r"|weight|bias"
)


def average_names(names: Iterable[str]) -> dict[str, str]:
    """The UNet's name of each tensor of its moving average. The original code takes the dots out of them:
    `diffusion_modelinput_blocks110in_layers0weight` is `input_blocks.11.0.in_layers.0.weight`."""
    found = {}
    for name in names:
        flat = name.replace(".", "").removeprefix("diffusion_model")
        pieces = PIECES.findall(flat)
        found[name] = ".".join(pieces) if "".join(pieces) == flat else name
    return found


def unet_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors by their names in the diffusers layout."""
    names = unet_names(list(tensors))
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _put(renamed, names[name], tensor, name)
    return renamed


def unet_names(names: list[str]) -> dict[str, str]:
    """The diffusers name of each of the UNet's tensors. The file numbers its blocks consecutively over all levels."""
    # the first downsampling ends the first level
    ends = [
        int(match[1])
        for name in names
        if (match := re.fullmatch(r"input_blocks\.([1-9]\d{0,2})\.0\.op\.(?:weight|bias)", name))
    ]
    per_level = min(ends, default=len(names))  # resnets of a level on the way down, and its downsampling
    return {name: _unet_name(name, per_level) for name in names}


def _unet_name(name: str, per_level: int) -> str:
    flat = re.fullmatch(r"(input|output)_blocks\.(\d{1,3})\.(\d+)\.(.*)", name)
    if flat is None or name.startswith("input_blocks.0."):
        return _piece(_piece(name, UNET_NAMES), RESNET_NAMES, r"mid_block\.resnets\.\d+\.")
    way, number, sub, rest = flat[1], int(flat[2]), flat[3], flat[4]
    level, layer = divmod(number - 1 if way == "input" else number, per_level)
    side = "down" if way == "input" else "up"
    if sub == "0" and rest.startswith("op."):
        return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if sub in ("1", "2") and rest.startswith("conv."):  # after the resnet, and the transformer if there is one
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    if sub == "0":
        return f"{side}_blocks.{level}.resnets.{layer}.{_piece(rest, RESNET_NAMES)}"
    return f"{side}_blocks.{level}.attentions.{layer}.{rest}" if sub == "1" else name


def _piece(name: str, table: tuple[tuple[str, str], ...], after: str = "") -> str:
    """Translate the beginning of a name by the first pattern of the table that fits, after a prefix that stays."""
    for pattern, target in table:
        match = re.match(rf"({after})({pattern})(?=\.)", name)
        if match:
            return match[1] + re.sub(pattern, target, match[2]) + name[match.end() :]
    return name


def controlnet_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet's tensors by their names in the diffusers layout: those of a UNet, and its own.

    The convolutions of the encoder of hints have even numbers, with an activation between two of them.
    """
    names = unet_names(list(tensors))
    hint = r"input_hint_block\.([1-9]\d{0,2})\.(weight|bias)"
    last = max((int(match[1]) for name in tensors if (match := re.fullmatch(hint, name))), default=0)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _piece(names[name], CONTROL_NAMES)
        if match := re.fullmatch(hint, name):
            number = int(match[1])
            layer = "conv_out" if number == last else f"blocks.{number // 2 - 1}"
            new = f"controlnet_cond_embedding.{layer}.{match[2]}" if number % 2 == 0 else name
        _put(renamed, new, tensor, name)
    return renamed


def lora_layer(name: str, tower: str) -> tuple[str, str]:
    """A layer's name in a LoRA → (the part of the model, or nothing if it is of none; its name, with underscores).

    tower: the text tower, for a name that does not say which one.
    """
    for pattern, part in LORA_PARTS:
        match = re.match(pattern, name)
        if match:
            implied = part == "text_encoder" and match[0] in ("", "lycoris_")
            rest = name[match.end() :].replace(".", "_")
            for alias, target in LORA_ALIASES:
                rest = re.sub(alias, target, rest)
            return tower if implied else part, rest
    return "", name


def underscored_unet_name(name: str, depth: int) -> str:
    """`input_blocks_4_1_proj_in` → `down_blocks_1_attentions_0_proj_in`. depth: the resnets in a level."""
    dotted = re.sub(r"_(?=\d)|(?<=\d)_", ".", name) + ".weight"
    first_downsampling = f"input_blocks.{depth + 1}.0.op.weight"
    return unet_names([dotted, first_downsampling])[dotted].removesuffix(".weight").replace(".", "_")


def vae_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's tensors by their names in the diffusers layout.

    The 1×1 convolutions of attention become linear layers. The decoder counts its levels down instead of up.
    """
    levels = 1 + max((int(m[1]) for name in tensors if (m := re.match(r"decoder\.up\.(\d{1,3})\.", name))), default=-1)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _piece(name, VAE_NAMES)
        up = re.fullmatch(r"decoder\.up\.(\d{1,3})\.(?:block\.(\d+)|upsample)\.(.*)", name)
        if up:
            layer = "upsamplers.0" if up[2] is None else f"resnets.{up[2]}"
            new = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{layer}.{up[3]}"
        if ".attentions." in new and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        _put(renamed, new.replace(".nin_shortcut.", ".conv_shortcut."), tensor, name)
    return renamed


def openclip_tensors(tensors: dict[str, Tensor], whole: bool) -> dict[str, Tensor]:
    """The tensors of OpenCLIP's text tower by their names in the diffusers layout.

    whole: whether to keep the last layer and the projection. SDXL uses the whole tower, SD 2 only up to the penultimate
    layer. The original files of SD 2 hold the whole tower of 24 layers with its projection. Files that diffusers'
    script wrote are cut to 23 layers, and have no projection.
    """
    layers = count(tensors, r"transformer\.resblocks\.(\d+)\.")
    if not whole and ("text_projection" in tensors or layers == 24):
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(f"transformer.resblocks.{layers - 1}.") and name != "text_projection"
        }
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if packed:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"text_model.encoder.layers.{packed[1]}.self_attn.{letter}_proj.{packed[2]}"] = part
        elif name == "positional_embedding":
            renamed["text_model.embeddings.position_embedding.weight"] = tensor
        elif name == "text_projection":  # a parameter that multiplies from the right
            renamed["text_projection.weight"] = tensor.T
        else:
            _put(renamed, _piece(name, OPENCLIP_NAMES), tensor, name)
    return renamed


def _put(into: dict[str, Tensor], name: str, tensor: Tensor, was: str) -> None:
    """Store a tensor by its new name. Raises: InputError if two tensors of a file have the same new name."""
    if name in into:
        raise InputError(f"{was} and another tensor of the file are both {name}: expected one of them")
    into[name] = tensor


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group matches."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
