"""Whether a look that the prompt leaves open stays: the colours of background and thing, compared with frame 0's.

The prompt names only the thing, and each frame has noise of its own (i.i.d.). So only attention can keep a look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weights.recipe.settings import GUIDANCE, STEPS
from zs2 import ZS2
from zs2.study.stats import mean
from zs2.system.progress import progress

MU = (0.0, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
BORDER, FAR = 2, 20.0  # pixels of the scene's edge; colours further than FAR from it (in CIELAB) are the thing's


def distances(checkpoint: str, names: Sequence[str], seeds: Sequence[int], frames: int) -> list[dict[str, Any]]:
    """For each μ, the mean distance of later frames' colours from frame 0's, and its 95 % interval, if any."""
    model = ZS2.from_pretrained(checkpoint, dtype="float32", attn="tma", noise="iid")
    rows = []
    total = len(MU) * len(names) * len(seeds)
    clips = ((mu, i, seed) for mu in MU for i in range(len(names)) for seed in seeds)
    found: dict[float, dict[tuple[int, int], NDArray[np.float64]]] = {mu: {} for mu in MU}
    for mu, i, seed in progress(clips, total, "clips"):
        clip = model.variant(mu=mu)(names[i], frames=frames, steps=STEPS, guidance=GUIDANCE, seed=seed)
        seen = np.stack([colours(frame) for frame in clip.frames])  # (frames, 2, 3)
        found[mu][i, seed] = np.linalg.norm(seen[1:] - seen[0], axis=2).mean(0)
    for mu, clips_of in found.items():
        row: dict[str, Any] = {"mu": mu}
        for which, what in enumerate(("background", "thing")):
            estimate = mean({key: float(pair[which]) for key, pair in clips_of.items()})
            assert estimate is not None
            row[what] = [value for value in (estimate.value, estimate.low, estimate.high) if value is not None]
        rows.append(row)
    return rows


def colours(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The colours of a frame (H, W, 3) in CIELAB: (2, 3).

    That of the background is the median of the edge. That of the thing is the mean of all pixels that are FAR from the
    background, or of the middle if there are none.
    """
    lab = cielab(frame)
    background, thing = stands_out(lab)
    if not thing.any():
        h, w = thing.shape
        thing[h // 4 : -h // 4, w // 4 : -w // 4] = True
    return np.stack([background, lab[thing].mean(0)])


def stands_out(lab: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The colour of a frame's background (3,), and which pixels are FAR from it (H, W). The frame is in CIELAB."""
    edge = np.ones(lab.shape[:2], dtype=bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    background = np.median(lab[edge], axis=0)
    return background, np.linalg.norm(lab - background, axis=2) > FAR


def cielab(srgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB (…, 3) → CIELAB (…, 3) with the white point D65 (CIE 15:2004). A distance of 2 or 3 is just visible."""
    x = srgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
