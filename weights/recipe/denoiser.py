"""The UNet: it learns to predict the noise in latents (Ho et al. 2020), from captions that leave out more or less."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from weights.recipe import contrastive, layout
from weights.recipe.scenes import COLOURS, LOOKS, SETTINGS, Labels, Scenes, caption, label
from weights.recipe.settings import Settings
from weights.recipe.training import Clock, numbered, train
from zs2.models.config import ScheduleConfig, UNetConfig
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.sampling.schedule import alphas_cumprod
from zs2.system.json_files import read_json

GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023, arXiv 2303.09556)


class Latents:
    """The encoded scenes: scaled mean and deviation (n, c, h, w) of their latents, and their contents."""

    def __init__(self, folder: Path, scale: float) -> None:
        pieces = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self.mean, self.deviation = joined["mean"] * scale, joined["deviation"] * scale
        nothing = torch.zeros(len(self.mean), 0)
        self.scenes = Scenes(joined["thing"], joined["background"], joined["look"], nothing)


def start(unet: UNet) -> None:
    """Initialise what is added to a skip with 0: every block passes its input on, and the prediction is 0 at first."""
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def learn(names: Sequence[str], settings: Settings, folder: Path, work: Path, clock: Clock) -> None:
    """Train the UNet, stage after stage. Write `unet/` and the scheduler's file."""
    torch.manual_seed(settings.seed)
    text, tokenizer = contrastive.load_text(folder), Tokenizer.from_folder(folder / "tokenizer")
    scale = read_json(folder / "vae" / "config.json")["scaling_factor"]
    unet = UNet(UNetConfig.from_json(layout.unet(settings)), attn="sa")
    start(unet)
    cumprod = alphas_cumprod(ScheduleConfig.from_json(layout.SCHEDULER))
    encoded: dict[int, Tensor] = {}

    @torch.no_grad()
    def contexts(labels: Labels) -> Tensor:
        """The encoded captions. All captions of a thing (-1: of no thing) are encoded when one is first needed."""
        rows = list(
            zip(labels.thing.tolist(), (labels.background + 1).tolist(), labels.look.clamp(min=0).tolist(), strict=True)
        )
        for thing in {thing for thing, _, _ in rows} - encoded.keys():
            where, looks = range(-1, len(COLOURS) + len(SETTINGS)), range(len(LOOKS))
            captions = [caption(names, thing, background, look) for background in where for look in looks]
            encoded[thing] = text(tokenizer.encode(captions)).unflatten(0, (len(where), len(looks)))
        return torch.stack([encoded[thing][background, look] for thing, background, look in rows])

    def loss(data: Latents, batch: int, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(data.mean), (batch,), generator=generator)
        scenes = data.scenes[rows]
        context = contexts(label(scenes, generator, settings.empty))
        noise = torch.randn(2, *data.mean[rows].shape, generator=generator)
        clean = data.mean[rows] + data.deviation[rows] * noise[0]
        t = torch.randint(len(cumprod), (len(rows),), generator=generator)
        a = cumprod[t][:, None, None, None]
        predicted = unet(a.sqrt() * clean + (1 - a).sqrt() * noise[1], t, context, frames=1).prediction
        error = ((predicted - noise[1]) ** 2).mean((1, 2, 3))
        snr = cumprod[t] / (1 - cumprod[t])
        return (error * snr.clamp(max=GAMMA) / snr).mean(), {"error": error.mean().detach()}

    for number, stage in enumerate(settings.unet):
        data = Latents(work / numbered("latents", number), scale)
        of_stage = partial(loss, data, stage.schedule.batch)
        train(numbered("unet", number), unet, stage.schedule, of_stage, seed=settings.seed, folder=work, clock=clock)
    layout.write(folder / "scheduler" / "scheduler_config.json", layout.SCHEDULER)
    layout.write(folder / "model_index.json", layout.INDEX)
    layout.write_part(folder, "unet", layout.unet(settings), unet, "diffusion_pytorch_model")
