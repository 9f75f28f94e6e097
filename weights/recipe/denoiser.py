"""The UNet: it learns to tell noise from latents (Ho et al. 2020), with captions that leave out more or less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from weights.recipe import autoencoder, contrastive, layout
from weights.recipe.scenes import COLOURS, LOOKS, SETTINGS, Labels, Scenes, caption, draw, label, mild
from weights.recipe.settings import Settings, Stage
from weights.recipe.training import Clock, fast, generator, numbered, train
from zs2.models.config import ScheduleConfig, UNetConfig
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.sampling.schedule import alphas_cumprod
from zs2.system.json_files import read_json

GAMMA = 5.0


class Latents:
    """The encoded scenes: scaled mean and deviation (n, c, h, w) of their latents, and their contents."""

    def __init__(self, folder: Path, scale: float) -> None:
        pieces = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self.mean, self.deviation = joined["mean"].float() * scale, joined["deviation"].float() * scale
        nothing = torch.zeros(len(self.mean), 0)
        self.scenes = Scenes(joined["thing"], joined["background"], joined["look"], joined.get("chance", nothing))


def start(unet: UNet) -> None:
    """Initialise what is added to a skip with 0: every block passes its input on, and the prediction is 0 at first."""
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def target(prediction: str, clean: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """What the UNet should predict: the noise (epsilon), or v (Salimans & Ho 2022, arXiv 2202.00512). a: ᾱ."""
    return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean


def weight(prediction: str, a: Tensor, floor: float = 1.0) -> Tensor:
    """The weight of a prediction's squared error. In the clean latents' error it is the signal-to-noise ratio and
    `floor`, but at most GAMMA (Hang et al. 2023, arXiv 2303.09556, whose floor is 0). a: ᾱ.

    Without a floor the UNet hardly learns from the noisiest latents, where a thing gets its outline.
    """
    snr = a / (1 - a)
    return (snr + floor).clamp(max=GAMMA) / (snr if prediction == "epsilon" else snr + 1)


def timesteps(count: int, of: int, lean: float, generator: torch.Generator) -> Tensor:
    """Draw so many timesteps below `of`. Their density grows as t to the power of 1 / lean - 1."""
    return (of * torch.rand(count, generator=generator, dtype=torch.float64) ** lean).long()


def denoising(
    predict: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    deviation: Tensor,
    cumprod: Tensor,
    prediction: str,
    generator: torch.Generator,
    device: torch.device,
    floor: float = 1.0,
    lean: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the error that is logged.

    Args:
        predict: (noisy latents, timesteps) → what the UNet predicts. mean, deviation: of the latents, scaled.
        floor: of the errors' weights. lean: of the timesteps.
    """
    noise = torch.randn(2, *mean.shape, generator=generator)
    clean = mean + deviation * noise[0]
    t = timesteps(len(mean), len(cumprod), lean, generator)
    a = cumprod[t][:, None, None, None]
    noisy, wanted = a.sqrt() * clean + (1 - a).sqrt() * noise[1], target(prediction, clean, noise[1], a)
    with fast(device):
        predicted = predict(noisy.to(device), t.to(device)).float()
    error = ((predicted - wanted.to(device)) ** 2).mean((1, 2, 3))
    return (error * weight(prediction, cumprod[t], floor).to(device)).mean(), {"error": error.mean().detach()}


def encode(pictures: Tensor, settings: Settings, stage: int, folder: Path, work: Path, clock: Clock) -> Path:
    """Encode the scenes of a stage, once, with the VAE that was written. Returns: their folder."""
    name, of = numbered("latents", stage), settings.unet[stage]
    things = len(pictures[: of.things])

    def scenes(number: int, count: int) -> Scenes:
        return mild(draw(count, things, generator(settings.seed, name, number)))

    vae = autoencoder.load(folder).to(pictures.device)
    return autoencoder.encode(vae, pictures, settings.size, scenes, of.scenes, work / name, clock)


def learn(names: Sequence[str], pictures: Tensor, settings: Settings, folder: Path, work: Path, clock: Clock) -> None:
    """Train the UNet, stage after stage. Write `unet/` and the scheduler's file.

    The UNet of each stage is also written to the work folder, in half precision. The next stage starts from that file.
    So the last one that is there is enough to go on.
    """
    torch.manual_seed(settings.seed)
    device = pictures.device
    text, tokenizer = contrastive.load_text(folder).to(device), Tokenizer.from_folder(folder / "tokenizer")
    scale = read_json(folder / "vae" / "config.json")["scaling_factor"]
    unet = UNet(UNetConfig.from_json(layout.unet(settings)), attn="sa").to(device)
    start(unet)
    cumprod = alphas_cumprod(ScheduleConfig.from_json(layout.scheduler(settings)))
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
            encoded[thing] = text(tokenizer.encode(captions).to(device)).unflatten(0, (len(where), len(looks)))
        return torch.stack([encoded[thing][background, look] for thing, background, look in rows])

    def loss(data: Latents, stage: Stage, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(data.mean), (stage.schedule.piece,), generator=generator)
        scenes = data.scenes[rows]
        context = contexts(label(scenes, generator, settings.empty))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return unet(noisy, t, context, frames=1).prediction

        mean, deviation = data.mean[rows], data.deviation[rows]
        return denoising(
            predict, mean, deviation, cumprod, settings.prediction, generator, device, stage.floor, stage.lean
        )

    there = [number for number in range(len(settings.unet)) if layout.is_there(work, numbered("unet", number))]
    last = max(there, default=0)
    for number, stage in list(enumerate(settings.unet))[last:]:
        name = numbered("unet", number)
        if number not in there:
            data = Latents(encode(pictures, settings, number, folder, work, clock), scale)
            of_stage = partial(loss, data, stage)
            train(name, unet, stage.schedule, of_stage, seed=settings.seed, folder=work, clock=clock)
            layout.write_part(work, name, layout.unet(settings), unet, layout.STEM)
        unet.load_state_dict(layout.read_part(work / name))
    layout.write(folder / "scheduler" / "scheduler_config.json", layout.scheduler(settings))
    layout.write(folder / "model_index.json", layout.INDEX)
    layout.write_part(folder, "unet", layout.unet(settings), unet, layout.STEM)
