"""The VAE: pixels to latents and back (Kingma & Welling 2013, arXiv 1312.6114), without an adversary."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from weights.recipe import layout
from weights.recipe.scenes import draw, mild, render
from weights.recipe.settings import SIZE, Settings
from weights.recipe.training import Clock, batches, generator, numbered, save, train
from zs2.models.config import VAEConfig
from zs2.models.vae import VAE
from zs2.system.progress import progress

KL = 2e-4  # the weight of a latent number's divergence from the normal distribution, against a pixel's error
PIECE, BATCH = 1024, 64  # the number of scenes in a file of latents, and of scenes encoded at once


def moments(vae: VAE, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, (b, c, h, w) each. The model's own `encode` returns only the mean."""
    mean, log_variance = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 10)


def start(vae: VAE) -> None:
    """Initialise the weights so that learning is fast at first: convolutions keep the size of their input, blocks pass
    their input on unchanged, and latents have little noise."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            if name.endswith((".conv2", ".to_out.0")):
                nn.init.zeros_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    bias = vae.quant_conv.bias
    assert isinstance(bias, Tensor)
    nn.init.constant_(bias[vae.config.latent_channels :], -4.0)  # the log variances


def learn(pictures: Tensor, settings: Settings, work: Path, clock: Clock) -> VAE:
    """Train the VAE. `encode` writes it, when the scale of its latents is known."""
    torch.manual_seed(settings.seed)
    vae = VAE(VAEConfig.from_json(layout.vae(settings)))
    start(vae)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = draw(settings.vae.batch, len(pictures), generator)
        pixels = render(scenes, pictures, SIZE)
        mean, log_variance = moments(vae, pixels)
        z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
        error = vae.decode(z) - pixels
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        squared = (error**2).mean()
        psnr = -10 * (squared / 4).detach().log10()
        return error.abs().mean() + squared + KL * kl, {"psnr": psnr, "kl": kl.detach()}

    train("vae", vae, settings.vae, loss, seed=settings.seed, folder=work, clock=clock)
    return vae


@torch.no_grad()
def encode(vae: VAE, pictures: Tensor, settings: Settings, folder: Path, work: Path, clock: Clock) -> None:
    """Encode the scenes that the UNet learns from, once, into files for each of its stages. Then write `vae/`, with the
    scale that gives the first stage's latents the standard deviation 1."""
    pieces = [
        (numbered("latents", stage), len(pictures[: of.things]), i, piece)
        for stage, of in enumerate(settings.unet)
        for i, piece in enumerate(batches(of.scenes, PIECE))
    ]
    square, count = 0.0, 0
    for name, things, i, piece in progress(pieces, len(pieces), "encoding"):
        file = work / name / f"{i:04}.safetensors"
        if not file.exists():
            scenes = mild(draw(piece.stop - piece.start, things, generator(settings.seed, name, i)))
            found = [moments(vae, render(scenes[part], pictures, SIZE)) for part in batches(len(scenes), BATCH)]
            mean, log_variance = (torch.cat(each) for each in zip(*found, strict=True))
            names = ("thing", "background", "look")
            save(
                file,
                {
                    "mean": mean,
                    "deviation": (log_variance / 2).exp(),
                    **{name: getattr(scenes, name) for name in names},
                },
            )
            clock.check()
        if name != numbered("latents", 0):
            continue
        kept = load_file(file)
        square += float((kept["mean"] ** 2 + kept["deviation"] ** 2).double().sum())
        count += kept["mean"].numel()
    layout.write_part(folder, "vae", layout.vae(settings, (count / square) ** 0.5), vae, "diffusion_pytorch_model")
