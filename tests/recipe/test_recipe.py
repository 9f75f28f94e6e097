"""The recipe of the default checkpoint, on small pictures of its own: scenes, captions, training that can be killed."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forked import Forked
from helpers import CHECKPOINT, TESTS, assert_close
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from simulated_device import AVAILABLE
from torch import nn

from weights.recipe import __main__ as recipe
from weights.recipe import (
    autoencoder,
    contrastive,
    curves,
    denoiser,
    edits,
    judge,
    layout,
    looks,
    measure,
    measure_guided,
    pictures,
    reading,
    scenes,
    training,
)
from weights.recipe.base import Base
from weights.recipe.muon import Muon, orthogonal
from weights.recipe.settings import QUICK, Guided, Schedule, Stage
from weights.recipe.training import Clock, OutOfTime, _optimizers, generator, gradients, rate, train
from zs2 import ZS2
from zs2.checkpoints.controlnets import ControlNetFiles
from zs2.checkpoints.own_settings import OwnSettings
from zs2.errors import InputError
from zs2.models.config import ScheduleConfig, UNetConfig
from zs2.models.temporal import SelfAttention
from zs2.models.tokenizer import Tokenizer
from zs2.models.unet import UNet
from zs2.sampling import schedule as sampling
from zs2.video.clip import Clip

ROOT, DRAW = TESTS.parent, curves.draw
NAMES = ["disc", "square", "star face"]
SIZE = QUICK.size
SHORT = Schedule(steps=4, batch=4, rate=1e-3, warmup=1, average=0.5)
TINY = replace(
    QUICK,
    clip_width=32,
    clip_layers=1,
    clip_projection=16,
    clip=SHORT,
    vae_widths=(16, 16, 16, 16),
    vae_channels=4,
    vae=replace(SHORT, pieces=2),
    unet_widths=(32, 32),
    unet=(Stage(2, 6, SHORT), Stage(None, 6, SHORT)),
    judge=SHORT,
)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder of pictures: a red disc, a green square, a blue triangle, on nothing."""
    folder = tmp_path_factory.mktemp("own")
    for name, colour, shape in zip(NAMES, ("red", "lime", "blue"), ("ellipse", "rectangle", "polygon"), strict=True):
        picture = Image.new("RGBA", (100, 100))
        points = [(10, 10, 90, 90)] if shape != "polygon" else [((50, 5), (95, 95), (5, 95))]
        getattr(ImageDraw.Draw(picture), shape)(*points, fill=colour)
        picture.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(own) -> torch.Tensor:
    return pictures.load(NAMES, own, own, SIZE)


def of(thing: int, background: int, look: int = 0, chance: float = 0.5) -> scenes.Scenes:
    """One scene, with its thing in the middle by default."""
    one = torch.tensor([1])
    return scenes.Scenes(thing * one, background * one, look * one, torch.full((1, 16), chance))


# --- pictures and scenes ----------------------------------------------------------------------------------------------


def test_the_things_are_listed_in_their_order():
    things, listed = pictures.things(), json.loads((CHECKPOINT / "zs2.json").read_text())["things"]
    assert listed == [name for name in things if name in listed]


def test_the_recipe_writes_the_settings_that_are_shipped():
    shipped = json.loads((CHECKPOINT / "zs2.json").read_text())
    assert layout.own_settings(shipped["things"]) == shipped
    assert layout.own_settings(NAMES) == {**shipped, "prompts": [], "open_prompts": [""], "things": NAMES}


def test_pictures_are_multiplied_by_alpha(loaded):
    assert loaded.shape == (3, 4, 2 * SIZE, 2 * SIZE)
    assert loaded[0, :, SIZE, SIZE].tolist() == [1, 0, 0, 1]
    assert loaded[:, :, 0, 0].abs().max() == 0
    assert (loaded[:, :3] <= loaded[:, 3:] + 1e-6).all()


def test_a_missing_picture_is_named(own):
    with pytest.raises(InputError, match=r"has no picture of moon: expected moon\.png"):
        pictures.load(["disc", "moon"], own, own, SIZE)


def test_a_package_with_another_checksum_is_refused(tmp_path):
    (tmp_path / "package-1.tgz").write_bytes(b"another")
    with pytest.raises(InputError, match="not the package that the recipe was made with"):
        pictures.fetch("x/-/package-1.tgz", "00", tmp_path)


