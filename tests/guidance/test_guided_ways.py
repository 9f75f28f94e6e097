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
# Options by name, and whether it is the editing model.
GUIDED: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, False),
    "first frame, inverted": ({"first_frame": PICTURE}, False),
    "first frame, drawn": ({"first_frame": PICTURE, "first_frame_noise": "drawn", "sampler": "dpm++"}, False),
    "source": ({"source": SOURCE, "strength": 0.6}, False),
    "source, mean": ({"source": SOURCE, "source_latents": "mean", "sampler": "dpm++"}, False),
    "source, one picture": ({"source": PICTURE}, False),
    "edit": ({"source": SOURCE}, True),
    "edit, guided at first": ({"source": SOURCE, "guidance_interval": (0, 0.5), "deep_cache": 2}, True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The model, and the editing model."""
    place = tmp_path_factory.mktemp("models")
    return {edits: write_guided(place / way, way, "sd") for edits, way in ((False, "source"), (True, "edit"))}


@pytest.fixture(scope="module")
def load(folders: dict[bool, Path]) -> Any:
    return cache(lambda edits: in_float64(ZS2.from_pretrained(folders[edits], device="cpu", mu=0.7, lam=0.4)))


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
    options, edits = GUIDED[name]
    assert_close(latents(load(edits), options, chunk=3), whole(name), SAME)


@pytest.mark.parametrize("name", GUIDED)
def test_a_stream_and_a_resumed_one(load: Any, whole: Any, name: str, tmp_path: Path) -> None:
    options, edits = GUIDED[name]
    model, asked = load(edits), OPTIONS | options | {"chunk": 2}
    plan = model.plan(model._request("model.stream()", tiny.PICTURE["prompt"], **asked), stream=True)
    assert_close(torch.cat(list(Sampler(plan).chunks())), whole(name), SAME)
    frames = model.decode(whole(name)).astype(int)
    file = tmp_path / "states"
    begun = list(itertools.islice(model.stream(tiny.PICTURE["prompt"], resume=file, **asked), 3))  # asks for chunk 2
    rest = list(model.stream(tiny.PICTURE["prompt"], resume=file, **asked))
    assert len(rest) == FRAMES - 2
    assert np.abs(np.stack([*begun[:2], *rest]) - frames).max() <= 1


def by_two(rank: int, folder: Path, load: Any) -> None:
    """One of two processes: the latents of every clip."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), 2), rank=rank, world_size=2
    )
    group = Group(rank, 2, 2)
    made = {name: latents(load(edits), options, chunk=2, group=group) for name, (options, edits) in GUIDED.items()}
    save_file(made, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes(load: Any, whole: Any, tmp_path: Path) -> None:
    for edits in (False, True):
        load(edits)
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


FLAGS = {  # of the command line
    "first frame": (["--first-frame", "picture.png"], False),
    "source": (["--source", "source.webp@1:", "--strength", "0.6"], False),
    "edit": (["--source", "source.webp", "--image-guidance", "1.2"], True),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_replay_needs_the_same_input(
    folders: dict[bool, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(PICTURE[None]).save("picture.png")
    Clip(SOURCE, 8, {"fps": 8}).save("source.webp")
    Clip(SOURCE[::-1], 8, {"fps": 8}).save("other.webp")
    flags, edits = FLAGS[name]
    model = ["--model", str(folders[edits]), "--device", "cpu", "--no-sheet"]
    given = [flags[0], flags[1]]
    brief = ["a cat", "--steps", "4", "--frames", "3", "--size", f"{WIDTH}x{HEIGHT}", "--guidance", "3"]
    assert main([*brief, *model, *flags, "--out", "a.webp"]) == 0
    assert main(["--replay", "a.webp", *model, *given, "--out", "b.webp"]) == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()
    capsys.readouterr()
    assert main(["--replay", "a.webp", *model, "--out", "c.webp"]) == 2
    assert f"this clip was made from an input: give the same {flags[0]}" in capsys.readouterr().err
    assert main(["--replay", "a.webp", *model, flags[0], "other.webp", "--out", "c.webp"]) == 2
    assert "not with the input of SHA-256" in capsys.readouterr().err


class Watched(InputClip):
    """Notes which frames are read."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.seen: list[tuple[int, int]] = []

    def frames(self, first: int, count: int, size: tuple[int, int] | None = None) -> Any:
        self.seen.append((first, count))
        return super().frames(first, count, size)


@pytest.mark.parametrize("edits", [False, True])
def test_a_stream_reads_its_source_as_it_is_needed(load: Any, edits: bool) -> None:
    """So a source may be longer than memory. And one without a number of frames is as long as its source."""
    source = Watched(np.concatenate([SOURCE] * 2))
    asked = OPTIONS | {"frames": None, "chunk": 2, "source": source}
    stream: Iterator[Any] = load(edits).stream("a cat", **asked)
    next(stream)
    assert source.seen == [(0, 2)]
    assert len(list(stream)) == 2 * FRAMES - 1
    assert source.seen == [(first, 2) for first in range(0, 2 * FRAMES, 2)]


@pytest.mark.filterwarnings("ignore:.*is resized to")
def test_the_memory_plan_counts_inputs(load: Any) -> None:
    """The third branch, the latents that are edited, those of a first frame at each step, and encoding in one piece."""

    def plan(name: str, **more: Any) -> Any:
        options, edits = GUIDED[name]
        return load(edits).plan(Request("a cat", **OPTIONS | options | more)).memory

    plain, one = plan("plain"), 4 * HEIGHT * WIDTH  # bytes of the latents of a frame, reduced by 2: 4·(H/2)·(W/2)·4
    assert plan("edit").states == 3 / 2 * plain.states
    assert plan("edit").latents == plain.latents + FRAMES * one
    assert plan("first frame, inverted").latents == plain.latents + (OPTIONS["steps"] + 1) * one
    assert plan("source") == plain
    large = {"height": 2048, "width": 2048, "frames": 1}
    assert plan("source", **large).decoding > 4 * plan("plain", **large).decoding
