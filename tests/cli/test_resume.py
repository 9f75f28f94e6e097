"""`--resumable` and `--resume`: a stream that ended early goes on, and its clip is that of the undisturbed stream."""

from __future__ import annotations

import json
import os
import signal
import struct
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import BRIEF, Command, failed, files, here, posix, succeeded, text, zs2
from test_stream_command import before_step, raises

from zs2 import ZS2, Request
from zs2.cli.replay import ADDED
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, PARAMETERS
from zs2.sampling.kept_states import TravellingStates
from zs2.sampling.plan import plan_sampling
from zs2.sampling.resume import ResumeFile
from zs2.sampling.solver import SOLVERS
from zs2.version import REVISION
from zs2.video.clip import read_settings
from zs2.video.metadata import with_png_text

__all__ = ["before_step", "here", "zs2"]  # fixtures
OPTIONS = "--frames 7 --chunk 2 --steps 2 --lam 0.5 --guidance 5 --stream"
STREAM = ("red apple", *BRIEF, *OPTIONS.split())


@pytest.fixture
def run(zs2: Command, narrow: Path) -> Command:
    """The command with a checkpoint of few channels."""
    return lambda *arguments: zs2(*arguments, "--model", str(narrow))


@pytest.fixture(scope="module")
def model(narrow: Path) -> ZS2:
    return ZS2.from_pretrained(narrow, device="cpu")


# --- the command ------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["c.mp4", "c"])
def test_a_stream_goes_on_and_is_the_undisturbed_one(run, here, before_step, name):
    """It is ended in its third chunk: four frames are a clip, and stay resumable."""
    if name == "c.mp4":
        pytest.importorskip("av")
    succeeded(run(*STREAM, "--out", f"whole/{name}"))
    line = (*STREAM, "--out", name, "--resumable")
    before_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = run(*line)
    assert ended.status == 143, ended.err
    assert text(here / f"{name}.json")["frames"] == 4
    assert (here / f"{name}.part" / "resume.safetensors").is_file()
    failed(run(*line), f"{name}.part has the first 4 frames of a clip: go on with --resume", "--overwrite")
    result = succeeded(run(*line, "--resume"))
    assert "zs2: going on from frame 4 of 7\n" in result.err
    assert files(here / "whole") == {k: v for k, v in files(here).items() if not k.startswith("whole/")}
    finished = succeeded(run(*line, "--resume"))
    assert (finished.out, finished.err.splitlines()[-1]) == ("", f"zs2: {name} is finished: 7 frames")


def test_a_stream_goes_on_after_an_error_twice(run, here, before_step):
    """And one that ended before its first chunk begins."""
    succeeded(run(*STREAM, "--out", "whole/c"))
    line = (*STREAM, "--out", "c", "--resume")
    for step, kept in ((1, 0), (4, 2), (5, 6)):
        before_step(step, raises(MemoryError()))
        assert run(*line).status == 1
        assert len([*here.glob("c/*.png")]) == kept
    succeeded(run(*line))
    assert files(here / "whole") == {k: v for k, v in files(here).items() if not k.startswith("whole/")}


def test_other_settings_do_not_go_on(run, here, before_step):
    line = (*STREAM, "--out", "c", "--resumable")
    before_step(6, raises(MemoryError()))
    assert run(*line).status == 1
    before = files(here)
    failed(run(*line, "--resume", "--seed", "1"), "c.part/resume.safetensors", "the stream began with seed 0, now 1")
    failed(run(*line, "--resume", "--steps", "3", "--lam", "0.1"), "steps 2, now 3; lam 0.5, now 0.1")
    (here / "c.part" / "c" / "0002.png").unlink()
    failed(run(*line, "--resume"), "c.part lacks frame 2 of 4: begin anew with --overwrite")
    (here / "c.part" / "c" / "0002.png").write_bytes(before["c.part/c/0002.png"])
    whole = (here / "c.part" / "resume.safetensors").read_bytes()
    for content in (whole[:-1], b"", b"{}" * 50):
        (here / "c.part" / "resume.safetensors").write_bytes(content)
        failed(run(*line, "--resume"), "c.part/resume.safetensors: can't be read", "begin anew")
    (here / "c.part" / "resume.safetensors").write_bytes(whole)
    assert files(here) == before
    succeeded(run(*line, "--resume"))


