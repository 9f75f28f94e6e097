"""Noise along a flow: equal to the movements that have a name, white under any flow, exact; and files of strangers."""

import ast
import itertools
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_white
from safetensors.torch import save_file
from test_snippets import BLOCK

from zs2 import ZS2
from zs2.cli.replay import replay
from zs2.errors import InputError
from zs2.method import Method
from zs2.noise.flow import Flow, checked
from zs2.noise.models import noises
from zs2.sample import main as sample
from zs2.sampling.request import Request

SHAPE = (4, 32, 32)


def draw(frames, shape=SHAPE, **settings):
    return torch.stack(list(itertools.islice(noises("warp", shape, 5, frames=frames, **settings), frames)))


def constant(x, y, side=256):
    """One movement of all pixels, of a square picture."""
    return np.stack([np.full((side, side), x, np.float32), np.full((side, side), y, np.float32)])


def places(side):
    """x and y of the middles of the pixels, from the middle of the picture."""
    p = np.arange(side) - (side - 1) / 2
    return np.meshgrid(p, p, indexing="xy")


def turned(side, degrees, zoom=1.0):
    """The flow of a rotation, clockwise, and a zoom."""
    x, y = places(side)
    c, s = zoom * math.cos(math.radians(degrees)), zoom * math.sin(math.radians(degrees))
    return np.stack([c * x - s * y - x, s * x + c * y - y]).astype(np.float32)


@pytest.mark.parametrize("side", [32, *(pytest.param(side, marks=pytest.mark.long) for side in (1, 100, 256, 512))])
@pytest.mark.parametrize("motion", [(5, -3), (16, -32), (1.25, 0.5), (0, 0), (900, 3)])
def test_a_constant_flow_is_that_motion_bit_for_bit(motion, side):
    """Motion is in pixels of 512, left and up; a flow in its own pixels, right and down. The size of either is free."""
    flow = constant(-motion[0] * side / 512, -motion[1] * side / 512, side)
    assert torch.equal(draw(5, flow=flow), draw(5, motion=motion))


@pytest.mark.parametrize("side", [32, pytest.param(256, marks=pytest.mark.long)])
@pytest.mark.parametrize(("degrees", "zoom"), [(90, 1.0), (180, 1.0), (0, 2.0), (0, 0.5), (-2, 1.03)])
def test_the_flow_of_a_rotation_or_a_zoom_is_that(degrees, zoom, side):
    """Where no particle lies on the border of two cells, bit for bit."""
    flow = turned(side, degrees, zoom)
    assert torch.equal(draw(4, flow=flow), draw(4, motion=(0, 0), rotate=degrees, zoom=zoom))


def test_the_flow_in_the_documents_is_the_turn_that_it_says():
    """It neither zooms nor moves: each pixel stays as far from the middle, and the noise is that of rotate=6."""
    page = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
    (block,) = (code for code in BLOCK.findall(page) if "flow = " in code)
    made, names = ast.parse(block), {}
    made.body = [
        line for line in made.body if not isinstance(line, ast.Expr | ast.ImportFrom) and "ZS2" not in ast.unparse(line)
    ]
    exec(compile(made, "method.md", "exec"), names)
    flow, (x, y) = names["flow"], places(128)
    np.testing.assert_allclose(np.hypot(x + flow[0], y + flow[1]), np.hypot(x, y), atol=1e-5)
    same = (draw(4, flow=flow) == draw(4, motion=(0, 0), rotate=6)).double().mean()
    assert same > 0.99


def test_every_row_goes_its_own_way():
    """No movement that has a name: each row of latents goes right or left by whole latents of its own."""
    shifts = [round(3 * math.sin(row)) for row in range(32)]
    flow = np.zeros((2, 256, 256), np.float32)
    flow[0] = 8 * np.repeat(shifts, 8)[:, None]
    for before, frame in itertools.pairwise(draw(3, flow=flow)):
        for row, shift in enumerate(shifts):
            left, right = max(shift, 0), 32 + min(shift, 0)
            torch.testing.assert_close(
                frame[:, row, left:right], before[:, row, left - shift : right - shift], atol=1e-5, rtol=0
            )


