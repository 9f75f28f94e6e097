"""The recipe in numbers: the sizes of the parts, and how long they are trained."""

from __future__ import annotations

from dataclasses import dataclass, field

TOKENS = 32  # the number of tokens of a prompt

# The contents of the checkpoint's zs2.json: the sampling that suits it, and examples of things that it draws well.
STEPS, GUIDANCE, LAM = 25, 5.0, 0.3
EXAMPLES = {
    "rocket": "black",
    "panda face": "sky blue",
    "red apple": "yellow",
    "octopus": "white",
    "sunflower": "purple",
    "penguin": "orange",
    "sailboat": "green",
    "cupcake": "pink",
}  # things, each on a background of this colour
OPEN_EXAMPLES = ("fox face", "turtle", "cactus", "hamburger", "airplane", "butterfly", "soccer ball")  # things alone

EDIT_GUIDANCE, IMAGE_GUIDANCE = 4.0, 4.5  # of the editing UNet; with less of the source, backgrounds turn grey
EDITS = ("make it golden", "on a red background", "turn it into a panda face", "make it striped")  # instructions


@dataclass(frozen=True)
class Schedule:
    """A training. Its rates rise over `warmup` steps, and fall along a cosine to a hundredth over the last `fall`."""

    steps: int
    batch: int
    rate: float  # the rate of AdamW
    warmup: int = 100
    fall: int | None = None  # None: all steps after the warm-up
    decay: float = 0.01  # weight decay
    muon: float = 0.0  # the rate of Muon, which then trains the matrices (see muon.py); 0: AdamW trains all weights
    hold: float = 0.0  # Muon's weight decay for the queries and keys of cross-attention, which no norm holds
    average: float = 0.0  # decay of the exponential moving average of the weights, which is the result; 0: none
    pieces: int = 1  # a batch is learnt in so many pieces, at the same time, each by a thread of its own

    @property
    def piece(self) -> int:
        """The number of scenes in a piece."""
        return self.batch // self.pieces


@dataclass(frozen=True)
class Stage:
    """A stage of the UNet's training. It starts from the weights of the stage before."""

    things: int | None  # how many of things.json, from its start; None: all
    scenes: int  # the number of scenes of those things, which are encoded once
    schedule: Schedule
    floor: float = 1.0  # of the errors' weights (see denoiser.weight)
    lean: float = 1.0  # below 1, noisier latents are drawn more often (see denoiser.timesteps)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, the seed included."""

    things: int | None = None  # how many of things.json, from its start; None: all
    seed: int = 0
    size: int = 128  # the side of a scene, in pixels
    # CLIP: both towers. It sees scenes of 64×64, whatever their size
    clip_size: int = 64
    clip_width: int = 192
    clip_layers: int = 4
    clip_heads: int = 4
    clip_projection: int = 128
    clip: Schedule = field(default_factory=lambda: Schedule(steps=450, batch=64, rate=6e-4, average=0.98))
    # VAE
    vae_widths: tuple[int, ...] = (32, 64, 128, 128)
    vae_channels: int = 16
    vae: Schedule = field(
        default_factory=lambda: Schedule(
            steps=4400, batch=4, rate=1e-3, fall=1300, muon=1.5e-2, decay=0.0, average=0.995, pieces=2
        )
    )
    # UNet
    unet_widths: tuple[int, ...] = (64, 128, 160)
    unet_layers: int = 1
    unet_heads: int = 4
    # few things first: in the same time they are learnt better, and the others build on them
    unet: tuple[Stage, ...] = (
        Stage(
            49,
            16_000,
            Schedule(steps=12_000, batch=32, rate=1e-3, muon=2e-2, hold=0.08, average=0.9995, pieces=2),
            floor=0.0,
        ),
        Stage(
            None,
            16_000,
            Schedule(steps=6_300, batch=32, rate=7e-4, fall=1_240, muon=1.4e-2, hold=0.08, average=0.999, pieces=2),
        ),
        Stage(
            None,
            16_000,
            Schedule(steps=3_200, batch=32, rate=7e-4, muon=1.4e-2, hold=0.08, average=0.999, pieces=2),
            lean=0.7,
        ),
        Stage(
            None,
            32_000,
            Schedule(steps=4_000, batch=32, rate=6e-4, muon=1.2e-2, hold=0.08, average=0.9995, pieces=2),
            lean=0.7,
        ),
    )
    empty: float = 0.12  # share of empty captions
    prediction: str = "v_prediction"  # what the UNet predicts: this, or epsilon
    # the judge of judge.py
    judge: Schedule = field(default_factory=lambda: Schedule(steps=1500, batch=16, rate=1e-3, muon=1e-2, average=0.99))


FULL = Settings()
QUICK = Settings(
    things=8,
    size=64,
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


@dataclass(frozen=True)
class Guided:
    """The training of a model that goes with a finished checkpoint: its ControlNet of edges, or its editing UNet."""

    scenes: int  # how many are encoded once; of the editing UNet, pairs of them
    schedule: Schedule
    seed: int = 0
    hint_channels: tuple[int, ...] = (8, 16, 32, 64)  # of the ControlNet's encoder of hints
    lean: float = 0.7  # of the editing UNet's timesteps (see denoiser.timesteps)
    dropped: float = 0.05  # of the editing UNet: the shares of pairs without text, without a source, and without both


EDGES = Guided(12_000, Schedule(2_200, 24, 6e-4, muon=6e-3, hold=0.08, average=0.998, pieces=2))
EDIT = Guided(6_000, Schedule(2_300, 24, 4e-4, muon=6e-3, hold=0.08, average=0.998, pieces=2))
QUICK_EDGES = Guided(256, Schedule(60, 16, 1e-3, warmup=10, average=0.9), hint_channels=(8, 16, 16, 32))
QUICK_EDIT = Guided(256, Schedule(60, 16, 1e-3, warmup=10, average=0.9))
