"""Load a ControlNet: a folder in the diffusers layout, a file in that layout or in the original one, or from the hub.

    folder     config.json and diffusion_pytorch_model.safetensors, or a folder around `controlnet/` with both
    file       its configuration is in a config.json beside it, if it has the name that diffusers gives it, or else
               follows from its shapes. Names of the original layout may begin with `control_model.`

Loading is strict: a tensor that is missing, unexpected or of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.diffusers_folder import rename
from zs2.checkpoints.digests import check_identity, identity, sha256
from zs2.checkpoints.hub import WEIGHTS, choose_weights, fetch, is_hub_id, parse, variants
from zs2.checkpoints.locate import PICKLES, local_path, refuse_missing, refuse_pickle
from zs2.checkpoints.original_names import CONTROL, controlnet_tensors, count
from zs2.checkpoints.single_file import contents
from zs2.checkpoints.tensor_files import loading, read_tensors, weight_files
from zs2.errors import InputError, brief, warn
from zs2.models.config import UNetConfig, VAEConfig
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.models.temporal import Momentum
from zs2.models.unet import UNet
from zs2.system.json_files import Json, read_json
from zs2.system.modules import assign, faster_layout, without_weights

STEM, FOLDER = WEIGHTS["unet"], "controlnet"
MARK = "controlnet_cond_embedding.conv_in.weight"  # a tensor that every ControlNet has
DIFFERENCE = "difference"  # a tensor of a file whose weights are to be added to those of a model
KINDS = "a folder in the diffusers layout, a .safetensors file, or owner/name on the hub"
SD1_WIDTH, SD2_WIDTH = 768, 1024  # of the text, which tells the family


class ControlNetFiles:
    """The files of a ControlNet.

    Args:
        place: a folder, a file, or `owner/name[@revision]` on the hub.
        dtype: that the weights will be loaded in. variant: of a folder's weights; see `find_weights`.
    Raises: InputError if there is no ControlNet. Warns of other parts in a file.
    """

    def __init__(self, place: str | Path, dtype: torch.dtype, variant: str | None = None) -> None:
        path, self.name = local_path(place), str(place)
        if path is None:
            refuse_missing(place)
        if path is None and is_hub_id(self.name):
            choose = partial(choose_control_files, variant=variant)
            path = fetch(self.name, str(dtype).removeprefix("torch."), choose)
            self.name = parse(self.name)[0]
        if path is None:
            raise InputError(f"no such ControlNet: {self.name!r}: expected {KINDS}")
        self._stated: Json | None = None
        if path.is_dir():
            folder = path / FOLDER if (path / FOLDER).is_dir() else path
            if not (folder / "config.json").is_file():
                raise InputError(f"{self.name!r} is no ControlNet: it has no config.json, and no {FOLDER}/ with one")
            self._stated = read_json(folder / "config.json")
            ControlNetConfig.from_json(self._stated)  # raises for another kind of model
            self.files: list[Path] = weight_files(folder, STEM, dtype, variant)
        else:
            if path.suffix.lower() in PICKLES:
                raise InputError(refuse_pickle(path))
            config = path.parent / "config.json"
            if path.name in variants([path.name], STEM).values() and config.is_file():
                self._stated = read_json(config)
            self.files = [path]
        self._before = identity(self.files)
        with loading(self.name):
            self.tensors = read_controlnet(self.files)

    @cached_property
    def json(self) -> Json:
        """Its configuration, in the form of the diffusers layout."""
        return controlnet_json(self.tensors) if self._stated is None else self._stated

    def network(self, device: torch.device, dtype: torch.dtype, momentum: Momentum) -> ControlNet:
        """The network, with an attention over frames. Raises: InputError for weights that do not fit."""
        config = ControlNetConfig.from_json(self.json)
        if config.layers > len(self.tensors):  # before so many are built
            raise InputError(f"{self.name}: {config.layers} layers, but {len(self.tensors)} tensors: some are missing")
        with loading(self.name), without_weights():
            network = ControlNet(config, momentum)
        with loading(self.name):
            return assign(network, self.tensors, self.name, dtype, device, faster_layout(dtype, device))

    @cached_property
    def digest(self) -> dict[str, str]:
        """The SHA-256 of the weights and of the configuration. Raises: ChangedFile if a file was changed since."""
        stated = dumps({key: value for key, value in self.json.items() if not key.startswith("_")}, sort_keys=True)
        found = {"sha256": sha256(self.files), "config": hashlib.sha256(stated.encode()).hexdigest()}
        check_identity(self.files, self._before)
        return found


def load_controlnets(
    places: str | Path | Sequence[str | Path], unet: UNet, reduction: int, variant: str | None = None
) -> tuple[tuple[ControlNet, ...], tuple[ControlNetFiles, ...]]:
    """ControlNets for a UNet, with its attention over frames, its dtype and its device, and their files.

    Args: places: one or several, as `ControlNetFiles` has them. reduction: of the VAE.
    Raises: InputError for one that can't be loaded, or is for models of another family.
    """
    weight = unet.conv_in.weight
    found = [ControlNetFiles(place, weight.dtype, variant) for place in _several(places)]
    for files in found:
        ControlNetConfig.from_json(files.json).check(unet.config, reduction, files.name)
    return tuple(files.network(weight.device, weight.dtype, unet.momentum) for files in found), tuple(found)


def check_controlnet(place: str | Path, models: Sequence[Checkpoint]) -> None:
    """Raise InputError for a ControlNet that is not there, or fits none of these models. No weights are loaded."""
    files = ControlNetFiles(place, models[0].dtype)
    config, errors = ControlNetConfig.from_json(files.json), []
    for model in models:
        unet, vae = UNetConfig.from_json(model.json("unet")), VAEConfig.from_json(model.json("vae"))
        try:
            config.check(unet, vae.reduction, files.name)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(models):
        raise errors[0]


def _several(places: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    found = [places] if isinstance(places, str | Path) else places
    if not isinstance(found, list | tuple):
        raise InputError(f"controlnet is {brief(places)}: expected {KINDS}, or a list of them")
    return found


def choose_control_files(names: Iterable[str], dtype: str, variant: str | None = None) -> list[str]:
    """The files of a repository that a ControlNet needs. Raises: InputError if they are not there."""
    have = set(names)
    place = f"{FOLDER}/" if f"{FOLDER}/config.json" in have else ""
    if f"{place}config.json" not in have:
        single = sorted(name for name in have if name.endswith(".safetensors"))
        hint = f": download one of its files ({', '.join(single[:3])}) and give that" if single else ""
        raise InputError(f"no ControlNet in the diffusers layout: it has no config.json{hint}")
    return [f"{place}config.json", *choose_weights(have, f"{place}{STEM}", dtype, variant)]


def read_controlnet(files: list[Path]) -> dict[str, Tensor]:
    """The weights of a ControlNet by their names in the diffusers layout.

    Raises: InputError for files that hold none. Warns of other parts in a file.
    """
    everything = read_tensors(files)
    if DIFFERENCE in everything:
        raise InputError(f"{files[0].name} is the difference of a ControlNet from a model: expected a whole ControlNet")
    own = {name.removeprefix(CONTROL): one for name, one in everything.items() if name.startswith(CONTROL)}
    if own and len(own) < len(everything):
        others, _ = contents(name for name in everything if not name.startswith(CONTROL))
        warn(f"{files[0].name} also has {others or 'other tensors'}: not used")
    tensors = rename(controlnet_tensors(own or everything))
    if MARK not in tensors:
        there, _ = contents(everything)
        first = next(iter(everything), None)
        raise InputError(
            f"{files[0].name} is no ControlNet: it has {there or f'tensors of other names, such as {first}'}"
        )
    return tensors


def controlnet_json(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Derive `config.json` from the shapes of a ControlNet's tensors.

    Shapes do not tell the number of heads: it is 8 in SD 1, and in later families each head has 64 channels. As for a
    whole model in a single file, SD 2 computes attention in float32.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise InputError(f"the file has no {name} (as the diffusers layout calls it): a tensor is missing")
        return tuple(tensors[name].shape)

    levels = count(tensors, r"down_blocks\.(\d+)\.")
    channels = [shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    transformers = [f"{block}.attentions.0" for block in (*(f"down_blocks.{i}" for i in range(levels)), "mid_block")]
    has = [f"{name}.norm.weight" in tensors for name in transformers]
    depths = [count(tensors, rf"{re.escape(name)}\.transformer_blocks\.(\d+)\.") for name in transformers]
    depths[-2:] = [max(depths[-2:])]  # the middle is as the last level, if that has transformers
    hints = count(tensors, r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    text: dict[str, Any] = {}
    if any(has):
        name = transformers[has.index(True)]
        width = shape(f"{name}.transformer_blocks.0.attn2.to_k.weight")[1]
        text = {
            "cross_attention_dim": width,
            "attention_head_dim": 8 if width == SD1_WIDTH else [max(c // 64, 1) for c in channels],
            "upcast_attention": width == SD2_WIDTH,
            "use_linear_projection": len(shape(f"{name}.proj_in.weight")) == 2,
            "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        }
    if "add_embedding.linear_1.weight" in tensors:
        text |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        text["projection_class_embeddings_input_dim"] = shape("add_embedding.linear_1.weight")[1]
    return {
        "in_channels": shape("conv_in.weight")[1],
        "block_out_channels": channels,
        "layers_per_block": count(tensors, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in has[:-1]],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if has[-1] else "UNetMidBlock2D",
        "conditioning_channels": shape(MARK)[1],
        "conditioning_embedding_out_channels": [
            shape(MARK)[0],
            *(shape(f"controlnet_cond_embedding.blocks.{i}.weight")[0] for i in range(1, hints, 2)),
        ],
        **text,
    }