def test_a_flow_a_step():
    """Each step has its own, whole latents here. A clip may be shorter, and the noise ends with the flow."""
    flow = np.stack([constant(x, y) for x, y in ((8, 0), (0, -16), (-8, 8))])
    frames = draw(4, flow=flow)
    for (x, y), before, frame in zip(((1, 0), (0, -2), (-1, 1)), frames, frames[1:], strict=False):
        moved = before.roll((y, x), (1, 2))
        torch.testing.assert_close(frame[:, 2:-2, 2:-2], moved[:, 2:-2, 2:-2], atol=1e-5, rtol=0)
    assert torch.equal(draw(3, flow=flow), frames[:3])
    assert len(list(noises("warp", SHAPE, 5, frames=4, flow=flow))) == 4


def wild(kind):
    x, y = places(256)
    random = np.random.default_rng(3)
    return {
        "a wave": np.stack([9 * np.sin(y / 20), 7 * np.cos(x / 15)]),
        "to the middle": np.stack([-x, -y]),
        "torn apart": np.stack([12 * np.sign(x), 0 * y]),
        "onto itself": np.stack([-20 * np.sign(x), 0 * y]),
        "any way": random.normal(0, 30, (2, 256, 256)),
        "far": random.normal(0, 1e5, (2, 32, 32)),
        "mirrored": np.stack([-2 * x, 0 * y]),
        "out of one point": np.stack([3 * x, 3 * y]),
    }[kind].astype(np.float32)


KINDS = ["a wave", "to the middle", "torn apart", "onto itself", "any way", "far", "mirrored", "out of one point"]


@pytest.mark.parametrize("kind", [*KINDS[:3], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[3:])])
def test_noise_along_any_flow_is_white_in_every_frame(kind):
    """Folds, tears and gaps, too: mean, variance, fourth moment, and the correlation of neighbours, 5 standard errors.

    Frame 0 is the seed's noise.
    """
    frames = draw(4, flow=wild(kind))
    assert torch.equal(frames[0], draw(1)[0])
    for frame in frames.double():
        assert_white(frame)