def test_no_network_is_said_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="can't fetch"):
        pictures.fetch("x/-/package-1.tgz", "00", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_shows_its_thing_on_its_colour(loaded):
    for i, rgb in enumerate(scenes.COLOURS.values()):
        pixels = scenes.render(of(0, i), loaded, SIZE)
        assert pixels.shape == (1, 3, SIZE, SIZE)
        corner = (pixels[0, :, 0, 0] + 1) * 127.5
        assert np.abs(corner.numpy() - rgb).max() < 1
        assert pixels[0, :, SIZE // 2, SIZE // 2].tolist() == [1, -1, -1]


def test_things_are_placed_turned_and_mirrored_within_the_scene(loaded):
    drawn = replace(scenes.draw(200, 1, torch.Generator().manual_seed(0)), look=torch.zeros(200, dtype=torch.int64))
    drawn = replace(drawn, background=torch.full((200,), list(scenes.COLOURS).index("white")))
    disc = scenes.render(drawn, loaded, SIZE)[:, 1] < 0  # a red disc on white is where there is no green
    edge = disc.clone()
    edge[:, 1:-1, 1:-1] = False
    assert edge.sum() == 0
    sizes = disc.sum((1, 2)).float().sqrt() / SIZE
    assert 0.45 < sizes.min() < 0.52 < 0.58 < sizes.max() < 0.66
    middle = (disc * torch.arange(SIZE)).sum((1, 2)) / disc.sum((1, 2))
    assert middle.min() < SIZE * 0.4 < SIZE * 0.6 < middle.max()


@pytest.mark.parametrize("look", scenes.LOOKS[1:])
def test_looks_change_the_thing_and_not_its_outline(loaded, look):
    which = scenes.LOOKS.index(look)
    one = of(2, 0, which)
    dressed, own_look = scenes.dress(loaded[2:3], one), loaded[2:3]
    assert torch.equal(dressed[:, 3], own_look[:, 3])
    assert (dressed[:, :3] - own_look[:, :3]).abs().max() > 0.3
    assert dressed.min() >= 0
    assert (dressed[:, :3] <= dressed[:, 3:] + 1e-5).all()


def test_a_turned_hue_keeps_grays_and_comes_back():
    colours = torch.rand(2, 3, 4, 4)
    assert torch.allclose(scenes.turned_hue(colours, torch.tensor([1.0, 0.0])), colours, atol=1e-5)
    gray = torch.full((1, 3, 1, 1), 0.4)
    assert torch.allclose(scenes.turned_hue(gray, torch.tensor([0.3])), gray, atol=1e-2)


@pytest.mark.parametrize("name", scenes.SETTINGS)
def test_settings_are_pictures_that_differ(name):
    one, other = (scenes.setting(name, torch.full((9,), x), 64) for x in (0.3, 0.6))
    assert one.shape == (3, 64, 64)
    assert one.isfinite().all()
    assert one.min() >= -0.05
    assert one.max() <= 1.2
    assert (one - other).abs().max() > 0.05


def test_held_out_pairs_are_never_drawn():
    drawn = scenes.draw(20_000, 49, torch.Generator().manual_seed(1))
    pairs = set(zip(drawn.thing.tolist(), drawn.background.tolist(), strict=True))
    never = {(i, int(c)) for i in range(49) for c in torch.stack(scenes.held_out(torch.tensor(i)))}
    assert len(never) == 98
    assert not pairs & never
    plain = {(i, c) for i in range(49) for c in range(len(scenes.COLOURS))}
    assert plain - never <= pairs


def test_captions_say_what_is_there_and_leave_the_rest_out():
    assert scenes.caption(NAMES, 2, 5, 0) == "star face on a sky blue background"
    assert scenes.caption(NAMES, 0, len(scenes.COLOURS), 1) == "golden disc at night"
    assert scenes.caption(NAMES, 1, -1, 4) == "striped square"
    assert scenes.caption(NAMES, -1, 0, -1) == "a red background"
    assert scenes.caption(NAMES, -1, -1, -1) == ""
    source = torch.Generator().manual_seed(3)
    drawn = scenes.draw(4000, 3, source)
    labels = scenes.label(drawn, source, empty=0.1)
    assert labels.fits(drawn).diagonal().all()
    shares = {
        "empty": (labels.thing < 0) & (labels.background < 0),
        "thing alone": (labels.thing >= 0) & (labels.background < 0),
        "background alone": (labels.thing < 0) & (labels.background >= 0),
    }
    found = {key: float(share.float().mean()) for key, share in shares.items()}
    assert found == pytest.approx({"empty": 0.1, "thing alone": 0.9 * 0.24, "background alone": 0.09}, abs=0.02)


def test_mild_scenes_are_large_little_turned_and_never_mirrored():
    wild = scenes.draw(500, 3, generator(0, "mild", 0))
    mild = scenes.mild(wild)
    turn, scale, mirror = mild.chance[:, :3].T
    assert (turn - 0.5).abs().max() <= 0.25
    assert scale.min() >= 0.4
    assert mirror.min() >= 0.5
    assert torch.equal(mild.chance[:, 3:], wild.chance[:, 3:])
    assert torch.equal(mild.thing, wild.thing)
    assert wild.chance[:, 2].min() < 0.1  # the others stay as they were


def test_captions_fit_exactly_the_scenes_that_they_are_true_of():
    a, b = of(0, 3, 1), of(0, 4, 0)
    both = scenes.Scenes(
        *(torch.cat([getattr(a, k), getattr(b, k)]) for k in ("thing", "background", "look", "chance"))
    )
    labels = scenes.Labels(torch.tensor([0, 0, -1, 1]), torch.tensor([-1, 4, 3, -1]), torch.tensor([-1, -1, -1, -1]))
    assert labels.fits(both).tolist() == [[True, False, True, False], [True, True, False, False]]


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_rate_rises_then_falls():
    schedule = Schedule(steps=100, batch=1, rate=1.0, warmup=10)
    rates = [rate(schedule, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


def test_before_its_fall_a_schedule_does_not_depend_on_its_steps():
    long, short = (Schedule(steps=steps, batch=1, rate=1.0, warmup=10, fall=30) for steps in (100, 70))
    assert [rate(long, step) for step in range(40)] == [rate(short, step) for step in range(40)]
    assert rate(long, 39) == rate(long, 69) == 1.0
    assert [rate(long, step + 30) for step in range(40, 70)] == [rate(short, step) for step in range(40, 70)]
    assert rate(short, 69) < 0.02


def linear(steps: int, folder: Path, clock: Clock | None = None, seed: int = 0, muon: float = 0.0) -> nn.Module:
    """A training that learns a line."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(step, source):
        x = torch.randn(16, 3, generator=source)
        return ((model(x)[:, 0] - x.sum(1)) ** 2).mean(), {"half": torch.tensor(0.5)}

    schedule = Schedule(steps, 16, 0.05, 5, muon=muon, average=0.9)
    train("line", model, schedule, loss, seed=seed, folder=folder, clock=clock)
    return model


def test_training_learns_and_logs(tmp_path):
    model = linear(200, tmp_path)
    assert (model.weight - 1).abs().max() < 0.05
    log = [json.loads(line) for line in (tmp_path / "line.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(20, 201, 20))
    assert log[-1]["loss"] < log[0]["loss"] / 10
    assert log[0]["half"] == 0.5


@pytest.mark.parametrize("muon", [0.0, 0.05])
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, muon):
    whole = linear(60, tmp_path / "whole", muon=muon)
    for _ in range(3):
        with pytest.raises(OutOfTime):
            linear(60, tmp_path / "parts", Clock(0), muon=muon)
    parts = linear(60, tmp_path / "parts", muon=muon)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "line.log.jsonl").open()]
        for name in ("whole", "parts")
    ]
    assert steps[0] == steps[1]
    for other in (linear(60, tmp_path / "other", seed=1), linear(60, tmp_path / "rate", muon=0.1)):
        assert not torch.equal(whole.weight, other.weight)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(16, 16), (16, 144), (64, 16)])
def test_muon_steps_equally_far_in_all_directions(shape, dtype, error):
    """Against the singular value decomposition: the same directions, singular values near 1."""
    torch.manual_seed(0)
    matrix = torch.linspace(0.2, 1, shape[0])[:, None] * torch.randn(3, *shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.mT @ orthogonal(matrix, dtype=dtype) @ v.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert (found - torch.diag_embed(values)).abs().max() < error
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.linalg.svdvals(matrix).min() < 0.5 * torch.linalg.svdvals(matrix).max()  # they were not, before


def test_the_threads_of_muon_change_nothing():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (8, 4, 3, 3), (16, 8), (8, 8))]
    copies = [nn.Parameter(w.detach().clone()) for w in weights]
    for some, pieces in ((weights, 1), (copies, 2)):
        for w in some:
            w.grad = w.detach() ** 2
        Muon(some, 0.1, pieces=pieces).step()
    assert all(torch.equal(w, copy) for w, copy in zip(weights, copies, strict=True))


def test_muon_moves_a_weight_as_far_as_its_rate_says():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    before, optimizer = weight.detach().clone(), Muon([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    moved = (weight.detach() - before).flatten(1)
    assert torch.allclose(torch.linalg.svdvals(moved), torch.full((8,), 0.1), rtol=0.35)
    assert (moved * before.flatten(1)).sum() < 0  # against the gradient


def test_pieces_of_a_batch_have_the_gradient_of_the_whole():
    """Each with a generator of its own; a weight that no piece used has none."""
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(1, 1)})
    weights = dict(model.named_parameters())
    seen = {}

    def loss(step, source):
        x = torch.randn(4, 3, generator=source)
        seen[source.initial_seed()] = x
        return model["used"](x).square().mean(), {"first": x[0, 0]}

    figures = gradients(weights, loss, 0, [generator(0, "pieces", i) for i in range(3)])
    x = torch.cat([seen[generator(0, "pieces", i).initial_seed()] for i in range(3)])
    wanted = torch.autograd.grad(model["used"](x).square().mean(), list(model["used"].parameters()))
    for w, want in zip(model["used"].parameters(), wanted, strict=True):
        assert torch.allclose(w.grad, want, atol=1e-6)
    assert model["unused"].weight.grad is None
    assert figures["first"] == pytest.approx(float(x[::4, 0].mean()))
    assert figures["loss"] == pytest.approx(float(model["used"](x).detach().square().mean()))


def test_weight_decay_holds_the_queries_and_keys_of_cross_attention():
    """However long the gradient points one way, a singular value stays below the inverse of the decay."""
    names = [f"attn{i}.to_{part}" for i in (1, 2) for part in "qkv"]
    model = nn.ModuleDict({name.replace(".", "_"): nn.Linear(4, 4, bias=False) for name in names})
    weights = {f"block.{name}.weight": model[name.replace(".", "_")].weight for name in names}
    optimizers = _optimizers(weights, Schedule(1, 1, 1e-3, muon=0.1, hold=0.5))
    gradient = -torch.linalg.qr(torch.randn(4, 4, generator=generator(0, "hold", 0))).Q
    for _ in range(100):
        for optimizer in optimizers:
            for w in weights.values():
                w.grad = gradient
            optimizer.step()
    largest = {name: float(torch.linalg.svdvals(weights[f"block.{name}.weight"].detach())[0]) for name in names}
    assert all((value < 2.5) == (name in ("attn2.to_q", "attn2.to_k")) for name, value in largest.items()), largest
    assert min(largest.values()) > 1.4


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_the_unet_learns_is_what_sampling_takes_it_for(prediction, floor):
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=generator(0, "clean and noise", 0))
    config = ScheduleConfig.from_json(layout.scheduler(replace(TINY, prediction=prediction)))
    schedule = sampling.Schedule(config)

    for t in (5, 500, 950):
        a = schedule.alphas_cumprod[t]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        for found, want in zip(
            schedule.denoised(noisy, t, denoiser.target(prediction, clean, noise, a)), (clean, noise), strict=True
        ):
            assert torch.allclose(found, want, atol=1e-4)
        # an error of the prediction is one of the clean latents, which weighs as much whatever is predicted
        off = schedule.denoised(noisy, t, denoiser.target(prediction, clean, noise, a) + 1)[0] - clean
        ratio = float(denoiser.weight(prediction, a, floor) / off.square().mean())
        assert ratio == pytest.approx(min(float(a / (1 - a)) + floor, denoiser.GAMMA), rel=1e-3)


@pytest.mark.parametrize("lean", [1.0, 0.7, 0.5])
def test_timesteps_lean_to_the_noisy_end(lean):
    t = denoiser.timesteps(100_000, 1000, lean, torch.Generator().manual_seed(0))
    assert int(t.min()) >= 0
    assert int(t.max()) == 999
    for bound in (330, 650):  # the share below a timestep, by the integral of the density
        assert float((t < bound).double().mean()) == pytest.approx((bound / 1000) ** (1 / lean), abs=0.006)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="line: the loss is nan at step 4"):
        train("line", model, SHORT, lambda *_: (model.weight.sum() * torch.nan, {}), seed=0, folder=tmp_path)


# --- the whole recipe -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Trainings draw no curves here, which takes longer than they do: see the test of curves."""
    with patch.object(curves, "draw"):
        yield


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.long
def test_curves_show_what_was_logged(tmp_path):
    for part, keys in (("vae", ("loss", "pixels")), ("unet", ("loss",))):
        lines = [{"step": i, "seconds": 1.0, "rate": 0.1, **dict.fromkeys(keys, 1 / i)} for i in (1, 2, 3)]
        (tmp_path / f"{part}.log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    DRAW(tmp_path)
    assert [file.name for file in tmp_path.glob("*.png")] == ["curves.png"]
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert picture.shape == (600, 800)  # a row for each part, and a column for each figure
    rows = [(picture[y : y + 300] < 128).sum() for y in (0, 300)]
    assert min(rows) > 1000
    (tmp_path / "unet.log.jsonl").unlink()
    DRAW(tmp_path)
    assert Image.open(tmp_path / "curves.png").size == (800, 300)


@pytest.fixture(scope="module")
def made(loaded, tmp_path_factory) -> Path:
    """The work folder of the whole recipe, tiny, in float32 on any processor."""
    work = tmp_path_factory.mktemp("work")
    with patch.object(training, "bfloat16_cpu", lambda: False):
        recipe.train(NAMES, loaded, TINY, work, Clock())
    return work


def weights(work: Path) -> dict[str, torch.Tensor]:
    files = sorted((work / "checkpoint").rglob("*.safetensors"))
    return {f"{file.parent.name}.{key}": tensor for file in files for key, tensor in load_file(file).items()}


def test_the_result_is_a_checkpoint_that_samples(made):
    model = ZS2.from_pretrained(made / "checkpoint")
    clip = model("star face on a red background", frames=2, steps=2)
    assert clip.frames.shape == (2, SIZE, SIZE, 3)
    assert all(tensor.dtype == torch.float16 for tensor in weights(made).values())
    latents = [load_file(file) for file in (made / "latents").glob("*.safetensors")]
    second = torch.cat([part["mean"].float() ** 2 + part["deviation"].float() ** 2 for part in latents]).mean()
    assert second.sqrt() * model.vae.config.scaling_factor == pytest.approx(1, rel=1e-3)


@pytest.mark.long
def test_a_stage_of_the_unet_goes_on_from_the_one_before_with_more_things(made, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "bfloat16_cpu", lambda: False)
    first, second = TINY.unet
    recipe.train(NAMES, loaded, replace(TINY, unet=(first,)), tmp_path / "one", Clock())
    idle = replace(second, schedule=replace(second.schedule, steps=0))
    recipe.train(NAMES, loaded, replace(TINY, unet=(first, idle)), tmp_path / "idle", Clock())
    one, both, whole = weights(tmp_path / "one"), weights(tmp_path / "idle"), weights(made)
    assert all(torch.equal(both[key], tensor) for key, tensor in one.items())
    changed = {key.partition(".")[0] for key, tensor in one.items() if not torch.equal(whole[key], tensor)}
    assert changed == {"unet"}
    things = [load_file(made / name / "0000.safetensors")["thing"] for name in ("latents", "latents-2")]
    assert [int(thing.max()) for thing in things] == [1, 2]
    assert json.loads((tmp_path / "one" / "checkpoint" / "zs2.json").read_text())["things"] == NAMES[:2]
    assert json.loads((made / "checkpoint" / "zs2.json").read_text())["things"] == NAMES


def test_a_part_or_stage_that_is_there_is_kept(made, loaded, tmp_path, monkeypatch):
    """So all but the UNet's second stage may come from elsewhere, and the result is that of one training."""
    monkeypatch.setattr(training, "bfloat16_cpu", lambda: False)
    for part in ("tokenizer", "text_encoder", "image_encoder", "feature_extractor", "vae"):
        shutil.copytree(made / "checkpoint" / part, tmp_path / "checkpoint" / part)
    shutil.copytree(made / "unet", tmp_path / "unet")
    recipe.train(NAMES, loaded, TINY, tmp_path, Clock())
    assert not (tmp_path / "latents").exists()
    assert {file.name for file in tmp_path.glob("*.log.jsonl")} == {"unet-2.log.jsonl"}
    found = weights(tmp_path)
    assert found.keys() == weights(made).keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in weights(made).items())
    shutil.rmtree(tmp_path / "checkpoint" / "unet")
    shutil.rmtree(tmp_path / "unet")  # the last stage that is there is enough
    recipe.train(NAMES, loaded, TINY, tmp_path, Clock())
    assert not (tmp_path / "unet").exists()
    again = weights(tmp_path)
    assert all(torch.equal(tensor, again[key]) for key, tensor in found.items())


@pytest.mark.long
def test_stopped_after_every_piece_it_ends_with_the_same_weights(made, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "bfloat16_cpu", lambda: False)
    for _ in range(40):
        try:
            recipe.train(NAMES, loaded, TINY, tmp_path, Clock(0))
            break
        except OutOfTime:
            continue
    else:
        pytest.fail("it never came to an end")
    stopped = weights(tmp_path)
    assert all(torch.equal(tensor, stopped[key]) for key, tensor in weights(made).items())


# --- models that go with the checkpoint -------------------------------------------------------------------------------

TINY_GUIDED = Guided(6, SHORT, hint_channels=(8, 8, 8, 8))


def guided(command: str, made: Path, own: Path, work: Path, clock: Clock, settings: Guided = TINY_GUIDED) -> Path:
    """Train a model for the tiny checkpoint, in float32 on any processor. Returns: its folder."""
    with patch.object(training, "bfloat16_cpu", lambda: False):
        return recipe.guide(command, made / "checkpoint", NAMES, own, settings, work, clock)


@pytest.fixture(scope="module")
def with_guides(made, own, tmp_path_factory) -> Path:
    """The tiny checkpoint, its ControlNet and its editing UNet, beside each other."""
    folder = tmp_path_factory.mktemp("guides")
    shutil.copytree(made / "checkpoint", folder / "checkpoint")
    for command in recipe.GUIDED:
        shutil.move(guided(command, made, own, folder / command, Clock()), folder)
    return folder


def test_the_models_that_go_with_a_checkpoint_sample(with_guides):
    hints = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    hints[:, 16:48, 16] = 255
    model = ZS2.from_pretrained(with_guides / "checkpoint", controlnet=with_guides / "checkpoint-edges")
    frames = [model("disc", frames=2, steps=2, control=hints, control_scale=scale).frames for scale in (0, 1)]
    assert frames[0].shape == (2, SIZE, SIZE, 3)
    assert not np.array_equal(*frames)
    edit = ZS2.from_pretrained(with_guides / "checkpoint-edit")
    assert edit.own_settings.base == "checkpoint"
    assert edit("make it golden", frames=2, steps=2, source=hints).frames.shape == (2, SIZE, SIZE, 3)
    assert sorted(file.name for file in (with_guides / "checkpoint-edit").iterdir()) == ["unet", "zs2.json"]


@pytest.mark.parametrize("command", recipe.GUIDED)
def test_before_a_step_they_do_what_the_checkpoint_does(command, made, own, tmp_path):
    """ControlNets add nothing. An editing UNet ignores its source, and differs in how it reads alone."""
    torch.manual_seed(0)
    idle = guided(command, made, own, tmp_path, Clock(), replace(TINY_GUIDED, schedule=replace(SHORT, steps=0)))
    base = Base(made / "checkpoint", torch.device("cpu"))
    x, context = torch.randn(2, 4, 8, 8), base.texts(["disc", "a red background"])
    plain = base.unet()(x, 5, context, frames=2).prediction
    if command == "edges":
        control = ControlNetFiles(idle, torch.float32).network(torch.device("cpu"), torch.float32, SelfAttention())
        own_weights = dict(base.unet().state_dict())
        copied = [name for name in control.state_dict() if name in own_weights]
        assert {name.partition(".")[0] for name in copied} >= {"conv_in", "time_embedding", "down_blocks", "mid_block"}
        assert all(torch.equal(control.state_dict()[name], own_weights[name]) for name in copied)
        residuals, _ = control(x, 5, context, control.encode_hints(torch.rand(2, 3, SIZE, SIZE)), frames=2)
        found = base.unet()(x, 5, context, frames=2, residuals=residuals).prediction
    else:
        config = json.loads((idle / "unet" / "config.json").read_text())
        unet = UNet(UNetConfig.from_json(config), attn="sa")
        unet.load_state_dict(layout.read_part(idle / "unet"))
        own_weights = dict(base.unet().state_dict())
        changed = {name for name, w in unet.state_dict().items() if not torch.equal(w, own_weights[name])}
        assert changed == {"conv_in.weight"} | {
            name for name in own_weights if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }
        unet.load_state_dict({name: own_weights[name] for name in changed - {"conv_in.weight"}}, strict=False)
        found = unet(torch.cat([x, torch.randn(x.shape)], dim=1), 5, context, frames=2).prediction
    assert torch.allclose(found, plain, atol=1e-6)


@pytest.mark.parametrize(("more", "left"), [(0, 1e-5), (2, 0.01)])
def test_instructions_come_to_act_as_captions_do(more, left):
    """By least squares, which finds the way back where their tokens are those of captions in other coordinates. With
    more words than the caption there are more first tokens, which is not wholly made good."""
    unet = UNet(UNetConfig.from_json(layout.unet(TINY)), attn="sa")
    source = generator(0, "reading", 0)
    words, width = 8, TINY.clip_width
    first, other = (torch.randn(rows, width, generator=source) for rows in (1, width))
    said, told = {}, {}
    for i in range(12):
        own = torch.randn(words - 1, width, generator=source)
        said[f"caption {i}"] = torch.cat([first, own])
        told[f"instruction {i}"] = torch.cat([first.expand(1 + more, -1), own[: words - 1 - more]]) @ other
    captions, instructions = [*said] * 8, [*told] * 8

    def contexts(texts):
        return torch.stack([(said | told)[text] for text in texts])

    x, other_x = torch.randn(2, 96, 4, 8, 8, generator=source)
    t, other_t = torch.randint(1000, (2, 96), generator=source)
    with torch.no_grad():
        want, was = (unet(other_x, other_t, contexts(of), frames=1).prediction for of in (captions, instructions))
        reading.read(
            unet, instructions, captions, contexts, lambda text: more * text.startswith("instruction"), x, t, source
        )
        found = unet(other_x, other_t, contexts(instructions), frames=1).prediction
    assert (found - want).square().mean() < left * (was - want).square().mean()


@pytest.mark.parametrize("command", recipe.GUIDED)
@pytest.mark.long
def test_stopped_they_end_with_the_same_weights_and_leave_the_checkpoint(command, with_guides, made, own, tmp_path):
    before = weights(made)
    for _ in range(20):
        try:
            out = guided(command, made, own, tmp_path, Clock(0))
            break
        except OutOfTime:
            continue
    else:
        pytest.fail("it never came to an end")
    found, whole = (
        layout.read_part(folder / ("unet" if command == "edit" else "."))
        for folder in (out, with_guides / f"checkpoint-{command}")
    )
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in found.items())
    assert all(tensor.dtype == torch.float16 for tensor in found.values())
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(made).items())
    with pytest.raises(InputError, match="other settings or pictures, or for another checkpoint"):
        guided(command, made, own, tmp_path, Clock(), replace(TINY_GUIDED, seed=1))


def test_a_guide_needs_a_whole_checkpoint(tmp_path, capsys):
    (tmp_path / "unet").mkdir()
    assert recipe.main(["edges", str(tmp_path)]) == 1
    assert "is no checkpoint: it has no vae/, text_encoder/, tokenizer/, scheduler/" in capsys.readouterr().err


def test_silhouettes_are_where_the_things_are(loaded):
    """Against the scenes themselves, drawn on white."""
    drawn = scenes.draw(40, 3, generator(0, "silhouettes", 0))
    drawn = replace(drawn, background=torch.full((40,), list(scenes.COLOURS).index("white")), look=0 * drawn.look)
    seen = (scenes.render(drawn, loaded, SIZE) < 0).any(1, keepdim=True)
    shape = scenes.silhouettes(drawn, loaded, SIZE)
    assert shape.shape == (40, 1, SIZE, SIZE)
    assert (seen != shape).float().mean() < 0.01
    assert 0.1 < shape.float().mean() < 0.7
    lines = scenes.edges(shape)
    assert lines.shape == (40, 3, SIZE, SIZE)
    assert set(lines.unique().tolist()) == {0.0, 1.0}
    assert not (lines.bool() & shape).any()  # outside
    assert torch.equal(F.max_pool2d(shape.float(), 3, stride=1, padding=1).bool(), shape | lines[:, :1].bool())


def test_pairs_differ_in_what_their_instruction_says_and_stay_in_place():
    before, after, kind = edits.pairs(3000, 3, generator(0, "pairs", 0))
    texts = edits.instructions(NAMES, after, kind)
    assert torch.equal(before.chance, after.chance)
    for number, name in enumerate(edits.KINDS):
        rows = kind == number
        assert 0.3 < rows.float().mean() < 0.37
        for field in edits.KINDS:
            if field != name:
                assert torch.equal(getattr(before, field)[rows], getattr(after, field)[rows])
    looks = kind == edits.KINDS.index("look")
    assert (after.look[looks] > 0).all()
    assert (after.look[looks] != before.look[looks]).all()
    assert len(after.look[looks].unique()) == len(scenes.LOOKS) - 1
    never = scenes.held_out(after.thing)
    assert not ((after.background == never[0]) | (after.background == never[1]))[kind == 1].any()
    colours = [f"on a {colour} background" for colour in scenes.COLOURS]
    said = dict(zip(texts, edits.captions(NAMES, after, kind), strict=True))
    assert said["turn it into a square"] == "square"
    assert said["on a red background"] == "a red background"
    assert said["at night"] == "at night"
    assert {*texts} == {
        *(f"make it {look}" for look in scenes.LOOKS[1:]),
        *(f"turn it into a {name}" for name in NAMES),
        *colours,
        *scenes.SETTINGS,
    }


def test_a_share_of_the_pairs_has_no_text_or_no_source_or_neither():
    silent, blind = edits.dropped(20_000, 0.05, generator(0, "dropped", 0))
    shares = [(silent & ~blind), (silent & blind), (~silent & blind)]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.05] * 3, abs=0.006)


