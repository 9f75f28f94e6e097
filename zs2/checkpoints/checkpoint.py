"""Check and load a checkpoint: a folder in the diffusers layout or a file in the original one, safetensors only.

Weights are memory-mapped, and assigned to modules on the meta device. So nothing is initialised at random, and a tensor
that has the wanted dtype and device already is never copied. Loading is strict: a tensor that is missing, unexpected or
of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable
from functools import cached_property, partial
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zs2.checkpoints.diffusers_folder import Folder, rename
from zs2.checkpoints.digests import ChangedFile, check_identity, identity, sha256
from zs2.checkpoints.hub import WEIGHTS, choose_files, variants
from zs2.checkpoints.locate import PICKLES, local_path, locate, locate_base, refuse_pickle
from zs2.checkpoints.own_settings import OwnSettings
from zs2.checkpoints.single_file import SingleFile, read_vae, vae_json
from zs2.checkpoints.tensor_files import loading, read_tensors, stored_dtype, weight_files
from zs2.errors import InputError, brief, warn
from zs2.models.clip import TextEncoder
from zs2.models.clip_config import TextConfig
from zs2.models.config import LEFT_OUT, ScheduleConfig, UNetConfig, VAEConfig
from zs2.models.prompt_encoder import PromptEncoder
from zs2.models.temporal import Momentum
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.models.vae import VAE
from zs2.system.devices import auto_dtype
from zs2.system.json_files import Json, read_json
from zs2.system.modules import assign, drop_layers, faster_layout, without_weights

M = TypeVar("M", bound=nn.Module)

UNKNOWN = "unknown"  # the digest of what changed after it was loaded


class OtherVAE:
    """A VAE from elsewhere than the model.

    Args:
        path: a folder with a VAE in the diffusers layout, a model's folder, whose vae/ is taken, or a file in the
            diffusers or the original layout. A file's configuration is in a config.json beside it, if it has the name
            that diffusers gives it, or else follows from its shapes.
        dtype, variant: decide between the files of a folder; see `find_weights`.
    Raises: InputError if there is no VAE.
    """

    def __init__(self, path: Path, dtype: torch.dtype, variant: str | None = None) -> None:
        self.name, stem = str(path), WEIGHTS["vae"]
        if path.is_dir():
            folder = path / "vae" if (path / "vae").is_dir() else path
            if not (folder / "config.json").is_file():
                raise InputError(f"{str(path)!r} is no VAE: it has no config.json, and no vae/ with one")
            self.files: list[Path] = weight_files(folder, stem, dtype, variant)
            self._json: Json | None = read_json(folder / "config.json")
            kind = self._json.get("_class_name", "AutoencoderKL")
            if kind != "AutoencoderKL":
                raise InputError(f"{str(path)!r} is no VAE: its config.json is of {brief(kind)}, not of AutoencoderKL")
            self.tensors = rename(read_tensors(self.files))
        elif path.is_file():
            if path.suffix.lower() in PICKLES:
                raise InputError(refuse_pickle(path))
            config = path.parent / "config.json"
            self.files, self.tensors = [path], read_vae(path)
            named = path.name in variants([path.name], stem).values()
            self._json = read_json(config) if named and config.is_file() else None
        else:
            raise InputError(f"no such VAE: {str(path)!r}: expected a folder or a .safetensors file")

    def json(self, model: Folder | SingleFile) -> Json:
        """Its configuration. For a file without one, it is that of the model's own VAE, if that has the same shapes, or
        else follows from the shapes and the model's factor of latents."""
        if self._json is not None:
            return self._json
        derived, own = vae_json(self.tensors, model.scaling_factor), model.own_vae
        alike = all(own.get(key) == value for key, value in derived.items() if key != "scaling_factor")
        return own if alike else derived

    def check(self, config: VAEConfig, unet: UNetConfig, scaling_factor: float) -> None:
        """Raise InputError if it does not fit the UNet. Warn of another scaling factor than the model's own."""
        if config.latent_channels != unet.out_channels:
            raise InputError(
                f"the VAE {self.name!r} has {config.latent_channels} latent channels, the UNet {unet.out_channels}: it "
                "is for another model"
            )
        if not math.isclose(config.scaling_factor, scaling_factor, rel_tol=1e-2):
            warn(
                f"the VAE {self.name!r} has the scaling factor {config.scaling_factor}, the model's own VAE "
                f"{scaling_factor}: it may be for another family of models"
            )


