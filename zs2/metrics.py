"""The metrics of a clip: how well it shows its prompt, how alike its frames are, and how much it moves.

    python -m zs2.metrics out/apple.webp --clip openai/clip-vit-large-patch14

A still picture has the best consistency there is, so motion is always given beside it. Each metric is a small function
on frames or on embeddings; `measure` has them all. What depends on CLIP compares only with the same CLIP.
Importing this does not import torch, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zs2.checkpoints.hub import DEFAULT_MODEL, STANDARD_CLIP
from zs2.cli.command import command, parser
from zs2.errors import InputError
from zs2.method import NOISE_MODELS
from zs2.version import __version__
from zs2.video.clip import Clip
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.evaluation.clip_scorer import Scorer

DIGITS = 9  # significant ones that are kept, so that the same clip has the same bytes
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # a window of 11 × 11


def measure(frames: Frames, prompt: str | Sequence[str], scorer: Scorer) -> dict[str, float | None]:
    """All metrics of a clip but those of its noise, to 9 significant digits; None where one has no meaning.

    The empty prompt has no CLIP score: there is nothing in it that a frame could show.

    Args:
        frames: uint8 (F, H, W, 3). Each is encoded once.
        prompt: of all frames, or one a frame, of which the last repeats: each frame is scored by its own.
        scorer: the CLIP.
    Raises: InputError for frames of another kind, no prompt, or more prompts than frames.
    """
    from zs2.evaluation.optical_flow import flow_warp_error

    frames = Clip(frames).frames
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not 1 <= len(prompts) <= len(frames):
        raise InputError(f"{len(prompts)} prompts for {len(frames)} frames: expected one, or one a frame")
    images, texts = scorer.embed_frames(frames), scorer.embed_texts(prompts)
    own = [min(i, len(prompts) - 1) for i in range(len(frames))]
    said = [i for i, prompt in enumerate(own) if prompts[prompt].strip()]
    values = {
        "clip-score": clip_score(images[said], texts[own][said]) if said else None,
        "clip-frame-consistency": clip_frame_consistency(images),
        "clip-all-pairs": clip_all_pairs(images),
        "clip-first": clip_first(images),
        "motion": motion(frames),
        "ssim": ssim(frames),
        "flow-warp-error": flow_warp_error(frames),
    }
    return {name: rounded(value) for name, value in values.items()}


def rounded(value: float | None) -> float | None:
    """A metric as it is stored."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


# --- of embeddings: unit vectors (F, d) -------------------------------------------------------------------------------


def clip_score(images: Tensor, texts: Tensor) -> float:
    """max(100 · mean over frames of cos(frame, its text), 0): 0 … 100, higher is nearer the prompt.

    As torchmetrics' functional `clip_score` has it: the mean is taken before the maximum. (Hessel et al. 2021, arXiv
    2104.08718, weigh by 2.5 instead, and cut each picture at 0.) A prompt that is too long loses its last words, as
    when sampling; torchmetrics cuts off its end token too, which is what CLIP embeds.
    """
    return max(100 * (images * texts).sum(dim=1).mean().item(), 0.0)


def clip_frame_consistency(images: Tensor) -> float | None:
    """Mean cosine of consecutive frames: −1 … 1, 1 for a still clip. As in Esser et al. 2023 (Gen-1, arXiv 2302.03011).

    None for one frame, as below.
    """
    return (images[:-1] * images[1:]).sum(dim=1).mean().item() if len(images) > 1 else None


def clip_all_pairs(images: Tensor) -> float | None:
    """Mean cosine of all pairs of frames: −1 … 1. As in Wu et al. 2023 (Tune-A-Video, arXiv 2212.11565)."""
    cosines, count = images @ images.T, len(images)
    return ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item() if count > 1 else None


def clip_first(images: Tensor) -> float | None:
    """Mean cosine of frame 0 with each later frame: −1 … 1; it falls where a clip drifts away.

    It is one half of VBench's consistencies (Huang et al. 2024, arXiv 2311.17982).
    """
    return (images[1:] @ images[0]).mean().item() if len(images) > 1 else None


# --- of frames: uint8 (F, H, W, 3) ------------------------------------------------------------------------------------


def motion(frames: Frames) -> float | None:
    """Mean absolute change of a pixel's colours from frame to frame, pixels in [0, 1]: 0 … 1, 0 for a still clip.

    Neither high nor low is good; flicker counts as motion. It is how the change in the authors' clips was measured.
    """
    if len(frames) < 2:
        return None
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(dtype=np.float64) / 255)


def ssim(frames: Frames) -> float | None:
    """Mean structural similarity of consecutive frames: −1 … 1, 1 for a still clip.

    Wang et al. 2004 (Image Quality Assessment): a Gaussian window of 11 × 11, σ = 1.5, K = 0.01 and 0.03, pixels in
    [0, 1]; the mean over the places where the window fits, and over the three colours. It is scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`.
    None for frames smaller than the window.
    """
    if len(frames) < 2 or min(frames.shape[1:3]) < 2 * SSIM_RADIUS + 1:
        return None
    return float(np.mean([_ssim(x, y) for x, y in pairwise(frames)]))