def test_shards_load_and_are_joined_again(made, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(made / "checkpoint", folder)
    layout.shard(folder, 1 << 18)
    files = list((folder / "unet").glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size <= 1 << 18 for file in files)
    sharded, whole = ZS2.from_pretrained(folder), ZS2.from_pretrained(made / "checkpoint")
    assert sharded.unet.state_dict().keys() == whole.unet.state_dict().keys()
    assert all(torch.equal(w, whole.unet.state_dict()[key]) for key, w in sharded.unet.state_dict().items())
    assert recipe.main(["join", str(folder)]) == 0
    for file in (made / "checkpoint").rglob("*.*"):
        assert (folder / file.relative_to(made / "checkpoint")).read_bytes() == file.read_bytes()
    assert len(list(folder.rglob("*.*"))) == len(list((made / "checkpoint").rglob("*.*")))


def test_only_a_folder_with_parts_can_be_joined(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("gone", "empty"):
        assert recipe.main(["join", str(tmp_path / name)]) == 1
        assert f"{name} has no part of a checkpoint (PART/config.json)" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()
    for part, content in {"text_encoder": {"a": torch.ones(2)}, "unet": {}}.items():
        (tmp_path / "half" / part).mkdir(parents=True)
        (tmp_path / "half" / part / "config.json").write_text("{}")
        if content:
            save_file(content, tmp_path / "half" / part / "model-00001-of-00001.safetensors")
    assert recipe.main(["join", str(tmp_path / "half")]) == 1
    assert "unet has no weights: expected a .safetensors file beside its config.json" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "half" / "text_encoder").iterdir()].count("model.safetensors") == 0


