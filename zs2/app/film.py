"""A clip as a piece of HTML: its frames in one picture, which assets/film.js plays on a canvas. No torch here.

All films of a page follow one clock, so two clips of the same length and rate play in step.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOSSLESS = 2_000_000  # pixels of all frames, up to which the picture is lossless
SQUARES = 128  # the longest side of frames that are enlarged without smoothing


def film(
    frames: NDArray[np.uint8],
    fps: int,
    label: str,
    key: str,
    *,
    rough: bool = False,
    part: int | None = None,
) -> str:
    """The HTML of a film.

    Args:
        frames: uint8 (F, H, W, 3). fps: frames per second.
        label: what a screen reader says. key: the film's name on the page; a newer film of it takes its place.
        rough: whether it is a preview, which is enlarged smoothly.
        part: of a film without end: the number of this part. Parts are played one after the other.
    """
    count, height, width = frames.shape[:3]
    columns = math.ceil(math.sqrt(count * height / width))  # near a square
    smooth = "" if rough or max(height, width) > SQUARES else ' class="square"'
    more = "" if part is None else f' data-part="{part}"'
    address = picture(frames, columns)
    more += f' data-id="{zlib.crc32(address.encode())}-{part}"'
    return (
        f'<div class="film" data-key="{escape(key)}" data-frames="{count}" data-columns="{columns}" data-fps="{fps}"'
        f'{more}><canvas role="img" aria-label="{escape(label)}" width="{width}" height="{height}"{smooth}></canvas>'
        f'<img alt="" hidden src="{address}"></div>'
    )


def picture(frames: NDArray[np.uint8], columns: int) -> str:
    """The frames in rows of `columns`, as the address of a WebP picture that contains itself."""
    count, height, width = frames.shape[:3]
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * columns, height, width, 3), np.uint8)
    grid[:count] = frames
    grid = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2)  # (rows, H, columns, W, 3)
    image = Image.fromarray(grid.reshape(rows * height, columns * width, 3))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=frames.size // 3 <= LOSSLESS, quality=90, method=0)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
