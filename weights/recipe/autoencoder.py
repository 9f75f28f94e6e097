"""The VAE: pixels to latents and back (Kingma & Welling 2013, arXiv 1312.6114), without an adversary."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weights.recipe import layout
from weights.recipe.scenes import Scenes, draw, half_mild, mild, render
from weights.recipe.settings import Settings
from weights.recipe.training import Clock, at_once, batches, fast, generator, numbered, save, train
from zs2.models.config import VAEConfig
from zs2.models.vae import VAE
from zs2.system.json_files import read_json
from zs2.system.progress import progress

KL = 2e-4  # the weight of a latent number's divergence from the normal distribution, against a pixel's error
PIECE, BATCH = 1024, 64  # the number of scenes in a file of latents, and of scenes that the encoder sees together
LARGEST = 8192.0  # what the decoder's largest number should be on scenes: an eighth of what float16 holds
THREADS = 2  # so many batches are encoded at the same time on a CPU


def moments(vae: VAE, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, (b, c, h, w) each. The model's own `encode` returns only the mean."""
    mean, log_variance = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, dim=1)
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


def learn(pictures: Tensor, settings: Settings, folder: Path, work: Path, clock: Clock) -> None:
    """Train the VAE, and write `vae/`, with the scale that gives the UNet's first latents the standard deviation 1."""
    torch.manual_seed(settings.seed)
    vae = VAE(VAEConfig.from_json(layout.vae(settings))).to(pictures.device)
    start(vae)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = half_mild(draw(settings.vae.piece, len(pictures), generator))
        pixels = render(scenes, pictures, settings.size)
        with fast(pixels.device):
            mean, log_variance = moments(vae, pixels)
            noise = torch.randn(mean.shape, generator=generator).to(mean.device)
            error = vae.decode(mean + (log_variance / 2).exp() * noise).float() - pixels
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        squared = (error**2).mean()
        psnr = -10 * (squared / 4).detach().log10()
        return error.abs().mean() + squared + KL * kl, {"psnr": psnr, "kl": kl.detach()}

    train("vae", vae, settings.vae, loss, seed=settings.seed, folder=work, clock=clock)
    things = len(pictures[: settings.unet[0].things])
    count = min(PIECE, settings.unet[0].scenes)
    scenes = mild(draw(count, things, generator(settings.seed, numbered("latents", 0), 0)))
    mean, deviation = latents(vae, pictures, settings.size, scenes)
    scale = float((mean**2 + deviation**2).double().mean()) ** -0.5
    fit_half(vae, mean)
    layout.write_part(folder, "vae", layout.vae(settings, scale), vae, layout.STEM)


@torch.no_grad()
def fit_half(vae: VAE, z: Tensor) -> float:
    """Make the sum that grows over the decoder's last level fit float16, by a divisor, which is returned.

    All that reads this sum is a GroupNorm, which takes any factor out again. So the pictures stay the same, but for the
    norms' eps and the rounding of tiny weights. Without this, widths that halve let each upsampler's output grow.

    z: latents of scenes, (b, c, h, w), of which the first 64 are decoded.
    """
    largest = torch.zeros(())

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = torch.maximum(largest, inputs[0].abs().amax().cpu())

    handle = vae.decoder.conv_norm_out.register_forward_pre_hook(watch)
    for part in z[:BATCH].to(vae.decoder.conv_in.weight).split(8):
        vae.decode(part)
    handle.remove()
    by = 2.0 ** math.ceil(math.log2(max(LARGEST, float(largest)) / LARGEST))  # a power of two, which changes no digit
    levels: Any = vae.decoder.up_blocks  # whose modules have no type
    *_, before, last = levels
    for module in (before.upsamplers[0].conv, *(resnet.conv2 for resnet in last.resnets)):
        module.weight /= by
        module.bias /= by
    for shortcut in (resnet.conv_shortcut for resnet in last.resnets if resnet.conv_shortcut is not None):
        shortcut.bias /= by  # its weight multiplies what is small already
    return by


def latents(vae: VAE, pictures: Tensor, size: int, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of scenes, (b, c, h, w) each."""

    @torch.no_grad()
    def of_part(part: slice) -> tuple[Tensor, Tensor]:
        pixels = render(scenes[part], pictures, size)
        with fast(pixels.device):
            return moments(vae, pixels)

    found = at_once(of_part, list(batches(len(scenes), BATCH)), THREADS if pictures.device.type == "cpu" else 1)
    mean, log_variance = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    return mean, (log_variance / 2).exp()


def encode(
    vae: VAE,
    pictures: Tensor,
    size: int,
    scenes: Callable[[int, int], Scenes],
    total: int,
    folder: Path,
    clock: Clock,
) -> Path:
    """Encode `total` scenes, once, into files in half precision, each with what its scenes were drawn from.

    scenes: (number of a file, how many scenes) → its scenes. Returns: the folder.
    """
    pieces = list(batches(total, PIECE))
    for i, piece in enumerate(progress(pieces, len(pieces), "encoding")):
        file = folder / f"{i:04}.safetensors"
        if file.exists():
            continue
        these = scenes(i, piece.stop - piece.start)
        mean, deviation = latents(vae, pictures, size, these)
        save(file, {"mean": mean.half(), "deviation": deviation.half(), **vars(these)})
        clock.check()
    return folder


def load(folder: Path) -> VAE:
    """The VAE that was written to a checkpoint, in the half precision in which others will load it."""
    vae = VAE(VAEConfig.from_json(read_json(folder / "vae" / "config.json")))
    vae.load_state_dict(layout.read_part(folder / "vae"))
    return vae.eval().requires_grad_(False)