def test_a_packed_file_has_the_pictures_as_they_were(own, tmp_path, monkeypatch):
    """It replaces what would be fetched."""
    of_emoji = {name: (own / f"{name}.png").read_bytes() for name in NAMES}
    monkeypatch.setattr(pictures, "fetched", lambda names, cache: of_emoji)
    monkeypatch.setattr(pictures, "things", lambda count=None: NAMES)
    file = tmp_path / "new" / "things.zip"
    assert recipe.main(["pack", str(file)]) == 0
    found = pictures.load(NAMES, tmp_path, file, SIZE)
    assert torch.equal(found, pictures.load(NAMES, tmp_path, own, SIZE))
    with pytest.raises(InputError, match=r"things\.zip has no picture of moon"):
        pictures.load(["moon"], tmp_path, file, SIZE)
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(InputError, match="other is no file of pictures"):
        pictures.load(NAMES, tmp_path, tmp_path / "other", SIZE)


def test_a_packed_file_replaces_none_but_another(own, tmp_path, monkeypatch, capsys):
    of_emoji = {name: (own / f"{name}.png").read_bytes() for name in NAMES}
    monkeypatch.setattr(pictures, "fetched", lambda names, cache: of_emoji)
    monkeypatch.setattr(pictures, "things", lambda count=None: NAMES)
    text, book, things = (tmp_path / name for name in ("text.txt", "book.zip", "things.zip"))
    text.write_text("my notes")
    with zipfile.ZipFile(book, "w") as archive:
        archive.writestr("page.png", of_emoji[NAMES[0]])
    before = text.read_bytes(), book.read_bytes()
    for file in (text, book, tmp_path):
        assert recipe.main(["pack", str(file)]) == 1
        assert f"{file} is there, and this command did not write it" in capsys.readouterr().err
    assert (text.read_bytes(), book.read_bytes()) == before
    for _ in range(2):
        assert recipe.main(["pack", str(things)]) == 0
        assert pictures.packed(things) == of_emoji


