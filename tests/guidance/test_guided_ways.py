"""Every guided clip is the same in chunks, in a stream, resumed, by two processes, and replayed."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny
from helpers import Fixture, assert_close, in_float64, write_guided
from safetensors.torch import load_file, save_file

from zs2 import ZS2, Clip, Request
from zs2.sample import main
from zs2.sampling.frame_parallel import Group
from zs2.sampling.sampler import Sampler
from zs2.video.reading import InputClip

SAME = 1e-5
FRAMES = 5
HEIGHT, WIDTH = tiny.PICTURE["height"], tiny.PICTURE["width"]
OPTIONS: dict[str, Any] = {"frames": FRAMES, "steps": 4, "guidance": 3.0, "seed": 5, "height": HEIGHT, "width": WIDTH}
PICTURE = Fixture("guided")["source"].numpy()
SOURCE = np.stack([np.roll(PICTURE, 4 * i, axis=1) for i in range(FRAMES)])
PLAIN, EDITS, CONTROL = "source", "edit", "control"  # a model, an editing one, and one with two ControlNets
TWO = {"control": [SOURCE, PICTURE], "control_scale": [20.0, 10.0]}
# Options by name, and the model.
GUIDED: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, PLAIN),
    "first frame, matched": ({"first_frame": PICTURE}, PLAIN),
    "first frame, drawn": ({"first_frame": PICTURE, "first_frame_noise": "drawn", "sampler": "dpm++"}, PLAIN),
    "source": ({"source": SOURCE, "strength": 0.6}, PLAIN),
    "source, mean": ({"source": SOURCE, "source_latents": "mean", "sampler": "dpm++"}, PLAIN),
    "source, one picture": ({"source": PICTURE}, PLAIN),
    "edit": ({"source": SOURCE}, EDITS),
    "edit, guided at first": ({"source": SOURCE, "guidance_interval": (0, 0.5), "deep_cache": 2}, EDITS),
    "control": (TWO | {"control_interval": [(0, 0.5), (0.25, 1)], "control_attn": "cfa"}, CONTROL),
    "control and source": (TWO | {"source": SOURCE, "deep_cache": 2, "guidance_interval": (0, 0.5)}, CONTROL),
    "control and first frame": (TWO | {"first_frame": PICTURE, "first_frame_noise": "inverted"}, CONTROL),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models, and the ControlNets."""
    place, control = tmp_path_factory.mktemp("models"), Fixture("controlnet")
    networks = {kind: tiny.write_control(place / kind, kind, control.weights(kind)) for kind in ("sd", "sd 1")}
    return networks | {way: write_guided(place / way, way, "sd") for way in (PLAIN, EDITS)}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Any:
    @cache
    def model(kind: str) -> ZS2:
        networks = [folders["sd"], folders["sd 1"]] if kind == CONTROL else []
        folder = folders[PLAIN if kind == CONTROL else kind]
        return in_float64(ZS2.from_pretrained(folder, device="cpu", mu=0.7, lam=0.4, controlnet=networks))

    return model


def latents(model: ZS2, options: dict[str, Any], **more: Any) -> torch.Tensor:
    return model.latents(tiny.PICTURE["prompt"], **OPTIONS | options, **more)


@pytest.fixture(scope="module")
def whole(load: Any) -> Any:
    """The latents of each clip, in one chunk."""
    return cache(lambda name: latents(load(GUIDED[name][1]), GUIDED[name][0]))


def test_the_guided_clips_differ(whole: Any) -> None:
    for one, other in itertools.combinations(GUIDED, 2):
        assert (whole(one) - whole(other)).abs().max() > 0.01, (one, other)


@pytest.mark.parametrize("name", GUIDED)
def test_chunks(load: Any, whole: Any, name: str) -> None:
    options, kind = GUIDED[name]
    assert_close(latents(load(kind), options, chunk=3), whole(name), SAME)


@pytest.mark.parametrize("name", GUIDED)
def test_a_stream_and_a_resumed_one(load: Any, whole: Any, name: str, tmp_path: Path) -> None:
    options, kind = GUIDED[name]
    model, asked = load(kind), OPTIONS | options | {"chunk": 2}
    plan = model.plan(model._request("model.stream()", tiny.PICTURE["prompt"], **asked), stream=True)
    assert_close(torch.cat(list(Sampler(plan).chunks())), whole(name), SAME)
    frames = model.decode(whole(name)).astype(int)
    file = tmp_path / "states"
    begun = list(itertools.islice(model.stream(tiny.PICTURE["prompt"], resume=file, **asked), 3))  # asks for chunk 2
    rest = list(model.stream(tiny.PICTURE["prompt"], resume=file, **asked))
    assert len(rest) == FRAMES - 2
    assert np.abs(np.stack([*begun[:2], *rest]) - frames).max() <= 1


