"""The metrics of a clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zs2.scorer import Scorer as Scorer


def measure(frames: NDArray[np.uint8], prompt: str | Sequence[str], scorer: Scorer) -> dict[str, float | None]:
    """All metrics of a clip but the noise's correlation."""
    raise NotImplementedError


def noise_correlation(noises: Tensor) -> float | None:
    """Mean over consecutive frames of the correlation of their noises (F, 4, h, w)."""
    raise NotImplementedError


def expected_correlation(noise: str, lam: float | None, alpha: float | None) -> float | None:
    """What theory says."""
    raise NotImplementedError