def _ssim(x: Frames, y: Frames) -> float:
    a, b = (np.ascontiguousarray(frame.transpose(2, 0, 1)) / 255 for frame in (x, y))  # (3, h, w)
    window = np.exp(-0.5 * (np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1) / SSIM_SIGMA) ** 2)
    window /= window.sum()
    moments = np.stack([a, b, a * a, b * b, a * b])  # (5, 3, h, w)
    for axis in (2, 3):
        moments = sliding_window_view(moments, len(window), axis) @ window  # in the end (5, 3, h-10, w-10)
    mean_a, mean_b, aa, bb, ab = moments
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    likeness /= (mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2)
    return float(likeness.mean())


# --- of noises --------------------------------------------------------------------------------------------------------


def noise_correlation(noises: Tensor) -> float | None:
    """Mean over consecutive frames of Pearson's correlation of their initial noises (F, c, h, w): −1 … 1.

    Of n = c·h·w numbers its standard error is about (1 − ρ²)/√n a pair. None for one frame.
    """
    if len(noises) < 2:
        return None
    rows = noises.double().cpu().flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows /= rows.norm(dim=1, keepdim=True)
    return (rows[:-1] * rows[1:]).sum(dim=1).mean().item()


def expected_correlation(noise: str, lam: float | None, alpha: float | None) -> float | None:
    """The correlation of consecutive noises by theory (zs2.noise; ZS², arXiv 2407.21475; PYoCo, arXiv 2305.10474).

    iid 0; shared 1; mixed a²/(1+a²); progressive a/√(1+a²); dnm 1 − λ/√e. None for `dnm-search`, which has no closed
    form, and for `text2video-zero`, whose frames differ by more than noise.

    Args: lam: λ, and alpha: a; None is the noise model's default.
    """
    model, asked = NOISE_MODELS[noise], {"lam": lam, "alpha": alpha}
    values = dict(model.defaults) | {name: asked[name] for name in model.defaults if asked.get(name) is not None}
    return None if model.start else model.correlation(**values)


# --- the command ------------------------------------------------------------------------------------------------------


def run(given: dict[str, Any]) -> None:
    """Measure clips, as the command line says, and print a table or JSON."""
    clips = {path: Clip.open(path).settings for path in given["clips"]}  # all are looked at before any is measured
    prompts = {path: _prompts(path, settings) for path, settings in clips.items()}

    from zs2.evaluation.clip_scorer import Scorer
    from zs2.system.devices import choose_device

    own = all(settings.get("model") == Path(DEFAULT_MODEL).name for settings in clips.values())
    clip = given.get("clip", DEFAULT_MODEL if own else STANDARD_CLIP)
    scorer = Scorer.from_pretrained(clip, choose_device(given.get("device")))
    rows = {path: measure(Clip.open(path).frames, prompts[path], scorer) for path in clips}
    if given.get("json"):
        protocol = {
            "clip": scorer.name,
            "clip_sha256": scorer.digests,
            "comparable": scorer.comparable,
            "zs2": __version__,
        }
        found = [{"clip": path, "prompt": clips[path]["prompt"], "metrics": row} for path, row in rows.items()]
        print(json.dumps({"protocol": protocol, "clips": found}, indent=2))
        return
    names = [name.rjust(7) for name in next(iter(rows.values()))]  # as wide as -0.1234
    print("  ".join([*names, "clip"]))
    for path, row in rows.items():
        values = ("—" if value is None else f"{value:.4f}" for value in row.values())
        cells = (value.rjust(len(name)) for value, name in zip(values, names, strict=True))
        print("  ".join([*cells, path]))
    only = "" if scorer.comparable else ", which came with a model: its scores compare only with each other"
    print(f"\nCLIP: {scorer.name}{only}.")
    print("A still picture has the best consistency there is: read it beside motion.")


def _prompts(path: str, settings: dict[str, Any]) -> list[str]:
    """A clip's prompt, or one a frame. Raises: InputError if its settings do not say."""
    said = settings.get("prompt")
    prompts = [said] if isinstance(said, str) else said
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts) or not prompts:
        raise InputError(f"{path}: its settings have no prompt: only clips made from a prompt can be scored")
    return prompts


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0; 1 if measuring failed; 2 for what the user gave; 130 for Ctrl-C."""
    p = parser(
        "zs2.metrics",
        "Measure clips that zs2 made: CLIP score, consistency, motion, SSIM, flow warping error.",
        """the settings in a clip say its prompt; the flow warping error needs pip install 'zs2[metrics]'.
Definitions and sources: the docstrings of zs2/metrics.py and zs2/evaluation/optical_flow.py""",
    )
    p.add_argument(
        "clips", nargs="+", metavar="CLIP", help="lossless ones: .webp, .png, .apng, or a folder of PNG files"
    )
    p.add_argument(
        "--clip",
        metavar="MODEL",
        help="the CLIP that scores: a folder or a model on the hub in transformers' layout, such as "
        "openai/clip-vit-base-patch32@refs/pr/15 (its main branch has pickles only), or a model folder with "
        f"image_encoder/ (default: {DEFAULT_MODEL} for its own clips, else {STANDARD_CLIP})",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps … (default: the first there is of cuda, mps, cpu)")
    p.add_argument("--json", action="store_true", help="print JSON, with the digests of the CLIP")
    return command(p, run, argv)


if __name__ == "__main__":
    sys.exit(main())