ON_A_GPU = """if True:
    import sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    from simulated_device import simulated_device
    from recipe.test_recipe import NAMES, SHORT, SIZE, TINY
    from weights.recipe import __main__ as recipe, judge, pictures, training
    from weights.recipe.settings import Stage
    own, work = map(Path, sys.argv[1:])
    training.bfloat16_cpu = lambda: False
    loaded = pictures.load(NAMES, own, own, SIZE)
    one = replace(SHORT, steps=1, muon=1e-3)
    settings = replace(TINY, clip=one, vae=replace(one, pieces=2), unet=(Stage(None, 6, one),), judge=one)
    def learn(device):
        recipe.train(NAMES, loaded, settings, work / device, training.Clock(), torch.device(device))
        judge.learn(NAMES, loaded.to(device), settings, work / device, training.Clock(), work / device / "judge")
    with simulated_device():
        learn("sim")
    learn("cpu")
"""


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason=f"torch {torch.__version__} can't take a device from Python")
def test_on_a_gpu_no_tensor_is_misplaced_and_losses_are_the_same(own, tmp_path):
    """A step of each part on the simulated one. What is learnt can't be compared: its gradients are not a GPU's.

    In a process of its own, because autograd learns at its first use which devices there are.
    """
    line = [sys.executable, "-c", ON_A_GPU, str(own), str(tmp_path)]
    path = os.pathsep.join((str(ROOT), str(TESTS)))
    said = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert said.returncode == 0, said.stderr
    there, here = (
        {
            part: json.loads((tmp_path / device / f"{part}.log.jsonl").read_text())["loss"]
            for part in ("clip", "vae", "judge")
        }
        for device in ("sim", "cpu")
    )
    assert there == pytest.approx(here, rel=1e-5)


def test_bfloat16_multiplies_and_float32_keeps(monkeypatch):
    """Where the processor is made for it: elsewhere all is in float32."""
    x, layer = torch.randn(2, 3), nn.Linear(3, 3)
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(training, "bfloat16_cpu", lambda able=able: able)
        with training.fast(x.device):
            y = layer(x)
        assert y.dtype == dtype
        assert torch.autograd.grad(y.float().sum(), layer.weight)[0].dtype == torch.float32


def test_attention_stays_in_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(training, "bfloat16_cpu", lambda: True)
    x = torch.randn(1, 2, 8, 4)
    with training.fast(x.device):
        found = F.scaled_dot_product_attention(x.bfloat16(), x.bfloat16(), x, scale=0.3)
    assert torch.equal(found, F.scaled_dot_product_attention(x.bfloat16().float(), x.bfloat16().float(), x, scale=0.3))


def test_other_settings_in_the_same_folder_are_refused(made, loaded):
    with pytest.raises(InputError, match="was begun with other settings"):
        recipe.train(NAMES, loaded, replace(TINY, seed=1), made, Clock())
    with pytest.raises(InputError, match="or pictures"):
        recipe.train(NAMES, loaded.flip(0), TINY, made, Clock())


@pytest.mark.long
def test_a_judge_of_other_pictures_is_not_taken_over(own, tmp_path, capsys):
    for name in ("disc", "square", "star face"):
        shutil.copy(own / f"{name}.png", tmp_path / f"other {name}.png")
    line = ["judge", "--quick", "--minutes", "0", "--work", str(tmp_path / "work"), "--pictures"]
    assert recipe.main([*line, str(own)]) == 3  # begun, and kept
    assert recipe.main([*line, str(tmp_path)]) == 1
    assert "was begun with other settings or pictures" in capsys.readouterr().err


SHORTER = """if True:
    import functools, runpy
    from dataclasses import replace
    from weights.recipe import judge, settings
    settings.QUICK = replace(settings.QUICK, size=32, judge=replace(settings.QUICK.judge, steps=60))
    judge.accuracy = functools.partial(judge.accuracy, count=200)
    runpy.run_module("weights.recipe", run_name="__main__", alter_sys=True)
"""


@pytest.mark.long
def test_killed_while_training_and_finished(own, tmp_path):
    """The command `python -m weights.recipe`, with fewer steps and smaller pictures: three things are learnt in 60."""
    line = ["-c", SHORTER, "judge", "--quick", "--pictures", str(own), "--work", str(tmp_path)]
    killed = Forked(line, ROOT)
    deadline = time.monotonic() + 600
    while not (tmp_path / "judge.log.jsonl").exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    again = Forked(line, ROOT)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "right of held-out scenes" in out
    found = judge.accuracy(
        judge.Judge.load(tmp_path / "judge.safetensors"), pictures.load(NAMES, own, own, 32), 0, count=200
    )
    assert found["thing"] > 0.9
    assert found["colour"] > 0.5


def test_the_tokenizer_knows_every_word_and_any_byte(made):
    tokenizer = Tokenizer.from_folder(made / "checkpoint" / "tokenizer")
    ids = tokenizer.encode(["star face on a sky blue background", "\u00e9\u4e2d \U0001f600"])
    assert ids.shape == (2, 32)
    words = tokenizer.backend.encode("on a red background").tokens[1:-1]
    assert words == ["on</w>", "a</w>", "red</w>", "background</w>"]
    assert (ids[1] != tokenizer.eos_id).sum() == 1 + 2 + 3 + 4  # the start, and each byte: none is unknown


