"""The models that go with the default checkpoint do what they are for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weights.recipe.judge import FILE, Judge
from weights.recipe.looks import cielab, stands_out
from weights.recipe.measure import seen
from weights.recipe.measure_guided import overlaps
from weights.recipe.scenes import COLOURS, edges
from zs2 import ZS2
from zs2.checkpoints.hub import DEFAULT_MODEL

SIZE, RADIUS = 128, 34
PLACES = ((42, 42), (84, 84))  # of balls: rows and columns of their middles


def load(model: str = DEFAULT_MODEL, **more: str) -> ZS2:
    return ZS2.from_pretrained(model, dtype="float32", attn="sa", noise="iid", **more)


@cache
def judge() -> Judge:
    return Judge.load(FILE)


def picture(model: ZS2, prompt: str, **more: object) -> NDArray[np.uint8]:
    """One picture, uint8 (1, h, w, 3)"""
    return model(prompt, frames=1, steps=20, seed=3, **more).frames


def judged(frame: NDArray[np.uint8]) -> tuple[str, str]:
    """The thing and the colour of the background that the judge sees."""
    thing, colour = seen(judge(), frame)
    return judge().things[int(thing)], list(COLOURS)[int(colour)]


@pytest.mark.long
def test_a_thing_is_where_its_outline_is():
    rows, columns = np.mgrid[:SIZE, :SIZE]
    discs = np.stack([(rows - y) ** 2 + (columns - x) ** 2 <= RADIUS**2 for y, x in PLACES])
    hints = (edges(torch.from_numpy(discs)[:, None]).permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()
    prompt = "tangerine on a blue background"
    control = load(controlnet=f"{DEFAULT_MODEL}-edges")
    guided = np.concatenate([picture(control, prompt, control=hint[None]) for hint in hints])
    free = picture(load(), prompt).repeat(len(discs), axis=0)
    assert np.mean(overlaps(guided, discs)) > 0.8 > 0.1 + np.mean(overlaps(free, discs))
    assert all(judged(frame[None]) == ("tangerine", "blue") for frame in guided)


@pytest.mark.long
def test_an_instruction_changes_what_it_names():
    """Most of the rest stays; where it does not, the figures of the model's card say how often."""
    edit, source = load(f"{DEFAULT_MODEL}-edit"), picture(load(), "red apple on a yellow background")
    assert judged(source) == ("red apple", "yellow")
    assert judged(picture(edit, "on a blue background", source=source)) == ("red apple", "blue")
    assert judged(picture(edit, "turn it into a sunflower", source=source)) == ("sunflower", "yellow")
    inside = stands_out(cielab(source[0]))[1]
    was, golden = (frame[0][inside].mean(0) for frame in (source, picture(edit, "make it golden", source=source)))
    assert was[1] < 0.5 * was[0]  # red
    assert 0.6 * golden[0] < golden[1] > 1.5 * golden[2]  # yellow
