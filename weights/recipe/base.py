"""The finished checkpoint that a ControlNet guides, or that an editing UNet starts from. Nothing of it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.recipe import autoencoder, contrastive, layout
from weights.recipe.scenes import Scenes
from weights.recipe.training import Clock
from zs2.checkpoints.digests import sha256
from zs2.errors import InputError
from zs2.models.config import ScheduleConfig, UNetConfig
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.sampling.schedule import alphas_cumprod
from zs2.system.json_files import read_json

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class Base:
    """A checkpoint of the recipe.

    Args: folder: with all its parts. device: for the parts.
    Raises: InputError if a part is missing.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if missing:
            raise InputError(f"{folder} is no checkpoint: it has no {'/, '.join(missing)}/")
        self.folder, self.device = folder, device
        self.vae = autoencoder.load(folder).to(device)
        self.tokenizer, self.text = (
            Tokenizer.from_folder(folder / "tokenizer"),
            contrastive.load_text(folder).to(device),
        )
        config, schedule = read_json(folder / "vae" / "config.json"), self.json("scheduler")
        self.size, self.scale = int(config["sample_size"]), float(config["scaling_factor"])
        self.cumprod, self.prediction = alphas_cumprod(ScheduleConfig.from_json(schedule)), schedule["prediction_type"]
        self.encoded: dict[str, Tensor] = {}

    def json(self, part: str) -> dict[str, Any]:
        """The configuration of a part."""
        return read_json(self.folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))

    @property
    def digest(self) -> str:
        """The SHA-256 of the weights that a training depends on."""
        files = [
            file
            for part in ("unet", "vae", "text_encoder")
            for file in sorted((self.folder / part).glob("*.safetensors"))
        ]
        return sha256(files)

    def unet(self) -> UNet:
        """A copy of its UNet, without attention between frames."""
        unet = UNet(UNetConfig.from_json(self.json("unet")), attn="sa")
        unet.load_state_dict(layout.read_part(self.folder / "unet"))
        return unet.to(self.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts for the cross-attention, (b, n, c). Each is encoded once, by itself, when it is first needed."""
        for text in {*texts} - self.encoded.keys():
            self.encoded[text] = self.text(self.tokenizer.encode([text]).to(self.device))[0]
        return torch.stack([self.encoded[text] for text in texts])

    def encode(
        self, pictures: Tensor, scenes: Callable[[int, int], Scenes], total: int, folder: Path, clock: Clock
    ) -> Path:
        """Encode scenes by its VAE; see `autoencoder.encode`."""
        return autoencoder.encode(self.vae, pictures, self.size, scenes, total, folder, clock)