def test_merges_are_learnt_in_a_fixed_order():
    """The words of Sennrich et al. 2016, until each is whole."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    base = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    numbers, merges = recipe.bpe.merged(words, base)
    assert merges[:4] == [("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w")]  # 9, 9, 7 and 6 times, as ("n", "e")
    assert recipe.bpe.merged(dict(reversed(words.items())), base) == (numbers, merges)
    assert numbers.keys() >= {"low</w>", "lower</w>", "newest</w>", "widest</w>"}


def test_the_vocabulary_is_the_shipped_ones(tmp_path):
    learnt = recipe.bpe.learn(pictures.things(None), tmp_path).backend
    shipped = Tokenizer.from_folder(CHECKPOINT / "tokenizer").backend
    assert learnt.get_vocab().keys() == shipped.get_vocab().keys()


def test_a_tokenizer_that_is_there_stays(tmp_path):
    first = recipe.bpe.learn(["disc"], tmp_path)
    again = recipe.bpe.learn(NAMES, tmp_path)
    assert again.backend.get_vocab() == first.backend.get_vocab()


@pytest.mark.long
def test_clip_learns_which_caption_is_true(loaded, tmp_path):
    settings = replace(TINY, clip_width=64, clip_projection=32, clip=Schedule(60, 16, 2e-3, 10, average=0.9))
    tokenizer = recipe.bpe.learn(NAMES, tmp_path)
    contrastive.learn(NAMES, loaded, tokenizer, settings, tmp_path, tmp_path, Clock())
    log = [json.loads(line) for line in (tmp_path / "clip.log.jsonl").open()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert log[-1]["accuracy"] > log[0]["accuracy"]


def test_a_weight_that_half_precision_can_not_hold_is_an_error(tmp_path):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1e6)
    with pytest.raises(FloatingPointError, match="unet: weight does not fit half precision"):
        layout.write_part(tmp_path, "unet", {}, model, "x")
    assert not layout.is_there(tmp_path, "unet")


def test_randomness_is_of_the_seed_the_part_and_the_step():
    drawn = {int(generator(*key).initial_seed()) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))}
    assert len(drawn) == 4


# --- figures ----------------------------------------------------------------------------------------------------------


def test_cielab_of_known_colours():
    srgb = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255], [119, 119, 119]], dtype=np.uint8)
    want = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    assert np.abs(looks.cielab(srgb) - want).max() < 0.02


def test_the_colours_of_a_frame_are_those_of_its_edge_and_of_what_stands_out():
    frame = np.full((64, 64, 3), (45, 85, 210), dtype=np.uint8)
    frame[20:40, 25:50] = (255, 0, 0)
    blue, red = looks.cielab(np.array([[45, 85, 210], [255, 0, 0]], dtype=np.uint8))
    assert np.allclose(looks.colours(frame), [blue, red])
    assert np.allclose(looks.colours(frame[:16]), [blue, blue])


@pytest.mark.long
def test_figures_of_a_checkpoint_that_can_do_nothing_are_those_of_chance(made, loaded, tmp_path, monkeypatch):
    """The tiny checkpoint, with a UNet that was not trained at all and so not still at its start's 0, is judged by a
    judge that was not, either: shares, intervals and pictures are there."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(made / "checkpoint", checkpoint)
    torch.manual_seed(1)
    config = layout.unet(TINY)
    layout.write_part(
        checkpoint, "unet", config, UNet(UNetConfig.from_json(config), attn="sa"), "diffusion_pytorch_model"
    )
    for module in (measure, looks):
        monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(measure, "restored", partial(measure.restored, count=64))
    torch.manual_seed(0)
    classifier = judge.Judge(NAMES, SIZE).eval()
    monkeypatch.setattr(measure, "OFTEN", 0.05)
    found, shown = measure.figures(str(checkpoint), classifier, loaded, NAMES, anew=True)
    assert shown.shape == (36, SIZE, SIZE, 3)
    often = [share for share in found["by thing"].values() if share > 0.05]
    assert found["thing, those it lists"][0] == pytest.approx(sum(often) / len(often))
    assert found["prompts"] == 36
    assert found["thing"][1] < found["thing"][0] < found["thing"][2]
    assert found["thing"][0] < 0.7
    assert sum(found["by thing"].values()) / 3 == pytest.approx(found["thing"][0])
    assert 3 < found["psnr"] < 15
    assert found["psnr after"] < 15
    rows = looks.distances(str(checkpoint), NAMES, range(1), frames=2)
    assert [row["mu"] for row in rows] == list(looks.MU)
    for what in ("background", "thing"):
        assert [len(row[what]) for row in rows] == [1] * len(rows)  # three prompts have no interval
        assert len({row[what][0] for row in rows}) > 1  # μ has an effect


@pytest.mark.parametrize("figures", [[2.0], [2.0, 1.5, 2.5]], ids=["few prompts", "enough"])
def test_looks_speak_of_the_intervals_that_they_have(monkeypatch, capsys, figures):
    monkeypatch.setattr(looks, "distances", lambda *_: [{"mu": 0.5, "background": figures, "thing": figures}])
    recipe.print_looks("checkpoint", NAMES, 1, 2)
    text = capsys.readouterr().out
    assert ("95 % intervals" in text) == ("[1.5, 2.5]" in text) == (len(figures) > 1)


def test_things_are_listed_that_are_seen_often_enough(made, tmp_path, monkeypatch, own):
    shutil.copytree(made / "checkpoint", tmp_path / "here")
    shares = {"disc": 9 / 12, "square": 0.8, "star face": 10 / 12}
    found = {"thing": [0.8, 0.7, 0.9], "by thing": shares}
    anew: list[bool] = []
    monkeypatch.setattr(measure, "figures", lambda *options: (anew.append(options[-1]), (found, None))[1])
    monkeypatch.setattr(judge, "accuracy", lambda *_, **__: {})
    file = tmp_path / "judge.safetensors"
    save_file(judge.Judge(NAMES, SIZE).state_dict(), file, {"things": json.dumps(NAMES), "size": str(SIZE)})
    line = ["measure", str(tmp_path / "here"), "--pictures", str(own), "--judge", str(file), "--things", "3"]
    before = (tmp_path / "here" / "zs2.json").read_text()
    assert recipe.main(line) == 0
    assert (tmp_path / "here" / "zs2.json").read_text() == before
    assert recipe.main([*line, "--list"]) == 0
    assert anew == [False, True]  # which things the figures' own share is of
    assert json.loads((tmp_path / "here" / "zs2.json").read_text()) == layout.own_settings(["star face"])
    assert measure.often(shares) == {"star face"}


def test_a_new_list_of_things_leaves_a_checkpoint_s_own_settings(tmp_path):
    """The examples go with the list where both are the recipe's."""
    things, fewer, file = pictures.things(), ["rocket", "star face"], tmp_path / "zs2.json"
    assert layout.relisted(file, fewer) == layout.own_settings(fewer)  # there is none
    layout.write(file, layout.own_settings(things))
    assert layout.relisted(file, fewer) == layout.own_settings(fewer) != layout.own_settings(things)
    own = {"steps": 4, "guidance": 1.0, "lam": 0.05, "prompts": ["my example"], "open_prompts": ["mine"]}
    for more in ({}, {"things": things}, {"things": None}):
        layout.write(file, own | more)
        assert layout.relisted(file, fewer) == own | {"things": fewer}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("checkpoint --things 2 --list", "--list with --things 2: it would leave out the others: give --things 3"),
        ("checkpoint-edges --things 3 --list", "is no folder of a whole checkpoint, and lists no things"),
        ("nothing --things 3 --list", "no such model"),
        ("checkpoint --things 3 --base a", "--base is of ControlNets, and there is none"),
        *(
            (f"checkpoint a/checkpoint --things 3 {option} figures", "two checkpoints are called checkpoint, and")
            for option in ("--out", "--csv")
        ),
    ],
)
def test_options_of_measure_that_would_do_harm_or_nothing(line, words, with_guides, tmp_path, capsys):
    file = tmp_path / "judge.safetensors"
    save_file(judge.Judge(NAMES, SIZE).state_dict(), file, {"things": json.dumps(NAMES), "size": str(SIZE)})
    assert recipe.main(["measure", *shlex.split(f"'{with_guides}'/{line}"), "--judge", str(file)]) == 1
    assert words in capsys.readouterr().err
    assert not (with_guides / "nothing").exists()


