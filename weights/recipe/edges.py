"""A ControlNet for the checkpoint (Zhang et al. 2023, arXiv 2302.05543): a thing takes the place that an outline shows.

Its hints are the outlines of the things' silhouettes. The UNet stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from weights.recipe import layout
from weights.recipe.base import Base
from weights.recipe.denoiser import Latents, denoising
from weights.recipe.scenes import Scenes, draw, edges, label, silhouettes
from weights.recipe.settings import FULL, Guided
from weights.recipe.training import Clock, generator, train
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.models.unet import UNet


def start(control: ControlNet, unet: UNet) -> None:
    """Copy the UNet's way down and middle. What the ControlNet adds is 0 at first."""
    own = control.state_dict()
    control.load_state_dict(own | {name: w for name, w in unet.state_dict().items() if name in own})
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        for w in layer.parameters():
            nn.init.zeros_(w)
    for w in control.controlnet_cond_embedding.conv_out.parameters():
        nn.init.zeros_(w)


def learn(
    names: Sequence[str], pictures: Tensor, settings: Guided, base: Base, folder: Path, work: Path, clock: Clock
) -> None:
    """Train the ControlNet, and write it to a folder."""
    torch.manual_seed(settings.seed)
    unet = base.unet().requires_grad_(False).eval()
    config = layout.controlnet(base.json("unet"), settings.hint_channels)
    control = ControlNet(ControlNetConfig.from_json(config), attn="sa").to(base.device)
    start(control, unet)

    def scenes(number: int, count: int) -> Scenes:
        """Things anywhere: where the outline does not say, the UNet places them mildly."""
        return draw(count, len(pictures), generator(settings.seed, "edges", number))

    data = Latents(base.encode(pictures, scenes, settings.scenes, work / "latents", clock), base.scale)

    def loss(step: int, source: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(data.mean), (settings.schedule.piece,), generator=source)
        these = data.scenes[rows]
        context = base.texts(label(these, source, FULL.empty).captions(names))
        hints = edges(silhouettes(these, pictures, base.size))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            residuals, _ = control(noisy, t, context, control.encode_hints(hints), frames=len(rows))
            return unet(noisy, t, context, frames=len(rows), residuals=residuals).prediction

        return denoising(
            predict, data.mean[rows], data.deviation[rows], base.cumprod, base.prediction, source, base.device
        )

    train("edges", control, settings.schedule, loss, seed=settings.seed, folder=work, clock=clock)
    layout.write_part(folder.parent, folder.name, config, control, layout.STEM)
