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
    lpips            the network of lpips.py, if its weights are given

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zs2.errors import InputError, choose
from zs2.method import NOISE_MODELS, Method
from zs2.system.registry import Registry, load
from zs2.video.formats import Frames
from zs2.video.motion import motion as motion

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = ("frames", "images", "prompted_images", "texts", "noises", "method", "lpips")


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


def temporal_flicker(frames: Frames) -> float | None:
    """VBench's temporal flickering (Huang et al. 2024): 1 − the mean absolute change of consecutive frames: 0 … 1.

    That is 1 − motion: VBench scores prompts of things that do not move by it. A still clip has 1. At equal motion it
    would rank only what the search left, so it has no better side here.
    """
    change = motion(frames)
    return None if change is None else 1 - change


def motion_smoothness(frames: Frames) -> float | None:
    """How well every other frame is the mean of its neighbours: 1 − the mean absolute difference, 0 … 1.

    As VBench's motion smoothness, but with the mean where that has a network for interpolation. A still clip has 1.
    None for fewer than three frames.
    """
    if len(frames) < 3:
        return None
    values = frames.astype(np.float64) / 255
    kept = values[: len(values) - 1 + len(values) % 2]  # a last frame without a right neighbour is left out
    return 1 - float(np.abs(kept[1::2] - (kept[:-1:2] + kept[2::2]) / 2).mean())


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


def expected_correlation(method: Method, noises: Tensor) -> float | None:
    """The correlation of consecutive noises of this size (F, c, h, w) by the formula of the noise model.

    None where it has no closed form.
    """
    model, (height, width) = NOISE_MODELS[method.noise], noises.shape[-2:]
    size = {"height": height, "width": width} if model.needs_size else {}
    return load(model.correlation)(**method.noise_parameters, **size)


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
        still: its value for any clip whose frames are one picture, if that is one number.
        revision: of its definition. Raise it in the commit that makes the same clip have another number, beyond the
            rounding of the last digits: numbers of two revisions are never in one table.
    """

    name: str
    title: str
    better: str | None
    meaning: str
    needs: tuple[str, ...]
    compute: Callable[..., float | None] | str
    still: float | None = None
    revision: int = 1

    def __post_init__(self) -> None:
        if "@" in self.name:
            raise InputError(f"a metric is named {self.name!r}: expected a name without @, which begins its revision")
        for need in self.needs:
            choose(f"input of the metric {self.name}", need, INPUTS)

    @property
    def definition(self) -> str:
        """Its name in a protocol: `ssim`, and `ssim@2` once its definition is another one."""
        return self.name if self.revision == 1 else f"{self.name}@{self.revision}"

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
            1.0,
        ),
        Metric(
            "clip-all-pairs",
            "CLIP all pairs",
            "higher",
            "mean cosine of the embeddings of all pairs of frames",
            ("images",),
            clip_all_pairs,
            1.0,
        ),
        Metric(
            "clip-first",
            "CLIP to first",
            "higher",
            "mean cosine of each later frame's embedding to frame 0's",
            ("images",),
            clip_first,
            1.0,
        ),
        Metric(
            "motion",
            "motion",
            None,
            "mean absolute change between consecutive frames, pixels in [0, 1]",
            ("frames",),
            motion,
            0.0,
        ),
        Metric(
            "ssim",
            "SSIM",
            "higher",
            "structural similarity of consecutive frames",
            ("frames",),
            "zs2.evaluation.structure:ssim",
            1.0,
        ),
        Metric(
            "ms-ssim",
            "MS-SSIM",
            "higher",
            "structural similarity at five scales, of frames larger than 96 pixels",
            ("frames",),
            "zs2.evaluation.structure:ms_ssim",
            1.0,
        ),
        Metric(
            "lpips",
            "LPIPS",
            "lower",
            "learned perceptual distance of consecutive frames; needs --lpips FILE",
            ("frames", "lpips"),
            "zs2.evaluation.lpips:lpips",
            0.0,
        ),
        Metric(
            "temporal-flicker",
            "flicker",
            None,
            "VBench's temporal flickering: 1 − motion, so neither side is better",
            ("frames",),
            temporal_flicker,
            1.0,
        ),
        Metric(
            "motion-smoothness",
            "smoothness",
            "higher",
            "1 − mean distance of every other frame to the mean of its neighbours",
            ("frames",),
            motion_smoothness,
            1.0,
        ),
        Metric(
            "flow-warp-error",
            "flow warp error",
            "lower",
            "change that optical flow does not explain, where visible",
            ("frames",),
            "zs2.evaluation.optical_flow:flow_warp_error",
            0.0,
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
            ("method", "noises"),
            expected_correlation,
        ),
    ],
)