def without(file: Path, *names: str) -> None:
    """Make the states of a stream, or the first frame of a clip, such as they were before these settings were added."""
    if file.suffix == ".png":
        settings = read_settings(file)
    else:
        with safe_open(file, "pt") as states:
            settings = json.loads(states.metadata()["settings"])
    content = json.dumps({name: value for name, value in settings.items() if name not in names})
    if file.suffix == ".png":
        file.write_bytes(with_png_text(file.read_bytes(), content))
    else:
        save_file(load_file(file), file, {"frames": "4", "settings": content})


@pytest.mark.long
def test_a_stream_from_before_a_setting_goes_on_but_not_one_of_another_revision(run, here, before_step):
    line = (*STREAM, "--out", "c", "--resumable", "--no-sheet")
    succeeded(run(*line, "--out", "whole/c"))
    before_step(6, raises(MemoryError()))
    assert run(*line).status == 1
    later = [name for name in ADDED if name not in ("revision", "spacing", "zero_snr", "final_alpha")]
    for file in ("c.part/resume.safetensors", "c/0000.png"):
        without(here / file, *later)
    whole = (here / "c.part" / "resume.safetensors").read_bytes()
    failed(run(*line, "--resume", "--deep-cache", "2"), "the stream began with deep_cache 1, now 2: give the same")
    without(here / "c.part" / "resume.safetensors", "revision")
    words = f"began with no revision (before 1) of what zs2 computes, now it is revision {REVISION}: begin anew"
    failed(run(*line, "--resume"), words)
    (here / "c.part" / "resume.safetensors").write_bytes(whole)
    succeeded(run(*line, "--resume"))
    assert files(here / "whole") == {k: v for k, v in files(here).items() if not k.startswith("whole/")}

    without(here / "c" / "0000.png", *later, "revision")
    finished = succeeded(run(*line, "--resume"))
    assert finished.err.splitlines()[-1] == "zs2: c is finished: 7 frames"
    (warning,) = finished.warnings
    assert warning.startswith("c was made by no revision")
    failed(run(*line, "--resume", "--deep-cache", "2"), "c is another clip, with deep_cache 1, now 2", "revision null")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--resumable", ["--resumable is for streams: add --stream"]),
        ("--resume --out c", ["--resume is for streams: add --stream"]),
        ("--stream --resume", ["--resume needs the --out of the stream"]),
    ],
)
def test_what_can_not_be_resumed(run, here, line, words):
    failed(run("red apple", *BRIEF, *line.split()), *words)
    assert files(here) == {}


def test_another_clip_is_not_replaced(run, here):
    succeeded(run(*STREAM, "--out", "c", "--frames", "2", "--seed", "3"))
    before = files(here)
    failed(
        run(*STREAM, "--out", "c", "--resume"),
        "c is another clip, with seed 3, now 0, not the beginning of this one: choose another",
    )
    assert files(here) == before


def test_nothing_to_resume_is_said(run, here):
    result = succeeded(run(*STREAM, "--out", "c", "--resume", "--no-sheet"))
    assert "zs2: nothing to resume at c.part: the clip begins\n" in result.err
    assert len([*here.glob("*")]) == 2


def test_the_size_of_the_file_stands_in_the_plan(run, here, model, tmp_path):
    row = succeeded(run(*STREAM, "--out", "c", "--resumable", "--dry-run")).out.splitlines()[-2]
    assert row.split()[0] == "resume"
    assert row.endswith("on the disk, twice while it is replaced")
    request = {"height": 32, "width": 32, "steps": 3, "chunk": 1}
    list(islice(model.stream("rose", 2, resume=tmp_path / "states", **request), 2))
    plan = plan_sampling(model.image_model, model.method, Request("rose", frames=2, **request), stream=True)
    content = (tmp_path / "states").read_bytes()
    (head,) = struct.unpack("<Q", content[:8])
    assert len(content) - 8 - head == plan.resume_bytes


# --- the states -------------------------------------------------------------------------------------------------------

