"""FreeNoise's noise: that of the first frames, shuffled along the clip (Qiu et al. 2023, arXiv 2310.15169).

The first `window` frames have independent noises. After them, every block of window/4 frames has the noises of the
block one window earlier, in a random order. So a long clip uses no other noises than its first frames, and neighbours
are independent. The blocks of the paper are a quarter of the window, too: 4 of 16 frames.

Each order is drawn from the stream of its block's first frame, which has no other use. So the noise of a frame does not
depend on the number of frames.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zs2.noise.models import Draws


def freenoise(draws: Draws, window: int) -> Iterator[Tensor]:
    """Independent noises for `window` frames, which are then repeated in blocks of a quarter, each shuffled."""
    block = max(1, window // 4)
    last: deque[Tensor] = deque(maxlen=window)  # the noises of the frames before
    for i in range(window):
        last.append(draws(i)())
        yield last[-1]
    for start in itertools.count(window, block):
        source, draw = list(itertools.islice(last, block)), draws(start)
        keys = torch.cat([draw().flatten() for _ in range(-(-block // last[0].numel()))])[:block]
        for place in keys.argsort().tolist():
            last.append(source[place])
            yield last[-1]
