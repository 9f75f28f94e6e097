"""Check and load a checkpoint: a folder in the diffusers layout or a file in the original one, safetensors only.

Weights are memory-mapped, and assigned to modules on the meta device. So nothing is initialised at random, and a tensor
that has the wanted dtype and device already is never copied. Loading is strict: a tensor that is missing, unexpected or
of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zs2.checkpoints.diffusers_folder import Folder
from zs2.checkpoints.digests import sha256
from zs2.checkpoints.locate import locate
from zs2.checkpoints.own_settings import OwnSettings
from zs2.checkpoints.single_file import SingleFile
from zs2.checkpoints.tensor_files import stored_dtype
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import LEFT_OUT, ScheduleConfig, UNetConfig, VAEConfig
from zs2.models.loading import assign, faster_layout, without_weights
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import Momentum
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.system.devices import auto_dtype

M = TypeVar("M", bound=nn.Module)

LAYER = r"text_model\.encoder\.layers\.(\d{1,4})\."


class Checkpoint:
    """One checkpoint: its configurations and its parts. A part is loaded when its method is called.

    Args:
        model: a folder in the diffusers layout, a file in the original layout, or a model on the hub.
        dtype: the dtype of the loaded weights; None: see `auto_dtype`. device: the device on which they are placed.
        prediction: `epsilon` or `v`, for a single file of SD 2, which does not contain it.
    Raises: InputError as `locate`, `Folder`, `SingleFile` and `OwnSettings` do. Each part raises it for weights that do
        not fit.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        prediction: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        wanted = auto_dtype(self.device) if dtype is None else dtype  # it decides which of a model's files are read
        path, name = locate(model, str(wanted).removeprefix("torch."))
        self.source = Folder(path, wanted, name) if path.is_dir() else SingleFile(path, prediction)
        half = dtype is None and wanted != torch.float32
        self.dtype = auto_dtype(self.device, stored_dtype(self.source.tensors("unet"))) if half else wanted
        self.name = self.source.name
        self.own_settings = OwnSettings.read(path, self.name)
        if path.is_dir() and prediction is not None:
            warnings.warn("prediction has no effect on a folder: its scheduler_config.json says", stacklevel=3)

    def unet(self, attn: str | Momentum = "tma", mu: float = 0.98) -> UNet:
        """The UNet, in the checkpoint's dtype."""
        config = UNetConfig.from_json(self.source.json("unet"))
        return self._load(
            "unet", lambda tensors: UNet(config, attn, mu), self.dtype, faster_layout(self.dtype, self.device)
        )

    def vae(self) -> VAE:
        """The VAE, in the checkpoint's dtype. But many VAEs overflow float16, XL's among them. Instead of float16 it is
        float32, unless its configuration says `force_upcast: false`."""
        config = VAEConfig.from_json(self.source.json("vae"))
        dtype = torch.float32 if self.dtype == torch.float16 and config.force_upcast else self.dtype
        layout = torch.preserve_format if dtype == torch.float32 else faster_layout(dtype, self.device)
        return self._load("vae", lambda tensors: VAE(config), dtype, layout)

    def text(self) -> PromptEncoder:
        """The text towers with their tokenizers."""
        towers = [(self.text_encoder(tower), self.tokenizer(tower)) for tower in self.source.towers]
        return PromptEncoder(towers, self.source.zero_empty)

    def text_encoder(self, tower: str = "text_encoder") -> TextEncoder:
        """A text tower, with its projection if the file has one."""
        config = TextConfig.from_json(self.source.json(tower), tower)

        def build(tensors: dict[str, Tensor]) -> TextEncoder:
            _cut(tensors, config.num_hidden_layers, tower)
            if not config.projection_dim:  # null: transformers' text tower without projection leaves it in the file
                tensors.pop("text_projection.weight", None)
            return TextEncoder(config, "text_projection.weight" in tensors)

        return self._load(tower, build, self.dtype)

    def tokenizer(self, tower: str = "text_encoder") -> Tokenizer:
        """The tokenizer of a text tower. Its prompts have at most as many tokens as the tower has positions."""
        config = TextConfig.from_json(self.source.json(tower), tower)
        return self.source.tokenizer(tower, config.max_position_embeddings)

    def schedule(self) -> ScheduleConfig:
        """The noise schedule. As in diffusers' pipeline of Stable Diffusion 1 and 2, latents are not clipped and steps
        are offset by 1, whatever an old file says. In SDXL's pipeline the file decides."""
        json = self.source.json("scheduler")
        old = {"clip_sample": False, "steps_offset": 1} if len(self.source.towers) == 1 else {}
        return ScheduleConfig.from_json({**json, **old})

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each part's weights, and one of the configurations and the tokenizers. That of a sharded part
        is of its files, one after another."""
        parts = [self.source.json(part) for part in ("unet", "vae", *self.source.towers, "scheduler")]
        identity: list[Any] = [{key: value for key, value in json.items() if key[0] != "_"} for json in parts]
        for tokenizer in map(self.tokenizer, self.source.towers):
            identity += [tokenizer.backend.to_str(), tokenizer.max_length, tokenizer.pad_id, *tokenizer.unusual]
        identity += ["zero_empty"] * self.source.zero_empty
        config = hashlib.sha256(dumps(identity, sort_keys=True).encode()).hexdigest()
        return {part: sha256(files) for part, files in self.source.files.items()} | {"config": config}

    def _load(
        self,
        part: str,
        build: Callable[[dict[str, Tensor]], M],
        dtype: torch.dtype,
        layout: torch.memory_format = torch.preserve_format,
    ) -> M:
        tensors = dict(self.source.tensors(part))
        for key, names in LEFT_OUT.get(part, {}).items():
            unused = [name for name in tensors if re.fullmatch(names, name)]
            if unused and self.source.json(part).get(key, key) is None:
                warnings.warn(
                    f"{part}/config.json: {key} is null: {len(unused)} tensors, such as {unused[0]}, are not used",
                    stacklevel=4,
                )
                tensors = {name: tensor for name, tensor in tensors.items() if name not in unused}
        with without_weights():
            module = build(tensors)
        return assign(module, tensors, part, dtype, self.device, layout)


def _cut(tensors: dict[str, Tensor], layers: int, tower: str) -> None:
    """Leave out the layers of a text tower that its JSON does not have, as transformers does. Warns of them."""
    numbers = {name: int(match[1]) for name in tensors if (match := re.match(LAYER, name))}
    count = 1 + max(numbers.values(), default=-1)
    if count > layers:
        unused = "the last one is" if count - layers == 1 else f"the last {count - layers} are"
        warnings.warn(
            f"{tower}/config.json: num_hidden_layers is {layers}, the weights have {count} layers: {unused} not used",
            stacklevel=6,
        )
        for name in [name for name, number in numbers.items() if number >= layers]:
            del tensors[name]
