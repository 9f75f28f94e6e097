"""CLIP: both towers, trained to match scenes with the captions that are true of them (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weights.recipe import layout
from weights.recipe.scenes import draw, label, render
from weights.recipe.settings import Settings
from weights.recipe.training import Clock, fast, train
from zs2.models.clip import TextEncoder, VisionEncoder
from zs2.models.clip_config import TextConfig, VisionConfig
from zs2.models.tokenizer import Tokenizer
from zs2.system.json_files import read_json


class Pair(nn.Module):
    """The two towers, and the temperature of their similarities."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text = TextEncoder(TextConfig.from_json(layout.tower(settings, tokenizer)))
        self.vision = VisionEncoder(VisionConfig.from_json(layout.tower(settings, None)))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        layout.blank(self)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Scenes (b, 3, h, w), captions (b', n) → the similarity of each scene with each caption, (b, b')"""
        images, texts = F.normalize(self.vision.embed(pixels)), F.normalize(self.text.embed(ids))
        return self.scale.exp().clamp(max=100) * images @ texts.T


def load_text(folder: Path) -> TextEncoder:
    """The text tower that was written to a checkpoint, in the half precision in which others will load it."""
    text = TextEncoder(TextConfig.from_json(read_json(folder / "text_encoder" / "config.json")))
    text.load_state_dict(layout.read_part(folder / "text_encoder"))
    return text.eval().requires_grad_(False)


def learn(
    names: Sequence[str],
    pictures: Tensor,
    tokenizer: Tokenizer,
    settings: Settings,
    folder: Path,
    work: Path,
    clock: Clock,
) -> None:
    """Train both towers, and write `text_encoder/`, `image_encoder/` and `feature_extractor/`."""
    torch.manual_seed(settings.seed)
    pair = Pair(settings, tokenizer).to(pictures.device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = draw(settings.clip.piece, len(names), generator)
        labels = label(scenes, generator)
        pixels, ids = render(scenes, pictures, settings.clip_size), tokenizer.encode(labels.captions(names))
        with fast(pixels.device):
            similarity = pair(pixels, ids.to(pixels.device)).float()
        # Several captions may be true of a scene: all have the same weight.
        fits = labels.fits(scenes).float().to(pixels.device)
        by_scene = -(similarity.log_softmax(1) * fits / fits.sum(1, keepdim=True)).sum(1).mean()
        by_text = -(similarity.log_softmax(0) * fits / fits.sum(0, keepdim=True)).sum(0).mean()
        right = fits.gather(1, similarity.argmax(1, keepdim=True)).mean()
        return (by_scene + by_text) / 2, {"accuracy": right, "scale": pair.scale.exp().detach()}

    train("clip", pair, settings.clip, loss, seed=settings.seed, folder=work, clock=clock)
    layout.write(folder / "feature_extractor" / "preprocessor_config.json", layout.images(settings))
    layout.write_part(folder, "image_encoder", layout.tower(settings, None), pair.vision, "model")
    layout.write_part(folder, "text_encoder", layout.tower(settings, tokenizer), pair.text, "model")