def test_the_sheet_has_scenes_over_reconstructions_over_samples(made, own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "STEPS", 2)
    out = tmp_path / "new" / "sheet.png"
    assert recipe.main(["sheet", str(made / "checkpoint"), "--pictures", str(own), "--out", str(out)]) == 0
    rows = np.asarray(Image.open(out)).reshape(3, SIZE, 12, SIZE, 3).swapaxes(1, 2)
    vae = ZS2.from_pretrained(made / "checkpoint").vae
    pixels = torch.from_numpy(rows[0].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(measure.as_bytes(vae.decode(vae.encode(pixels))).astype(int) - rows[1]).max() <= 8  # of rounded ones
    assert len({row.tobytes() for row in rows[0]}) == len({row.tobytes() for row in rows[2]}) == 12
    (tmp_path / "empty").mkdir()
    line = ["sheet", str(made / "checkpoint"), "--pictures", str(tmp_path / "empty"), "--out", str(out)]
    assert recipe.main(line) == 1
    assert "no pictures in" in capsys.readouterr().err


def test_figures_of_a_vae_alone_need_no_other_part(made, own, tmp_path, monkeypatch, capsys):
    """The sheet has scenes over their reconstructions, and the figures are those of the whole checkpoint."""
    (tmp_path / "alone").mkdir()
    shutil.copytree(made / "checkpoint" / "vae", tmp_path / "alone" / "vae")
    monkeypatch.setattr(measure, "restored", partial(measure.restored, count=8))
    monkeypatch.setattr(judge, "accuracy", lambda *_, **__: {})
    file = tmp_path / "judge.safetensors"
    save_file(judge.Judge(NAMES, SIZE).state_dict(), file, {"things": json.dumps(NAMES), "size": str(SIZE)})
    line = [
        "--pictures",
        str(own),
        "--judge",
        str(file),
        "--things",
        "3",
        "--out",
        str(tmp_path / "new" / "figures.json"),
    ]
    assert recipe.main(["measure", str(tmp_path / "alone"), *line]) == 0
    found = json.loads((tmp_path / "new" / "figures.json").read_text())[str(tmp_path / "alone")]
    loaded = pictures.load(NAMES, own, own, SIZE)
    assert found == measure.restored(ZS2.from_pretrained(made / "checkpoint").vae, loaded, SIZE)
    assert f"{found['psnr']:.2f} dB" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "new" / "figures-alone.png"))
    assert sheet.shape == (2 * SIZE, 12 * SIZE, 3)
    drawn = scenes.render(scenes.draw(12, 3, generator(0, "scenes of the VAE's sheet", 0)), loaded, SIZE)
    assert np.array_equal(sheet[:SIZE, :SIZE], measure.as_bytes(drawn)[0])