KINDS = [
    {"attn": "tma"},
    {"attn": "sa", "sampler": "dpm++"},
    {"attn": "cfa", "noise": "text2video-zero"},
    {"attn": "tma-two-tap", "noise": "dnm-search", "lam": 0.3},
    {"attn": "tma", "deep_cache": 2, "guidance_interval": (0.3, 0.8)},
    {"attn": "tma", "noise": "text2video-zero", "sampler": "dpm++", "prompt": ["rose", "rose", "red apple"]},
    {"attn": "tma", "guidance": 1.0, "state_device": "cpu"},
    {"attn": "first-previous", "noise": "warp", "motion": (3, 1), "zoom": 1.02},
    {"attn": "extended", "anchors": (0, 5), "noise": "freenoise", "window": 4},
    {"attn": "tma", "mu_end": 0.2, "noise": "freq", "lam_high": 1.0},
    {"attn": "cfa", "noise": "loop"},
    {"attn": "tma", "noise": "mixed"},
    {"attn": "tma-two-tap", "noise": "progressive"},
    {"attn": "first-previous", "noise": "iid"},
    {"attn": "extended", "noise": "shared"},
]


def test_the_kinds_are_all_there_are():
    for name, table in (("attn", ATTENTION_KINDS), ("noise", NOISE_MODELS), ("sampler", SOLVERS)):
        default = {"noise": "dnm", "sampler": "ddim"}.get(name)
        assert {kind.get(name, default) for kind in KINDS} == set(table)


@pytest.mark.parametrize(
    "kind", [*KINDS[:8], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[8:])], ids=str
)
@pytest.mark.filterwarnings("ignore:state_device cpu has no effect")
def test_frames_that_follow_are_those_of_the_undisturbed_stream(model, tmp_path, kind):
    """Of every kind of attention, noise and solver: the same pixels, after 4 of 6 frames."""
    options = {"guidance": 3.0, "seed": 2, "steps": 5, "height": 32, "width": 32, "chunk": 2, **kind}
    prompt = options.pop("prompt", "rose")
    variant = model.variant(**{name: options.pop(name) for name in ("attn", "noise", *PARAMETERS) if name in options})
    whole = np.stack([*variant.stream(prompt, 6, **options)])
    file = tmp_path / "states.safetensors"
    first = np.stack([*islice(variant.stream(prompt, 6, resume=file, **options), 5)])
    assert ResumeFile(file).finished() == 4
    rest = np.stack([*variant.stream(prompt, 6, resume=file, **options)])
    assert np.array_equal(first, whole[:5])
    assert np.array_equal(rest, whole[4:])


def test_states_on_another_device_are_kept(tmp_path):
    """They are read where they are, as here by way of the CPU itself."""
    cpu = torch.device("cpu")
    states = [[torch.randn(2, 3), None, torch.randn(2, 5, 1)], [torch.randn(2, 4), None, None]]
    kept, again = (TravellingStates(2, cpu, cpu) for _ in range(2))
    for step, one in enumerate(states):
        kept.keep(step, one)
    ResumeFile(tmp_path / "f", {}).keep(kept, 2, 8)
    assert ResumeFile(tmp_path / "f", {}).restore(again, 2, cpu) == 8
    for step, one in enumerate(states):
        for want, got in zip(one, again.take(step), strict=True):
            assert (want is None and got is None) or torch.equal(want, got)


def test_states_of_any_type_are_kept_exactly(tmp_path):
    """Written tensor by tensor; safetensors reads them."""
    from zs2.sampling.resume import write_tensors

    tensors = {
        "0.0": torch.randn(2, 3, 5),
        "0.1": torch.randn(4).bfloat16(),
        "1.0": torch.randn(1, 7).half().T,
        "1.1": torch.randn(3, dtype=torch.float64),
        "2.0": torch.empty(0, 2),
    }
    write_tensors(tmp_path / "f", tensors, {"λ": "\n\x00"})
    read = load_file(tmp_path / "f")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_is_no_stream_s_is_refused(model, tmp_path):
    file = tmp_path / "f"
    for metadata in ({}, {"frames": "x", "settings": "{}"}, {"frames": "1", "settings": "["}, {"frames": "-1"}):
        save_file({"a": torch.zeros(1)}, file, metadata)
        with pytest.raises(InputError, match="not the states of a stream"):
            next(model.stream("rose", 2, resume=file, steps=1))
    settings = model.settings(
        plan_sampling(model.image_model, model.method, Request("rose", frames=2, steps=1), stream=True), 8
    )
    for name in ("a", "9.0", "0.x", "0." + "9" * 5000):
        save_file({name: torch.zeros(1)}, file, {"frames": "1", "settings": json.dumps(settings)})
        with pytest.raises(InputError, match="unexpected tensor"):
            next(model.stream("rose", 2, resume=file, steps=1, guidance=7.5))