@pytest.mark.filterwarnings("ignore:the seed has no effect where latents are given")
@pytest.mark.parametrize("name", ["edit", "control"])
def test_given_latents_and_text2video_zeros_noise(load: Any, whole: Any, name: str) -> None:
    """An edit and a control go with both: given noise takes the place of the seed's, and chunks are exact."""
    options, kind = GUIDED[name]
    model = load(kind)
    noise = model.plan(Request(tiny.PICTURE["prompt"], **OPTIONS | options)).initial_noise()
    size = {"height": None, "width": None}
    assert_close(latents(model, options | size, latents=noise), whole(name), SAME)
    assert (latents(model, options | size, latents=noise.flip(0)) - whole(name)).abs().max() > 0.01
    zero = model.variant(noise="text2video-zero")
    made = latents(zero, options)
    assert_close(latents(zero, options, chunk=3), made, SAME)
    assert (made - whole(name)).abs().max() > 0.01


def by_two(rank: int, folder: Path, load: Any) -> None:
    """One of two processes: the latents of every clip."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), 2), rank=rank, world_size=2
    )
    group = Group(rank, 2, 2)
    made = {name: latents(load(kind), options, chunk=2, group=group) for name, (options, kind) in GUIDED.items()}
    save_file(made, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes(load: Any, whole: Any, tmp_path: Path) -> None:
    for kind in (PLAIN, EDITS, CONTROL):
        load(kind)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=by_two, args=(rank, tmp_path, load)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for rank in range(2):
        made = load_file(tmp_path / f"{rank}.safetensors")
        for name in GUIDED:
            assert_close(made[name], whole(name), SAME)


FLAGS = {  # of the command line: those that name an input, and others
    "first frame": (["--first-frame", "picture.png"], [], PLAIN),
    "source": (["--source", "source.webp@1:"], ["--strength", "0.6"], PLAIN),
    "edit": (["--source", "source.webp"], ["--image-guidance", "1.2"], EDITS),
    "control": (["--control", "sd", "source.webp"], ["--control-scale", "20", "--control-interval", "0,0.5"], PLAIN),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_replay_needs_the_same_input(
    folders: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(PICTURE[None]).save("picture.png")
    Clip(SOURCE, 8, {"fps": 8}).save("source.webp")
    Clip(SOURCE[::-1], 8, {"fps": 8}).save("other.webp")
    for network in ("sd", "sd 1"):
        Path(network).symlink_to(folders[network])
    inputs, others, kind = FLAGS[name]
    model = ["--model", str(folders[kind]), "--device", "cpu", "--no-sheet"]
    brief = ["a cat", "--steps", "4", "--frames", "3", "--size", f"{WIDTH}x{HEIGHT}", "--guidance", "3"]
    assert main([*brief, *model, *inputs, *others, "--out", "a.webp"]) == 0
    assert main(["--replay", "a.webp", *model, *inputs, "--out", "b.webp"]) == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()
    capsys.readouterr()
    assert main(["--replay", "a.webp", *model, "--out", "c.webp"]) == 2
    assert f"this clip was made from an input: give the same {inputs[0]}" in capsys.readouterr().err
    assert main(["--replay", "a.webp", *model, *inputs[:-1], "other.webp", "--out", "c.webp"]) == 2
    assert "not with the input of SHA-256" in capsys.readouterr().err
    if name == "control":
        assert main(["--replay", "a.webp", *model, "--control", "sd 1", "source.webp", "--out", "c.webp"]) == 2
        assert "made with other ControlNets, or in another order: give the same --control" in capsys.readouterr().err


class Watched(InputClip):
    """Notes which frames are read."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.seen: list[tuple[int, int]] = []

    def frames(self, first: int, count: int, size: tuple[int, int] | None = None) -> Any:
        self.seen.append((first, count))
        return super().frames(first, count, size)


@pytest.mark.parametrize(("kind", "option"), [(PLAIN, "source"), (EDITS, "source"), (CONTROL, "control")])
def test_a_stream_reads_its_source_as_it_is_needed(load: Any, kind: str, option: str) -> None:
    """So a source may be longer than memory. And one without a number of frames is as long as its source."""
    source = Watched(np.concatenate([SOURCE] * 2))
    inputs = {option: [source, PICTURE] if option == "control" else source}
    stream: Iterator[Any] = load(kind).stream("a cat", **OPTIONS | {"frames": None, "chunk": 2} | inputs)
    next(stream)
    assert {first for first, _ in source.seen} <= {0, 1}
    assert len(list(stream)) == 2 * FRAMES - 1
    read = [frame for first, count in source.seen for frame in range(first, first + count)]
    assert read == [*range(2 * FRAMES)]


@pytest.mark.filterwarnings("ignore:.*is resized to")
def test_the_memory_plan_counts_inputs(load: Any) -> None:
    """The third branch, the latents that are edited, those of a first frame at each step, and encoding in one piece."""

    def plan(name: str, **more: Any) -> Any:
        options, kind = GUIDED[name]
        return load(kind).plan(Request("a cat", **OPTIONS | options | more)).memory

    plain, one = plan("plain"), 4 * HEIGHT * WIDTH  # bytes of the latents of a frame, reduced by 2: 4·(H/2)·(W/2)·4
    assert plan("edit").states == 3 / 2 * plain.states
    assert plan("edit").latents == plain.latents + FRAMES * one
    assert plan("first frame, matched").latents == plain.latents + (OPTIONS["steps"] + 1) * one
    assert plan("source") == plain
    large = {"height": 2048, "width": 2048, "frames": 1}
    assert plan("source", **large).decoding > 4 * plan("plain", **large).decoding