class Checkpoint:
    """One checkpoint: its configurations and its parts. A part is loaded when its method is called.

    Args:
        model: a folder in the diffusers layout, a file in the original layout, or a model on the hub.
        dtype: the dtype of the loaded weights; None: see `auto_dtype`. device: the device on which they are placed.
        prediction: `epsilon` or `v`, for a single file of SD 2, which does not contain it.
        variant: of a folder's weights; see `find_weights`. vae: where to take the VAE from; see `OtherVAE`.
    Raises: InputError as `locate`, `Folder`, `SingleFile` and `OwnSettings` do. Each part raises it for weights that do
        not fit.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        prediction: str | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
    ) -> None:
        if vae == "" or not isinstance(vae, str | os.PathLike | None):  # as a Path "" would be the current folder
            raise InputError(f"vae is {brief(vae)}: expected a folder, a file, or a model with a VAE")
        self.device = torch.device(device)
        wanted = auto_dtype(self.device) if dtype is None else dtype  # it decides which of a model's files are read
        single = [Path(place) for place in (model, vae) if place is not None and os.path.isfile(place)]
        before = identity(single)
        own_vae = vae is None
        choose = partial(choose_files, variant=variant, vae=own_vae)
        with loading(str(vae)):
            self.other_vae = None if vae is None else OtherVAE(local_path(vae) or Path(vae), wanted, variant)
        dtype_name = str(wanted).removeprefix("torch.")
        path, name = locate(model, dtype_name, choose)
        self.own_settings = own = OwnSettings.read(path, name)
        base = None if own.base is None else locate_base(path, own.base, dtype_name, choose)
        self.source: Folder | SingleFile
        with loading(path.name):
            if path.is_dir():
                self.source = Folder(path, wanted, name, variant, own_vae, base)
            else:
                self.source = SingleFile(path, prediction, own_vae)
        self._loaded = [(part, files, identity(files)) for part, files in self._files(path, base).items()]
        check_identity(single, before)
        half = dtype is None and wanted != torch.float32
        self.dtype = auto_dtype(self.device, stored_dtype(self.source.tensors("unet"))) if half else wanted
        self.name = self.source.name
        if path.is_file() and variant is not None:
            warn("variant has no effect on a single file")
        if path.is_dir() and prediction is not None:
            warn("prediction has no effect on a folder: its scheduler_config.json says")

    def unet(self, attn: str | Momentum = "tma", mu: float = 0.98) -> UNet:
        """The UNet, in the checkpoint's dtype."""
        config = UNetConfig.from_json(self.json("unet"))
        layout = faster_layout(self.dtype, self.device)
        return self._load("unet", config.layers, lambda tensors: UNet(config, attn, mu), self.dtype, layout)

    def vae(self) -> VAE:
        """The VAE, in the checkpoint's dtype. But many VAEs overflow float16, XL's among them. Instead of float16 it is
        float32, unless its configuration says `force_upcast: false`."""
        config = VAEConfig.from_json(self.json("vae"))
        if self.other_vae is not None:
            self.other_vae.check(config, UNetConfig.from_json(self.json("unet")), self.source.scaling_factor)
        dtype = torch.float32 if self.dtype == torch.float16 and config.force_upcast else self.dtype
        layout = torch.preserve_format if dtype == torch.float32 else faster_layout(dtype, self.device)
        return self._load("vae", config.layers, lambda tensors: VAE(config), dtype, layout)

    def text(self) -> PromptEncoder:
        """The text towers with their tokenizers."""
        towers = [(self.text_encoder(tower), self.tokenizer(tower)) for tower in self.source.towers]
        return PromptEncoder(towers, self.source.zero_empty)

    def text_encoder(self, tower: str = "text_encoder") -> TextEncoder:
        """A text tower, with its projection if the file has one."""
        config = TextConfig.from_json(self.json(tower), tower)

        def build(tensors: dict[str, Tensor]) -> TextEncoder:
            drop_layers(tensors, config.num_hidden_layers, tower)
            if not config.projection_dim:  # null: transformers' text tower without projection leaves it in the file
                tensors.pop("text_projection.weight", None)
            return TextEncoder(config, "text_projection.weight" in tensors)

        return self._load(tower, config.num_hidden_layers, build, self.dtype)

    def tokenizer(self, tower: str = "text_encoder") -> Tokenizer:
        """The tokenizer of a text tower. Its prompts have at most as many tokens as the tower has positions."""
        config = TextConfig.from_json(self.json(tower), tower)
        return self.source.tokenizer(tower, config.max_position_embeddings)

    def schedule(self) -> ScheduleConfig:
        """The noise schedule. As in diffusers' pipeline of Stable Diffusion 1 and 2, latents are not clipped and steps
        are offset by 1, whatever an old file says. In SDXL's pipeline the file decides."""
        json = self.json("scheduler")
        old = {"clip_sample": False, "steps_offset": 1} if len(self.source.towers) == 1 else {}
        return ScheduleConfig.from_json({**json, **old})

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each part's weights, and one of the configurations and the tokenizers. That of a sharded part
        is of its files, one after another."""
        parts = [self.json(part) for part in ("unet", "vae", *self.source.towers, "scheduler")]
        content: list[Any] = [{k: v for k, v in json.items() if not k.startswith("_")} for json in parts]
        for tokenizer in map(self.tokenizer, self.source.towers):
            content += tokenizer.content
        content += ["zero_empty"] * self.source.zero_empty
        config = hashlib.sha256(dumps(content, sort_keys=True).encode()).hexdigest()
        found = {}
        for part, files, before in self._loaded:
            try:
                found[part] = config if part == "config" else sha256(files)
                check_identity(files, before)
            except ChangedFile as error:
                warn(f"{error}: the settings say {part}: {UNKNOWN}")
                found[part] = UNKNOWN
        return found

    def _files(self, path: Path, base: Path | None) -> dict[str, list[Path]]:
        """The files that decide a clip, by part: weights, and configurations with vocabularies."""
        patterns = ("*.json", "*/*.json", "*/*.txt") if path.is_dir() else ()
        folders = [folder for folder in (path, base) if folder is not None]
        config = sorted(file for folder in folders for pattern in patterns for file in folder.glob(pattern))
        other = {} if self.other_vae is None else {"vae": self.other_vae.files}
        return self.source.files | other | {"config": config}

    def json(self, part: str) -> Json:
        """The configuration of a part, or of the scheduler."""
        if part == "vae" and self.other_vae is not None:
            return self.other_vae.json(self.source)
        return self.source.json(part)

    def _load(
        self,
        part: str,
        layers: int,
        build: Callable[[dict[str, Tensor]], M],
        dtype: torch.dtype,
        layout: torch.memory_format = torch.preserve_format,
    ) -> M:
        other = part == "vae" and self.other_vae is not None
        with loading(part):
            tensors = dict(self.other_vae.tensors if other else self.source.tensors(part))  # type: ignore[union-attr]
        if layers > len(tensors):  # before so many are built
            few = f"{layers} layers, but {len(tensors)} tensors"
            raise InputError(f"{part}: the weights do not fit the configuration: tensors missing: {few}")
        for key, names in LEFT_OUT.get(part, {}).items():
            unused = [name for name in tensors if re.fullmatch(names, name)]
            if unused and self.json(part).get(key, key) is None:
                warn(f"{part}/config.json: {key} is null: {len(unused)} tensors, such as {unused[0]}, are not used")
                tensors = {name: tensor for name, tensor in tensors.items() if name not in unused}
        with loading(part), without_weights():
            module = build(tensors)
        with loading(part):
            return assign(module, tensors, part, dtype, self.device, layout)
