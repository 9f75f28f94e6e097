"""Resizing frames with Pillow's filters, to the same pixels whatever Pillow's version.

Pillow resizes in two passes, and rounds to uint8 after each. Up to version 12 the horizontal pass is the first one.
Version 13 does the vertical one first where that is less work, which changes last bits. Here each pass is a call of its
own, in the order of version 12.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from zs2.video.formats import Frames

Box = tuple[float, float, float, float]  # left, top, right, bottom


def resized(frame: Frames, size: tuple[int, int], resample: int, box: Box | None = None) -> Frames:
    """A frame, uint8 (H, W, 3), in another size (h, w), or only the part of it that is in the box.

    resample: Pillow's filter.
    """
    (height, width), (new_height, new_width) = frame.shape[:2], size
    left, top, right, bottom = box or (0, 0, width, height)
    across = Image.fromarray(frame).resize((new_width, height), resample, (left, 0, right, height))
    return np.asarray(across.resize((new_width, new_height), resample, (0, top, new_width, bottom)))
