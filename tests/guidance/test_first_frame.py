"""A clip flows out of its first frame: noise that was inverted at the clip's guidance does not jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINT, Fixture, benchmark

from zs2 import ZS2

PICTURES = 3


@pytest.mark.slow
def test_matched_noise_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of diffusers' pipeline: at most 1.5 times the median of the later changes, also at guidance 3."""
    monkeypatch.syspath_prepend(str(CHECKPOINT.parents[1] / "benchmarks"))
    jump = benchmark("first_frame").jump
    fixture, model = Fixture("checkpoint_images"), ZS2.from_pretrained(CHECKPOINT, device="cpu")

    def jumps(**more: Any) -> list[float]:
        made = []
        for number in range(PICTURES):
            picture = fixture[f"{number}/picture"].numpy()
            asked = fixture.config["images"][number]
            how = {"height": picture.shape[0], "width": picture.shape[1], "seed": number, **more}
            made.append(jump(model(asked["prompt"], frames=8, first_frame=picture, **how).frames))
        return made

    assert max(jumps()) <= 1.5
    assert np.median(jumps(guidance=3)) <= 1.5
    assert np.median(jumps(guidance=3, first_frame_noise="inverted")) > 2
