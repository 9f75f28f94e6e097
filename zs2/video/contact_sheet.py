"""The contact sheet: frames of a clip in a grid, to look at a clip in one picture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from zs2.errors import whole
from zs2.video.formats import Frames

FRAMES_MAX = 60  # 10 × 6 tiles; longer clips show as many, evenly spaced
WIDTH_MAX, TILE, GAP = 2048, 192, 4  # pixels
GREY = (200, 200, 200)  # stands out from white and from black frames


def shown_frames(count: int) -> list[int]:
    """The indices of the frames that a sheet of a clip of `count` frames shows: all, or 60 evenly spaced."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, FRAMES_MAX)).round()]


def contact_sheet(frames: Frames, columns: int | None = None, tile: int | None = None) -> Image.Image:
    """Draw the frames, or 60 of them evenly spaced, in reading order on grey.

    Enlarged frames grow by a whole factor, so that each pixel becomes a square. Reduced frames are Lanczos filtered.

    Args:
        frames: uint8 (F, H, W, 3).
        columns: tiles in a row (default: up to 8 frames in one row, more in a grid near 16:9).
        tile: the most pixels that a tile is wide (default: a small frame grows to 192, a sheet is at most 2048 wide).
    Raises: InputError for columns or a tile out of range.
    """
    count, height, width = frames.shape[:3]
    shown = shown_frames(count)
    columns = _columns(len(shown), width / height) if columns is None else whole("columns", columns, 1)
    columns = min(columns, len(shown))
    if tile is None:
        room = max(1, (WIDTH_MAX - GAP) // columns - GAP)
        tile = min(room, max(width, TILE * width // max(width, height)))
    tile = whole("tile", tile, 1, WIDTH_MAX)
    scale = tile // width if tile >= width else tile / width
    size = (round(width * scale), max(1, round(height * scale)))
    resample = Image.Resampling.NEAREST if tile >= width else Image.Resampling.LANCZOS
    step = (size[0] + GAP, size[1] + GAP)
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * step[0] + GAP, rows * step[1] + GAP), GREY)
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        tile_image = Image.fromarray(frames[index]).resize(size, resample)
        sheet.paste(tile_image, (GAP + column * step[0], GAP + row * step[1]))
    return sheet


def _columns(count: int, aspect: float) -> int:
    """Up to 8 tiles make one row. More make the grid that is nearest 16:9 and has few empty places."""

    def ugliness(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * aspect / rows / (16 / 9))) + 5 * (1 - count / (rows * columns))

    return count if count <= 8 else min(range(1, count + 1), key=ugliness)
