"""Sources and edits: frame 0 is the picture of diffusers' pipelines, by the fixture `guided`."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from helpers import CLIP, MODULE, Fixture, assert_close, assert_same_picture, write_guided

from zs2 import ZS2, Request
from zs2.guidance.sources import encode
from zs2.noise.models import stream
from zs2.parameters import LAM_MAX
from zs2.sampling.sampler import Chunk, Sampler

fixture = cache(Fixture)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The models of tiny.py by (way, kind), as make_guided.py writes them."""

    @cache
    def load(way: str, kind: str) -> ZS2:
        folder = write_guided(tmp_path_factory.mktemp(f"{way}-{kind}") / "model", way, kind)
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


def test_an_inversion_is_that_of_diffusers(models: Any) -> None:
    f = fixture("guided")
    path = f["inversion"].flip(0)  # from noise to picture
    options = {key: tiny.PICTURE[key] for key in ("prompt", "height", "width")}
    options |= {"steps": len(path) - 1, "guidance": 4.0, "first_frame_noise": "inverted"}
    request = Request(**options, frames=3, first_frame=f["source"].numpy())
    sampler = Sampler(models("source", "sd").plan(request))
    initial = sampler.plan.noises(path[0])
    steps = list(sampler.steps())
    assert_close(sampler.first_frame, path, CLIP)
    for step in steps:
        assert torch.equal(step.latents[0], sampler.first_frame[step.index + 1])
    assert torch.equal(next(initial), path[0])  # from which those of the other frames follow
    rho = 1 - 0.5 / LAM_MAX
    assert_close(next(initial), rho * path[0] + math.sqrt(1 - rho**2) * stream(0, 1, tuple(path.shape[1:]))(), MODULE)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_matched_inversion_is_one_that_ddim_undoes(tmp_path: Path, prediction: str) -> None:
    """Steps of DDIM at the clip's guidance come back to the picture."""
    how = {key: tiny.PICTURE[key] for key in ("prompt", "height", "width")} | {"steps": 10, "guidance": 3.0}
    picture = fixture("guided")["source"].numpy()
    folder = write_guided(tmp_path / "model", "source", "sd")
    schedule = json.loads((folder / tiny.SCHEDULER).read_text()) | {"prediction_type": prediction}
    (folder / tiny.SCHEDULER).write_text(json.dumps(schedule))
    model = ZS2.from_pretrained(folder, device="cpu")

    def errors(noise: str | None) -> torch.Tensor:
        request = Request(**how, frames=1, first_frame=picture, first_frame_noise=noise)
        plain, path = Sampler(model.plan(Request(**how, frames=1))), Sampler(model.plan(request))
        *_, _ = path.steps()
        found = []
        for i, (before, after) in enumerate(pairwise(path.first_frame)):
            chunk = Chunk(0, before[None])
            plain.step(i, chunk, ())
            found.append((chunk.latents[0] - after).norm())
        return torch.stack(found)

    assert torch.equal(errors(None), errors("matched"))
    matched, inverted = errors("matched"), errors("inverted")
    assert (matched < inverted).all()
    assert matched.sum() < 0.3 * inverted.sum()


@pytest.mark.parametrize("options", [{}, {"guidance": 9.0, "sampler": "dpm++"}, {"first_frame_noise": "drawn"}])
@pytest.mark.parametrize("attn", ["sa", "cfa", "tma"])
def test_a_first_frame_is_the_vae_s_own_picture_of_it(models: Any, attn: str, options: dict[str, Any]) -> None:
    source, size = fixture("guided")["source"], {key: tiny.PICTURE[key] for key in ("height", "width")}
    model = models("source", "sd").variant(attn=attn)
    latents = model.latents("a cat", first_frame=source.numpy(), frames=2, steps=3, **size, **options)
    clean = encode(model.vae, source[None].numpy(), 1) * model.vae.config.scaling_factor
    assert torch.equal(latents[:1], clean)
    assert (latents[1] - latents[0]).abs().max() > 0.01
