"""The recipe in numbers: the sizes of the parts, and how long they are trained. FULL made the shipped checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

SIZE = 64  # the side of a scene, in pixels
TOKENS = 32  # the number of tokens of a prompt

# The contents of the checkpoint's zs2.json: the sampling that suits it, and examples of things that it draws well.
STEPS, GUIDANCE, LAM = 25, 5.0, 0.15
EXAMPLES = {
    "panda face": "sky blue",
    "red apple": "yellow",
    "rocket": "black",
    "octopus": "white",
    "sunflower": "purple",
    "penguin": "orange",
    "sailboat": "green",
    "birthday cake": "pink",
}  # things, each on a background of this colour
OPEN_EXAMPLES = ("fox face", "turtle", "cactus", "hamburger", "airplane", "butterfly", "soccer ball")  # things alone


@dataclass(frozen=True)
class Schedule:
    """A training. Its rates rise over `warmup` steps, then fall along a cosine to a hundredth."""

    steps: int
    batch: int
    rate: float  # the rate of AdamW
    warmup: int = 100
    decay: float = 0.01  # weight decay
    muon: float = 0.0  # the rate of Muon, which then trains the matrices (see muon.py); 0: AdamW trains all weights
    average: float = 0.0  # decay of the exponential moving average of the weights, which is the result; 0: none


@dataclass(frozen=True)
class Stage:
    """A stage of the UNet's training. It starts from the weights of the stage before."""

    things: int | None  # how many of things.json, from its start; None: all
    scenes: int  # the number of scenes of those things, which are encoded once
    schedule: Schedule


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, the seed included."""

    things: int | None = None  # how many of things.json, from its start; None: all
    seed: int = 0
    # CLIP: both towers
    clip_width: int = 192
    clip_layers: int = 4
    clip_heads: int = 4
    clip_projection: int = 128
    clip: Schedule = field(default_factory=lambda: Schedule(steps=450, batch=64, rate=6e-4, average=0.98))
    # VAE
    vae_widths: tuple[int, ...] = (16, 32, 64, 128)
    vae_channels: int = 16
    vae: Schedule = field(
        default_factory=lambda: Schedule(steps=3200, batch=4, rate=1e-3, muon=1.5e-2, decay=0.0, average=0.99)
    )
    # UNet
    unet_widths: tuple[int, ...] = (96, 192)
    unet_layers: int = 1
    unet_heads: int = 4
    # few things first: in the same time they are learnt better, and the others build on them
    unet: tuple[Stage, ...] = (
        Stage(49, 16_000, Schedule(steps=10_000, batch=32, rate=1e-3, muon=2e-2, average=0.999)),
        Stage(None, 32_000, Schedule(steps=4_000, batch=32, rate=4e-4, muon=8e-3, average=0.999)),
    )
    empty: float = 0.12  # share of empty captions
    # the judge of judge.py
    judge: Schedule = field(default_factory=lambda: Schedule(steps=1500, batch=16, rate=1e-3, muon=1e-2, average=0.99))


FULL = Settings()
QUICK = Settings(
    things=8,
    clip_layers=2,
    clip=Schedule(steps=60, batch=32, rate=6e-4, warmup=10, average=0.9),
    vae_widths=(16, 16, 32, 64),
    vae=Schedule(steps=450, batch=4, rate=1e-3, warmup=20, decay=0.0, muon=1.5e-2, average=0.98),
    unet_widths=(64, 128),
    unet=(
        Stage(4, 512, Schedule(steps=250, batch=16, rate=1.5e-3, warmup=20, average=0.98)),
        Stage(None, 512, Schedule(steps=300, batch=16, rate=1.5e-3, warmup=20, average=0.98)),
    ),
    judge=Schedule(steps=200, batch=16, rate=1e-3, warmup=10, muon=1e-2, average=0.9),
)
