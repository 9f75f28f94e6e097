"""The metrics of a clip, each a small function, and METRICS, the table that lists them.

A still picture has the best consistency there is, so read every consistency next to the motion. Metrics that use CLIP
compare only between clips that the same CLIP has scored.

A new metric is one row of METRICS with its function. `METRICS.add(Metric(...))` adds one from outside the package. The
row names the inputs that the function needs, in the order of its arguments:

    frames           uint8 (F, H, W, 3)
    images           CLIP's image embeddings of the frames: unit vectors, float64 on the CPU (F, d)
    prompted_images  those of the frames whose prompt is not empty (P, d)
    texts            CLIP's text embeddings of the prompts of these frames (P, d)
    noises           the initial noises of the frames, float32 (F, c, h, w)
    method           the `Method` of the clip, for what theory says of its noise model

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zs2.errors import choose
from zs2.method import NOISE_MODELS, Method
from zs2.system.registry import Registry
from zs2.video.formats import Frames

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = ("frames", "images", "prompted_images", "texts", "noises", "method")
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # a window of 11 × 11


# --- of CLIP embeddings: unit vectors (F, d) --------------------------------------------------------------------------


def clip_score(images: Tensor, texts: Tensor) -> float:
    """max(100 · mean over frames of cos(frame, its text), 0): 0 … 100, higher is nearer the prompt.

    As in torchmetrics' functional `clip_score`, the mean is taken before the maximum. (Hessel et al. 2021, arXiv
    2104.08718, multiply by 2.5 and cut each picture at 0.) A prompt that is too long loses its last words, as in
    sampling. torchmetrics also cuts its end token, which is the token that CLIP embeds.
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
    """Mean cosine of frame 0 with each later frame: −1 … 1. It falls where a clip drifts away.

    It is one half of VBench's consistencies (Huang et al. 2024, arXiv 2311.17982).
    """
    return (images[1:] @ images[0]).mean().item() if len(images) > 1 else None


# --- of frames: uint8 (F, H, W, 3) ------------------------------------------------------------------------------------


def motion(frames: Frames) -> float | None:
    """Mean absolute change of a pixel's colours from frame to frame, pixels in [0, 1]: 0 … 1, 0 for a still clip.

    Neither high nor low is good; flicker counts as motion. The change in the authors' clips was measured the same way.
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


# --- of the initial noises --------------------------------------------------------------------------------------------


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


def expected_correlation(method: Method) -> float | None:
    """The correlation of consecutive noises by the formula of the noise model. None where it has no closed form."""
    return NOISE_MODELS[method.noise].correlation(**method.noise_parameters)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric, and how it is shown.

    Args:
        name: as stored in measures, and as a column of a CSV file.
        title: as a column of a report.
        better: `higher`, `lower`, or None where neither is better.
        meaning: what it says, in one line.
        needs: the names of the inputs, as listed above.
        compute: a function of these inputs, or "module:name" of one, which is imported when it is first called. It
            returns None where the metric has no meaning, as for a single frame.
    """

    name: str
    title: str
    better: str | None
    meaning: str
    needs: tuple[str, ...]
    compute: Callable[..., float | None] | str

    def __post_init__(self) -> None:
        for need in self.needs:
            choose(f"input of the metric {self.name}", need, INPUTS)

    @property
    def of_prompt(self) -> bool:
        """Whether it needs a prompt that is not empty."""
        return "texts" in self.needs

    @property
    def of_noise(self) -> bool:
        """Whether it is a metric of the initial noises alone, which all prompts and kinds of attention share."""
        return {"noises", "method"}.issuperset(self.needs)


METRICS: Registry[Metric] = Registry(
    "metric",
    [
        Metric(
            "clip-score",
            "CLIP score",
            "higher",
            "how well the frames show the prompt: 100 · mean cosine, at least 0",
            ("prompted_images", "texts"),
            clip_score,
        ),
        Metric(
            "clip-frame-consistency",
            "CLIP consistency",
            "higher",
            "mean cosine of consecutive frames' embeddings",
            ("images",),
            clip_frame_consistency,
        ),
        Metric(
            "clip-all-pairs",
            "CLIP all pairs",
            "higher",
            "mean cosine of the embeddings of all pairs of frames",
            ("images",),
            clip_all_pairs,
        ),
        Metric(
            "clip-first",
            "CLIP to first",
            "higher",
            "mean cosine of each later frame's embedding to frame 0's",
            ("images",),
            clip_first,
        ),
        Metric(
            "motion",
            "motion",
            None,
            "mean absolute change between consecutive frames, pixels in [0, 1]",
            ("frames",),
            motion,
        ),
        Metric("ssim", "SSIM", "higher", "structural similarity of consecutive frames", ("frames",), ssim),
        Metric(
            "flow-warp-error",
            "flow warp error",
            "lower",
            "change that optical flow does not explain, where visible",
            ("frames",),
            "zs2.evaluation.optical_flow:flow_warp_error",
        ),
        Metric(
            "noise-correlation",
            "measured",
            None,
            "correlation of the initial noises of consecutive frames",
            ("noises",),
            noise_correlation,
        ),
        Metric(
            "noise-correlation-expected",
            "in theory",
            None,
            "the same, by the noise model's formula",
            ("method",),
            expected_correlation,
        ),
    ],
)