def test_a_mirrored_picture_has_mirrored_noise():
    """Its flow has the derivative −2, where a reverse by repetition alone would not be found."""
    before, frame, again = draw(3, flow=wild("mirrored"))
    torch.testing.assert_close(frame, before.flip(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(again, before, atol=1e-5, rtol=0)


# --- what is given ----------------------------------------------------------------------------------------------------


def test_a_path_an_array_and_a_tensor_are_one_flow(tmp_path):
    numbers = torch.randn(3, 2, 8, 8)
    save_file({"flow": numbers, "more": torch.zeros(1)}, tmp_path / "flow.safetensors")
    given = numbers.clone().numpy()
    flows = [
        checked(one) for one in (tmp_path / "flow.safetensors", str(tmp_path / "flow.safetensors"), numbers, given)
    ]
    assert len({one.digest for one in flows}) == 1
    assert all(np.array_equal(one.numbers, numbers.numpy()) for one in flows)
    assert checked(flows[0]) is flows[0]
    given[:] = 0  # what is recorded stays true
    assert np.array_equal(flows[-1].numbers, numbers.numpy())
    others = [numbers[:, :, :4], numbers[0], numbers[:1], numbers.mT.contiguous(), numbers + 1, -numbers]
    assert len({checked(one).digest for one in (numbers, *others)}) == 7


def bad(kind, folder) -> Path:
    """A file that is no flow."""
    path = folder / "flow.safetensors"
    good = torch.zeros(2, 4, 4)
    tensors = {
        "another name": {"flows": good},
        "half precision": {"flow": good.half()},
        "brain floats": {"flow": good.bfloat16()},
        "whole numbers": {"flow": good.int()},
        "one channel": {"flow": good[:1]},
        "three channels": {"flow": torch.zeros(3, 4, 4)},
        "channels last": {"flow": torch.zeros(4, 4, 2)},
        "two dimensions": {"flow": good[0]},
        "five dimensions": {"flow": good[None, None]},
        "no pixels": {"flow": good[:, :0]},
        "no steps": {"flow": good[None][:0]},
        "NaN": {"flow": torch.full((2, 4, 4), math.nan)},
        "infinite": {"flow": torch.tensor([0.0, math.inf]).expand(2, 4, 2).contiguous()},
        "a million pixels": {"flow": good - 1e6},
    }
    if kind in tensors:
        save_file(tensors[kind], path)
    elif kind == "too many":
        shape = [2, 2**15, 2**14]
        size = 4 * math.prod(shape)
        header = json.dumps({"flow": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + size)  # holes
    elif kind == "a long header":
        header = json.dumps({"__metadata__": {"x": "y" * 10**6}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "cut":
        save_file({"flow": good}, path)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind in ("empty", "other bytes"):
        path.write_bytes(b"" if kind == "empty" else b"\x10\0\0\0\0\0\0\0" + b"\xff" * 90)
    return path


BAD = {
    "missing": "can't be read",
    "another name": r"it has \['flows'\]: expected `flow`",
    "half precision": "its dtype is F16: expected `flow`, float32",
    "brain floats": "its dtype is BF16",
    "whole numbers": "its dtype is I32",
    **dict.fromkeys(("one channel", "three channels", "channels last", "two dimensions", "five dimensions"), "is \\("),
    **dict.fromkeys(("no pixels", "no steps"), r"is \(.*0.*\): expected `flow`"),
    **dict.fromkeys(("NaN", "infinite", "a million pixels"), "NaN, infinite, or of 1e\\+06 pixels"),
    "too many": "has 1073741824 numbers: expected at most 268435456",
    "a long header": "not a safetensors file of a flow",
    "a FIFO": "a FIFO: expected a file",
    "a folder": "a folder: expected a file",
    "a pointer": "git lfs pull",
    **dict.fromkeys(("cut", "empty", "other bytes"), "not a whole safetensors file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_flow_is_refused(kind, tmp_path):
    """In one line that begins with the parameter, at once."""
    if kind == "a FIFO" and not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    begin = time.perf_counter()
    with pytest.raises(InputError, match=BAD[kind]) as error:
        Method(noise="warp", flow=bad(kind, tmp_path))
    assert time.perf_counter() - begin < 1
    message = str(error.value)
    assert message.startswith("flow is ")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((2, 4, 4)), "flow is float64: expected `flow`, float32"),
        (torch.zeros(2, 4, 4).half(), "flow is torch.float16: expected"),
        (np.zeros((4, 4, 2), np.float32), r"flow is \(4, 4, 2\): expected"),
        ([[0.0]], r"flow is \[\[0.0\]\]: expected"),
        (0.5, "flow is 0.5: expected"),
        (torch.full((2, 4, 4), math.nan), "flow: some movements are NaN"),
    ],
    ids=str,
)
def test_a_value_that_is_no_flow_is_refused(value, words):
    with pytest.raises(InputError, match=words):
        Method(noise="warp", flow=value)


@pytest.mark.parametrize(
    ("flow", "frames", "words"),
    [
        (np.zeros((2, 8, 16), np.float32), 4, "flow is of 16x8 pixels: expected a picture of the clip's shape, 32:32"),
        (np.zeros((2, 2, 32, 32), np.float32), 4, "flow has 2 steps for 4 frames: expected one for each frame but the"),
        (np.zeros((2, 2, 32, 32), np.float32), None, "flow has 2 steps for a clip without end"),
    ],
)
def test_a_flow_that_does_not_fit_the_clip_is_refused(flow, frames, words):
    with pytest.raises(InputError, match=words):
        noises("warp", SHAPE, 0, frames=frames, flow=flow)


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(narrow: Path) -> ZS2:
    return ZS2.from_pretrained(narrow, device="cpu", noise="warp", attn="tma")


SMALL = {"steps": 2, "height": 32, "width": 32, "guidance": 1.0, "seed": 4}


def test_a_clip_along_a_flow_is_one_clip_in_chunks_streamed_and_resumed(model, tmp_path):
    """And frame 0 is the model's image."""
    x, y = places(32)
    flow = np.stack([np.stack([i + np.sin(y / 5), -0.1 * x]) for i in range(5)]).astype(np.float32)
    variant = model.variant(flow=flow)
    whole = variant("rose", frames=6, **SMALL).frames
    image = model.variant(noise="iid", attn="sa")("rose", frames=1, **SMALL).frames[0]
    assert abs(whole[0].astype(int) - image).max() <= 1
    for chunk in (1, 4):
        assert abs(variant("rose", frames=6, chunk=chunk, **SMALL).frames.astype(int) - whole).max() <= 1
    file = tmp_path / "states"
    options = {**SMALL, "chunk": 2}
    first = [*itertools.islice(variant.stream("rose", 6, resume=file, **options), 3)]
    rest = [*variant.stream("rose", 6, resume=file, **options)]
    assert abs(np.stack([*first[:2], *rest]).astype(int) - whole).max() <= 1
    with pytest.raises(InputError, match="began with flow"):
        next(variant.variant(flow=flow + 1).stream("rose", 6, resume=file, **options))


def test_settings_have_the_flow_and_no_movement_beside_it(model):
    flow = constant(1, 2, 4)
    with pytest.warns(UserWarning, match="^motion has no effect beside flow$"):
        variant = model.variant(flow=flow, motion=(1, 1))
    settings = variant.settings(variant.plan(Request("rose", frames=3, **SMALL)), 8)
    assert {name: settings[name] for name in ("flow", "motion", "zoom", "rotate")} == {
        "flow": checked(flow).digest,
        **dict.fromkeys(("motion", "zoom", "rotate")),
    }
    assert json.dumps(settings)
    assert model.settings(model.plan(Request("rose", frames=3, **SMALL)), 8)["flow"] is None
    with pytest.warns(UserWarning, match="flow has no effect on noise model 'dnm'"):
        model.variant(noise="dnm", flow=flow)
    with pytest.warns(UserWarning, match="^flow has 9 steps, the last 7 without effect$"):
        model.variant(flow=flow[None].repeat(9, 0)).plan(Request("rose", frames=3, **SMALL))
    assert Method(flow=flow) == Method(flow=torch.from_numpy(flow)) != Method(flow=2 * flow)
    assert isinstance(variant.method.flow, Flow)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("movement", [{"motion": (4, 0)}, {"zoom": 1.1}, {"rotate": 3}])
def test_a_movement_drops_the_flow_that_a_model_had(model, movement):
    """Any other setting keeps it, and so does a movement that comes with a flow of its own."""
    flow = constant(1, 2, 4)
    along = model.variant(flow=flow)
    assert along.variant(**movement).method == model.variant(**movement).method
    assert along.variant(attn="sa").variant(motion=None).method.flow == checked(flow)
    with pytest.warns(UserWarning, match="has no effect beside flow$"):
        assert along.variant(flow=2 * flow, **movement).method.flow == checked(2 * flow)


def command(line, capsys):
    """The exit status and the errors of `zs2 sample`."""
    status = sample(line)
    return status, capsys.readouterr().err


def test_the_command_records_a_flow_and_replays_with_the_same_alone(narrow, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"flow": torch.from_numpy(constant(3, -1, 32))}, "flow.safetensors")
    save_file({"flow": torch.from_numpy(constant(3, -2, 32))}, "other.safetensors")
    model = ("--model", str(narrow))
    line = ["rose", *model, "--noise", "warp", "--frames", "3", "--steps", "2", "--size", "32x32", "--guidance", "1"]
    assert command([*line, "--flow", "flow.safetensors", "--out", "a.webp"], capsys)[0] == 0
    assert json.loads(Path("a.webp.json").read_text())["flow"] == checked("flow.safetensors").digest

    again = ["--replay", "a.webp", *model, "--out"]
    status, err = command([*again, "b.webp", "--flow", "flow.safetensors"], capsys)
    assert (status, "no effect" in err) == (0, False)
    assert Path("b.webp").read_bytes() == Path("a.webp").read_bytes()
    loaded = ZS2.from_pretrained(narrow, device="cpu")
    same = replay(loaded, "b.webp", flow=constant(3, -1, 32))
    assert np.array_equal(replay(loaded, "a.webp", flow="flow.safetensors").frames, same.frames)
    status, err = command([*again, "c.webp"], capsys)
    assert (status, "made with a flow: give the same, --flow FILE of zs2 sample" in err) == (2, True)
    status, err = command([*again, "c.webp", "--flow", "other.safetensors"], capsys)
    assert (status, "was made from another flow: give the same" in err) == (2, True)

    assert command([*line, "--out", "plain.webp"], capsys)[0] == 0
    status, err = command(["--replay", "plain.webp", *model, "--flow", "flow.safetensors", "--out", "c.webp"], capsys)
    assert (status, "was made from no flow: leave it out" in err) == (2, True)
    status, err = command([*line, "--flow", "flow.safetensors", "--motion-target", "0.1", "--out", "c.webp"], capsys)
    assert (status, "motion_target finds motion, which has no effect beside flow: leave --flow out" in err) == (2, True)
    assert not Path("c.webp").exists()


def test_a_replay_in_python_has_no_flow_of_the_model(narrow, tmp_path, monkeypatch):
    """Nor any other setting that the clip was made without."""
    monkeypatch.chdir(tmp_path)
    loaded = ZS2.from_pretrained(narrow, device="cpu", noise="warp", attn="tma")
    clip = loaded("rose", frames=3, **SMALL)
    clip.save("clip.webp")
    other = loaded.variant(flow=constant(5, 5, 4), mu_end=0.1)
    assert np.array_equal(replay(other, "clip.webp").frames, clip.frames)