@pytest.mark.long
def test_a_decoder_whose_numbers_grow_is_made_to_fit_float16(made):
    vae = autoencoder.load(made / "checkpoint")
    z = torch.randn(3, vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    for parameter in vae.decoder.up_blocks[-2].upsamplers[0].conv.parameters():
        parameter *= 3e4
    before = vae.decode(z)
    assert not copy.deepcopy(vae).half().decode(z).isfinite().all()
    by = autoencoder.fit_half(vae, z)
    assert by >= 2
    assert by == 2 ** round(math.log2(by))
    assert_close(vae.decode(z), before, 1e-5)
    assert autoencoder.fit_half(vae, z) == 1  # nothing is left to do
    assert_close(vae.half().decode(z), before, 2e-2)


def test_the_trained_vae_decodes_in_float16():
    vae = autoencoder.load(ROOT / "weights/emoji128")
    z = torch.randn(1, vae.config.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    z /= vae.config.scaling_factor
    assert_close(vae.half().decode(z), vae.float().decode(z), 2e-2)


def test_the_error_of_a_vae_is_that_of_its_pictures():
    class Dark(nn.Module):
        encode = staticmethod(lambda x: x)
        decode = staticmethod(lambda x: 0.5 * x - 0.5)

    opaque = torch.rand(2, 4, 32, 32)
    opaque[:, 3] = 1
    found = measure.restored(Dark(), opaque, 16, count=4)
    pixels = scenes.render(scenes.draw(4, 2, generator(0, "held-out scenes of the VAE", 0)), opaque, 16)
    assert found["psnr"] == pytest.approx(-10 * math.log10(float((0.5 * pixels + 0.5).square().mean()) / 4))


def test_figures_judge_each_prompt_by_its_own_picture(made, loaded, monkeypatch, tmp_path):
    """Against pictures that show what is asked, made by the renderer in the model's place: all are right."""

    class Right(torch.nn.Module):
        things, size = NAMES, SIZE

        def forward(self, pixels):
            corner = (pixels[:, :, 0, 0] + 1) * 127.5
            palette = torch.tensor(list(scenes.COLOURS.values()), dtype=torch.float32)
            middle = pixels[:, :, SIZE // 2, SIZE // 2]
            return middle, -torch.cdist(corner, palette)

    frames = []
    for thing in range(3):
        for colour in range(12):
            frames.append(scenes.render(of(thing, colour), loaded, SIZE)[0])
    shown = ((torch.stack(frames) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert len(shown) <= measure.BATCH
    monkeypatch.setattr(ZS2, "__call__", lambda self, prompts, **_: Clip(shown, 8, {}))
    monkeypatch.setattr(measure, "restored", partial(measure.restored, count=8))  # which says nothing here
    found, _ = measure.figures(str(made / "checkpoint"), Right(), loaded, NAMES)
    assert found["thing"][0] == found["background"][0] == 1
    assert found["thing, held-out pairs"][0] == 1
    assert found["thing, those it lists"] == found["thing"]  # it lists all that it has seen

    class SeesTheFirst(Right):
        def forward(self, pixels):
            return torch.eye(3)[:1].expand(len(pixels), -1), super().forward(pixels)[1]

    shutil.copytree(made / "checkpoint", tmp_path / "c")
    (tmp_path / "c" / "zs2.json").write_text(json.dumps({"things": NAMES[:1]}))
    found, _ = measure.figures(str(tmp_path / "c"), SeesTheFirst(), loaded, NAMES)
    assert (found["thing"][0], found["thing, those it lists"][0]) == (pytest.approx(1 / 3), 1)


class ByCorner(nn.Module):
    """Sees the colour of a picture's corner and, by the colour of its middle, which of NAMES it shows."""

    things, size = NAMES, SIZE

    def forward(self, pixels):
        palette = torch.tensor(list(scenes.COLOURS.values()), dtype=torch.float32)
        middle = pixels[:, :, SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2].mean((2, 3))
        return middle, -torch.cdist((pixels[:, :, 0, 0] + 1) * 127.5, palette)


def test_outlines_are_followed_by_pictures_that_follow_them(with_guides, loaded, monkeypatch):
    """In the model's place the renderer draws with hints what they outline, and without them a thing in the middle."""
    where, asked = {}, measure_guided.standing_out(loaded, 3, SIZE)[0]

    def draws(model, prompts, what, seed, size, clips=None):
        where[bool(clips)] = clips
        middle = scenes.Scenes(asked.thing, asked.background, asked.look, torch.full((6, 16), 0.5))
        return measure.as_bytes(scenes.render(asked if clips else middle, loaded, size))

    monkeypatch.setattr(measure_guided, "drawn", draws)
    names = [str(with_guides / name) for name in ("checkpoint-edges", "checkpoint")]
    found, sheet = measure_guided.of_edges(*names, ByCorner(), lambda size: loaded, NAMES, 0)
    assert sheet.shape == (3 * 12, SIZE, SIZE, 3)
    assert found["prompts"] == 6
    good, free, gained, best = (
        found[f"IoU, {what}"] for what in ("with the ControlNet", "without", "gained", "rendered scenes")
    )
    assert good == pytest.approx(best)
    assert good[0] > 0.95
    assert free[0] < 0.9
    assert gained[0] == pytest.approx(good[0] - free[0])
    assert gained[1] > 0
    hints = where[True]["control"]
    assert {*np.unique(hints)} == {0, 255}
    inside = scenes.silhouettes(asked, loaded, SIZE)[:, 0].numpy()
    assert not hints[inside].any()


def test_edits_that_are_right_are_seen_to_be(with_guides, loaded, monkeypatch):
    """In the model's place the renderer draws each scene after its edit: its figures are those of rendered scenes."""
    _, after, _ = measure_guided.asked_edits(3)

    def draws(model, prompts, what, seed, size, clips, settings):
        assert settings == {}  # so that they are the model's own
        assert prompts[:3] == ["make it golden", "on a yellow background", "turn it into a square"]
        assert clips["source"].shape == (9, SIZE, SIZE, 3)
        return measure.as_bytes(scenes.render(after, loaded, size))

    monkeypatch.setattr(measure_guided, "drawn", draws)
    folder = str(with_guides / "checkpoint-edit")
    found, sheet = measure_guided.of_edit(folder, ByCorner(), lambda size: loaded, NAMES, 0)
    assert sheet.shape == (2 * 12, SIZE, SIZE, 3)
    for name in edits.KINDS:
        assert found[f"{name} done, edited"] == found[f"{name} done, rendered"]
        assert found[f"{name} done, edited"][0] == 1
        assert found[f"{name} done, not edited"][0] == 0
        assert found[f"{name}: the rest stays, not edited"][0] == 1
    assert found["background: the rest stays, edited"][0] == found["thing: the rest stays, edited"][0] == 1
    assert found["place, IoU, edited"] == found["place, IoU, rendered"]


@pytest.mark.long
def test_figures_of_guides_that_know_nothing(with_guides, own, tmp_path, monkeypatch, capsys):
    """The command, with the tiny models: it finds out what each folder is, and each prompt has its own input."""
    monkeypatch.setattr(measure, "STEPS", 2)
    monkeypatch.setattr(judge, "accuracy", lambda *_, **__: {})
    monkeypatch.setattr(measure, "BATCH", 5)
    file = tmp_path / "judge.safetensors"
    half = {"things": json.dumps(NAMES), "size": str(SIZE // 2)}  # it sees larger pictures made smaller
    save_file(judge.Judge(NAMES, SIZE // 2).state_dict(), file, half)
    places = [f"{with_guides}/checkpoint-{command}/" for command in recipe.GUIDED]  # as a shell completes them
    line = ["--pictures", str(own), "--judge", str(file), "--things", "2", "--out", str(tmp_path / "figures.json")]
    table = tmp_path / "figures.csv"
    table.write_text(f"{','.join(measure.CSV_HEAD)}\nother,2,0,thing,1.0,,,%\n{Path(places[0]).name},2,0,old,1.0,,,%\n")
    assert recipe.main(["measure", *places, *line, "--csv", str(table)]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    for place in places:
        shares = [value for value in found[place].values() if isinstance(value, list)]
        assert len(shares) > 5
        assert all(
            len(share) == 1 or share[1] <= share[0] <= share[2] for share in shares
        )  # of two things, no interval
        assert (tmp_path / f"figures-{Path(place).name}.png").exists()
    rows = list(csv.DictReader(table.open()))
    assert [row["checkpoint"] for row in rows[:2]] == ["other", Path(places[0]).name]
    assert {(row["things"], row["seed"]) for row in rows} == {("2", "0")}
    assert "old" not in {row["figure"] for row in rows}
    for place in places:
        shares = {key: value for key, value in found[place].items() if isinstance(value, list)}
        written = {row["figure"]: row for row in rows if row["checkpoint"] == Path(place).name}
        assert list(written) == list(shares)
        for key, share in shares.items():
            cells = [float(cell) for name in ("value", "low", "high") if (cell := written[key][name])]
            assert cells == pytest.approx([100 * part for part in share], abs=0.051)
    said = capsys.readouterr().out
    assert "IoU, with the ControlNet" in said
    assert "look done, edited" in said


@pytest.mark.parametrize("what", ["outline", "path", "edit", "first-frame"])
def test_the_pictures_of_the_page_on_guidance(what, with_guides, own, tmp_path, monkeypatch):
    """The input over the clip. Outlines go round, and come to where they began."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import guided as script

    line = f"--model '{with_guides / 'checkpoint'}' --thing disc --pictures '{own}' --frames 4 --steps 2"
    line += f" --size {SIZE}" if what == "outline" else ""
    out = tmp_path / ("out.webp" if what == "outline" else "out.apng")
    assert script.main([what, *shlex.split(line), "--scale", "1", "--out", str(out)]) == 0
    frames = Clip.open(out).frames
    assert frames.shape == (4, SIZE if what == "outline" else 2 * SIZE + script.GAP, SIZE, 3)
    if what == "outline":
        assert set(np.unique(frames)) == {0, 255}
        places = np.stack([np.argwhere(frame[..., 0]).mean(0) for frame in frames])
        middle = places.mean(0)
        assert np.abs(middle - SIZE / 2).max() < 1
        assert np.linalg.norm(places - middle, axis=1) == pytest.approx([0.15 * SIZE] * 4, rel=0.1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("outline --frames 0", "--frames is 0: expected"),
        ("path --scale -1", "--scale is -1: expected"),
        ("outline --size 100000", "--size is 100000: expected"),
        ("path --instruction x", "--instruction is of edit, not of path"),
        ("edit --size 64", "--size is of outline, not of edit"),
    ],
)
def test_options_that_the_pictures_can_t_have(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import guided as script

    with pytest.raises(SystemExit) as ended:
        script.main([*line.split(), "--out", str(tmp_path / "out.webp")])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_scenes_that_are_noised_come_back(monkeypatch):
    """The more of the steps are noise, the less they are like themselves."""
    names, model = pictures.things(), ZS2.from_pretrained(CHECKPOINT, attn="sa", noise="iid", device="cpu")
    loaded = torch.tensor([0.8, 0.2, 0.1, 1.0]).reshape(4, 1, 1).expand(3, 4, 256, 256)  # red squares
    back = {}
    for strength in (0.5, 0.1):
        monkeypatch.setattr(measure, "HALF", {"strength": strength, "guidance": 1.0})
        back[strength] = measure.resampled(model, names[:3], loaded, 128, 0, count=3)
    assert back[0.5]["psnr after"] + 1 < back[0.1]["psnr after"]
    assert back[0.5]["ssim after"] < back[0.1]["ssim after"] < 1


@pytest.mark.long
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_the_checkpoint_that_is_shipped_draws_what_it_is_asked_for(every):
    """One of the 12 prompts that `measure` has for each thing, or each sixth; every third of these things on a colour
    that it never had."""
    classifier, names = judge.Judge.load(judge.FILE), OwnSettings.of(CHECKPOINT).things[::every]
    never = scenes.held_out(torch.tensor([classifier.things.index(name) for name in names]))[0].tolist()
    colours = [never[i] if i % 3 == 0 else i % len(scenes.COLOURS) for i in range(len(names))]
    prompts = [scenes.caption(names, i, colour, 0) for i, colour in enumerate(colours)]
    shown = measure.drawn(
        ZS2.from_pretrained(CHECKPOINT, attn="sa", device="cpu"), prompts, "pictures", 0, classifier.size
    )
    thing, colour = measure.seen(classifier, shown)
    named = [classifier.things[i] for i in thing.tolist()]
    assert sum(asked == got for asked, got in zip(names, named, strict=True)) >= 0.9 * len(names)
    assert (colour == torch.tensor(colours)).float().mean() >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("command", recipe.GUIDED)
def test_the_quick_guides_of_the_default_checkpoint(command, tmp_path):
    """`--quick`, then its figures. They say little after so few steps; those of rendered scenes say that they can."""
    line = [sys.executable, "-m", "weights.recipe"]
    shutil.copytree(CHECKPOINT, tmp_path / "base")
    words = [command, str(tmp_path / "base"), "--quick", "--work", str(tmp_path / "work")]
    subprocess.run([*line, *words], cwd=ROOT, check=True, timeout=1200)
    out = tmp_path / f"base-{command}"
    shutil.move(tmp_path / "work" / out.name, out)
    log = [json.loads(row) for row in (tmp_path / "work" / f"{command}.log.jsonl").open()]
    assert [row["step"] for row in log] == [20, 40, 60]
    words = ["measure", str(out), "--things", "4", "--out", str(tmp_path / "figures.json")]
    subprocess.run([*line, *words], cwd=ROOT, check=True, timeout=1200)
    found = json.loads((tmp_path / "figures.json").read_text())[str(out)]
    print(found)
    if command == "edges":
        assert found["IoU, rendered scenes"][0] > 0.9
    else:
        assert found["look done, rendered"][0] == 1
        assert found["look done, not edited"][0] == 0


@pytest.mark.slow
def test_the_quick_recipe_with_the_real_pictures(tmp_path):
    """All of `make weights QUICK=1`, then its figures."""

    def command(*words: str) -> str:
        said = subprocess.run(
            [sys.executable, "-m", "weights.recipe", *words], cwd=ROOT, capture_output=True, text=True, timeout=1200
        )
        assert said.returncode == 0, said.stderr
        return said.stdout

    command("train", "--quick", "--work", str(tmp_path))
    assert (tmp_path / "curves.png").exists() == (find_spec("matplotlib") is not None)
    assert "right of held-out scenes" in command("judge", "--quick", "--work", str(tmp_path))
    figures = tmp_path / "figures.json"
    line = ["--judge", str(tmp_path / "judge.safetensors"), "--things", "8", "--out", str(figures)]
    command("measure", str(tmp_path / "checkpoint"), *line)
    found = json.loads(figures.read_text())[str(tmp_path / "checkpoint")]
    print(found)
    assert judge.Judge.load(tmp_path / "judge.safetensors").things == pictures.things(8)
    assert found["prompts"] == 8 * 12
    assert found["psnr"] > 15  # the UNet's share says little after three minutes: it is printed
