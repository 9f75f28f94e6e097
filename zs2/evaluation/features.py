"""Fréchet and kernel distance of two sets of features, such as those of a video network: FVD and KVD of its features.

zs2 has no such network. The user brings the features of real clips and of made ones, in one safetensors file:

    reference   (n, d), of real clips
    clips       (m, d), of made ones
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zs2.checkpoints.tensor_files import read_tensors
from zs2.errors import InputError, warn

Floats = NDArray[np.float64]
NAMES = ("reference", "clips")


def distances(file: str | Path) -> dict[str, float]:
    """Both distances of the features in a file.

    Raises: InputError for a missing file, or other tensors. Warns if there are too few for the Fréchet distance.
    """
    reference, clips = read_features(file)
    if min(len(reference), len(clips)) <= reference.shape[1]:
        warn(
            f"{file}: {len(reference)} and {len(clips)} features of {reference.shape[1]} numbers: the Fréchet distance "
            "of no more features than numbers is too large: compare only with the same counts"
        )
    return {"frechet-distance": frechet(reference, clips), "kernel-distance": kernel(reference, clips)}


def read_features(file: str | Path) -> tuple[Floats, Floats]:
    """The features of real and of made clips, float64 (n, d) and (m, d). Raises: InputError for anything else."""
    path = Path(file)
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{file}: no such .safetensors file of features")
    tensors = read_tensors([path])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = [tensors.get(name) for name in NAMES]
    if any(one is None or one.ndim != 2 or len(one) < 2 or not one.is_floating_point() for one in found):
        raise InputError(f"{file} has {shapes}: expected reference (n, d) and clips (m, d), floats, n and m at least 2")
    reference, clips = (one.to(torch.float64).numpy() for one in found if one is not None)
    if reference.shape[1] != clips.shape[1]:
        raise InputError(f"{file} has {shapes}: expected features of one network, with the same d")
    if not (np.isfinite(reference).all() and np.isfinite(clips).all()):
        raise InputError(f"{file}: some features are NaN or infinite")
    return reference, clips


def frechet(reference: Floats, clips: Floats) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁·Σ₂)^½), of the normal laws with the sets' means and covariances: 0 for one set.

    Heusel et al. 2017 (arXiv 1706.08500) for pictures, Unterthiner et al. 2018 (arXiv 1812.01717) for clips (FVD).
    """
    one, other = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (reference, clips))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()  # tr((Σ₁·Σ₂)^½)
    apart = np.square(reference.mean(axis=0) - clips.mean(axis=0)).sum()
    return float(apart + np.trace(one) + np.trace(other) - 2 * cross)


def kernel(reference: Floats, clips: Floats) -> float:
    """The squared maximum mean discrepancy by the kernel (x·y/d + 1)³, unbiased: about 0 for one law, also below.

    Bińkowski et al. 2018 (arXiv 1801.01401) for pictures (KID), Unterthiner et al. for clips (KVD).
    """

    def values(x: Floats, y: Floats) -> Floats:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = 0.0
    for one in (reference, clips):
        own = values(one, one)
        within += (own.sum() - np.trace(own)) / (len(one) * (len(one) - 1))
    return float(within - 2 * values(reference, clips).mean())
