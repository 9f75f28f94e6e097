"""The motion of a clip: how much its pixels change from frame to frame. NumPy alone."""

from __future__ import annotations

import numpy as np

from zs2.video.formats import Frames


def motion(frames: Frames) -> float | None:
    """Mean absolute change of a pixel's colours from frame to frame, pixels in [0, 1]: 0 … 1, 0 for a still clip.

    Neither high nor low is good; flicker counts as motion. The change in the authors' clips was measured the same way.
    None for one frame.
    """
    if len(frames) < 2:
        return None
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(dtype=np.float64) / 255)
