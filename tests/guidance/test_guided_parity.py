"""Sources and edits: frame 0 is the picture of diffusers' pipelines, by the fixture `guided`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny, token_files
from helpers import CLIP, Fixture, assert_close, assert_same_picture, tiny_weights

from zs2 import ZS2

fixture = cache(Fixture)
SCHEDULE = tiny.SCHEDULE | {"clip_sample": False, "steps_offset": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The models of tiny.py by (way, kind), as make_guided.py writes them."""

    @cache
    def load(way: str, kind: str) -> ZS2:
        folder: Path = tmp_path_factory.mktemp(f"{way}-{kind}") / "model"
        parts = tiny_weights(kind)
        if way == "edit":
            parts["unet"] = parts["unet"] | {"conv_in.weight": fixture("guided")[f"{kind}/conv_in"]}
        tiny.write_folder(folder, kind, parts)
        token_files.write_pair(folder, kind)
        (folder / tiny.SCHEDULER).write_text(json.dumps(SCHEDULE))
        config = tiny.JSONS[kind]["unet/config.json"] | {"in_channels": 8 if way == "edit" else 4}
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        return ZS2.from_pretrained(folder, device="cpu", attn="tma", mu=0.5, noise="dnm", lam=0.5)

    return load


@pytest.mark.filterwarnings("ignore:the negative prompt has no effect")
@pytest.mark.parametrize("case", fixture("guided").config["cases"])
def test_frame_0_is_the_picture_of_diffusers(models: Any, case: str) -> None:
    """Of one frame, and of a clip whose other frames have other sources."""
    f = fixture("guided")
    how = dict(f.config["cases"][case])
    model, source = models(case.split("/")[0], how.pop("kind")), f["source"].numpy()
    options = {key: tiny.PICTURE[key] for key in ("prompt", "seed", "height", "width")}
    options |= {"negative_prompt": "z", **how}
    latents = model.latents(**options, frames=1, source=source)
    assert_close(latents, f[f"{case}/latents"], CLIP)
    clip = torch.stack([f["source"], f["source"].flip(0), f["source"].flip(1)]).numpy()
    frames = model.latents(**options, frames=3, source=clip)
    assert_close(frames[:1], f[f"{case}/latents"], CLIP)
    assert (frames[1] - frames[0]).abs().max() > 0.01
    assert_same_picture(torch.from_numpy(model.decode(latents))[0], f[f"{case}/picture"])
