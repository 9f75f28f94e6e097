"""One clip by several processes, which torchrun starts here: it is the clip of one, and a failure is one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from helpers import TESTS, assert_close
from safetensors.torch import load_file, save_file

from zs2 import ZS2
from zs2.cli.torchrun import GRACE
from zs2.sample import main
from zs2.system.devices import check_gpus, own_device

ROOT = TESTS.parent
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")

WAYS = {
    f"{attn} {noise}": {"attn": attn, "noise": noise}
    for attn in ("sa", "cfa", "tma", "tma-two-tap")
    for noise in ("dnm", "text2video-zero")
}
MORE = {  # in float64 alone
    "first-previous dnm": {"attn": "first-previous"},
    "extended dnm": {"attn": "extended", "anchors": (0, 3, 4)},
    "tma by-step-and-level": {"mu": (0.9, 0.5), "mu_end": 0.1},
    "tma warp": {"noise": "warp", "flow": "flow.safetensors"},  # that of the fixture `clips`
}


def way(name: str) -> dict[str, Any]:
    """The options of a clip by a way."""
    attn = name.split()[0]
    clip = {"frames": 7, "steps": 4, "height": 32, "width": 32, "guidance": 3.0, "seed": 2}
    clip["sampler"] = "dpm++" if attn in ("cfa", "tma") else "ddim"
    return clip | {"deep_cache": 2 if attn in ("sa", "tma") else 1}


CLIPS = (
    f"""
WAYS, MORE = {WAYS}, {MORE}
CLIP = { {name: way(name) for name in (*WAYS, *MORE)} }
"""
    + """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from zs2 import ZS2, Request
from zs2.cli.torchrun import joined
from zs2.sampling import memory, plan
from zs2.system import free_memory

torch.set_num_threads(1)
with joined("cpu") as group:
    for dtype in ("float32", "float64"):
        model = ZS2.from_pretrained(sys.argv[1], device="cpu", lam=0.5, mu=0.9)
        if dtype == "float64":
            for part in (model.unet, *model.text.encoders):
                part.double()
        made = {}
        for name, method in (WAYS if dtype == "float32" else WAYS | MORE).items():
            variant, clip = model.variant(**method), CLIP[name] | {"chunk": 2}
            made[name] = variant.latents(["rose", "rose", "red apple"], group=group, **clip)
            if dtype == "float32" or name in MORE:  # a stream of each way
                streamed = list(variant.stream(["rose", "rose", "red apple"], group=group, **clip))
                made[f"frames {name}"] = torch.stack([torch.from_numpy(frame) for frame in streamed])
        save_file(made, f"{dtype} {group.rank}.safetensors")

    # as if they had memory for 5, 9 and 7 frames at once
    model, request = ZS2.from_pretrained(sys.argv[1], device="cpu"), Request("star", frames=40, height=512, width=512)
    resolved = plan.resolve(model.image_model, model.method, request, group)
    needs = [memory.planned_memory(replace(resolved, chunk=chunk)).total for chunk in (5, 9, 7)]
    memory.free_memory = lambda device, sharing: int(needs[group.rank] / free_memory.SPARE) + 1
    facts = {"here": group.here, "size": group.size, "chunk": model.plan(request, group).chunk}
    Path(f"{group.rank}.json").write_text(json.dumps(facts))
"""
)


def launch(processes: int, *arguments: str) -> list[str]:
    """The words of Python."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]


ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def torchrun(processes: int, *arguments: str, cwd: Path, limit: int | None = None) -> Forked:
    """limit: of the bytes of a file that it writes; the locks of torchrun itself take 32."""
    return Forked(launch(processes, *arguments), cwd, ENVIRONMENT, limit)


PAPER = "--guidance 7.5 --lam 0.01"  # with them, nothing is said of the checkpoint's own settings


def said(err: str) -> list[str]:
    """What zs2 said, of all that torchrun did."""
    return [line for line in err.splitlines() if line.startswith("zs2: ")]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes: in float32 other numbers of threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# of three processes the last chunk leaves one without frames
@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def clips(request: pytest.FixtureRequest, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of so many processes wrote that ran CLIPS together: `DTYPE RANK.safetensors`."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "clips.py").write_text(CLIPS)
    save_file({"flow": 4 * torch.randn(6, 2, 4, 4)}, folder / "flow.safetensors")
    run = torchrun(request.param, "clips.py", str(narrow), cwd=folder)
    _, err = run.communicate(timeout=1200)
    assert run.returncode == 0, err
    return folder


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.long
def test_the_clip_is_that_of_one_process(clips, narrow, dtype, tolerance, monkeypatch):
    """Seven frames, two a process: the last chunk leaves some processes without any.

    In float64 little but errors of the method is left (momentum stays in float32). A clip in float32 is itself 1e-5
    from float64's: four steps with a guidance of 3 multiply what the matrix products round. So float32 is compared
    with as many frames at once as a process has, which rounds as that does.
    """
    monkeypatch.chdir(clips)
    made = [load_file(file) for file in sorted(clips.glob(f"{dtype} *"))]
    assert len(made) in (2, 3)
    model = ZS2.from_pretrained(narrow, device="cpu", lam=0.5, mu=0.9)
    if dtype == "float64":
        for part in (model.unet, *model.text.encoders):
            part.double()
    for name, latents in made[0].items():
        assert all(torch.equal(other[name], latents) for other in made)
        if not name.startswith("frames"):
            variant = model.variant(**(WAYS | MORE)[name])
            clip = way(name) | {"chunk": 2 if dtype == "float32" else 7}
            assert_close(latents, variant.latents(["rose", "rose", "red apple"], **clip), tolerance)
            if f"frames {name}" in made[0]:
                frames = torch.from_numpy(model.decode(latents)).int()
                assert (made[0][f"frames {name}"].int() - frames).abs().max() <= 1


@pytest.mark.long
def test_the_command_writes_one_clip(tmp_path):
    """By torchrun as it is; elsewhere it and its processes are forked from one that has torch imported."""
    line = "-m zs2.sample --steps 1 --frames 3 --size 16x16 --device cpu --out c.webp"
    run = subprocess.run(
        [sys.executable, *launch(2, *line.split())],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    out, err = run.stdout, run.stderr
    assert run.returncode == 0, err
    assert out.split() == ["c.webp", "c.webp.sheet.png", "c.webp.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(out.split())
    settings = json.loads((tmp_path / "c.webp.json").read_text())
    assert (settings["processes"], settings["chunk"], settings["frames"]) == (2, 2, 3)
    assert len(re.findall("sampling 1/1", err)) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--frames 1", "2 processes for 1 frames"),
        ("--steps 0", "steps is 0: expected from 1 to"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, line, words):
    run = torchrun(2, *f"-m zs2.sample --device cpu {line}".split(), cwd=tmp_path)
    out, err = run.communicate(timeout=600)
    assert run.returncode != 0
    assert (out, list(tmp_path.iterdir())) == ("", [])
    (said_line,) = said(err)
    assert words in said_line


Ended = tuple[int | str | None, list[str], list[float]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs the command in this process, as one that torchrun started. How it ended: its status, its lines and the
    seconds that it waited for the others."""
    handler, waited = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr("zs2.cli.torchrun.time.sleep", waited.append)
    monkeypatch.chdir(tmp_path)

    def run(line: str, **environment: int) -> Ended:
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        waited.clear()
        try:
            status: int | str | None = main(line.split())
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        assert (out, list(tmp_path.iterdir())) == ("", [])
        return status, said(err), [*waited]

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_wrong_arguments_are_said_once(started):
    """By the first process; the other one waits, so that torchrun, which ends all when one ends, lets it say that."""
    size = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    status, (said_line,), waited = started("--device cpu --nonsense", RANK=0, LOCAL_RANK=0, **size)
    assert (status, waited) == (2, [])
    assert "unrecognized arguments: --nonsense" in said_line
    assert started("--device cpu --nonsense", RANK=1, LOCAL_RANK=1, **size) == (2, [], [GRACE])


@pytest.mark.parametrize(("local", "lines"), [(0, 1), (1, 0)])
def test_of_each_machine_one_process_says_what_is_wrong_there(started, local, lines):
    """Of four processes on two machines, one of the second one's, where the file to replay is missing."""
    place = {"RANK": 2 + local, "LOCAL_RANK": local, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    status, found, waited = started("--replay c.json --device cpu", **place)
    assert status != 0
    assert ["c.json" in line for line in found] == [True] * lines
    assert waited == [GRACE] * local


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device(None) == own_device("cuda") == "cuda"  # without torchrun there is one process
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(None) == own_device("cuda") == "cuda:1"
    assert [own_device(name) for name in ("cuda:0", "cpu")] == ["cuda:0", "cpu"]


def test_more_processes_than_gpus_are_an_error_before_they_meet(started, monkeypatch):
    """There is nobody to meet here: a process that tried would wait."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("zs2.cli.torchrun.choose_device", torch.device)
    here = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
    for gpus, line, words in (
        (2, "", "4 processes for 2 GPU(s): expected one each: --nproc-per-node 2, or --device cpu"),
        (4, "--device cuda:0", ""),
        (4, "--device cuda:1", "4 processes can't share cuda:1: give --device cuda, then each has its own"),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        if words:
            status, (said_line,), _ = started(line, **here)
            assert (status, said_line) == (2, f"zs2: error: {words}")
        else:
            check_gpus("cuda:0")  # that of the first process is its own
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # one on each of four machines
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_gpus("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    check_gpus("cpu")


def test_processes_with_different_memory_decide_on_one_chunk(clips):
    found = [json.loads(file.read_text()) for file in clips.glob("*.json")]
    assert found == [{"here": len(found), "size": len(found), "chunk": 5}] * len(found)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_what_can_not_be_written_is_said_once(tmp_path):
    line = f"-m zs2.sample --steps 1 --spacing trailing --frames 3 --size 16x16 {PAPER} --device cpu --out c"
    run = torchrun(2, *line.split(), cwd=tmp_path, limit=64)
    out, err = run.communicate(timeout=600)
    assert run.returncode != 0
    (said_line,) = said(err)
    reason = "File too large): a file may have 64 bytes here: raise that limit (ulimit -f)"
    assert said_line == f"zs2: error: c can't be written ({reason}"
    for module in ("sample", "cli/torchrun", "sampling/frame_parallel"):
        assert Path(ROOT, f"zs2/{module}.py").exists()
        assert f"zs2/{module}.py" not in err  # no trace of the other one
    assert (out, list(tmp_path.iterdir())) == ("", [])


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def streaming(folder: Path, *options: str) -> tuple[Forked, list[int]]:
    """Two processes that stream a clip which takes for ever, and have finished frames. Also their ids, by rank."""
    line = f"-m zs2.sample --steps 20 --frames 9000 --size 16x16 {PAPER} --device cpu --stream --chunk 1"
    run = torchrun(2, *line.split(), "--out", str(folder / "long"), *options, cwd=folder)
    start = time.monotonic()
    while not (folder / "long.part" / "long").exists():  # until the first frame is being written
        assert time.monotonic() < start + 600
        time.sleep(0.2)
        assert run.poll() is None, run.communicate()
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return run, [int(child) for child in children]


@pytest.mark.long
@linux
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_all_with_one_line_and_no_clip(tmp_path, victim):
    run, ranks = streaming(tmp_path)
    os.kill(ranks[victim], signal.SIGKILL)
    start = time.monotonic()
    out, err = run.communicate(timeout=600)
    assert time.monotonic() - start < 300  # long before the clip would end, or a collective would give up
    assert run.returncode != 0
    (said_line,) = said(err)
    assert said_line.startswith(f"zs2: error: one of the 2 processes has ended before the others (rank {victim}): ")
    assert out == ""
    if victim == 1:
        assert re.search(r"the first \d+ of 9000 frames are kept: .*/long\.part/long$", said_line)
    assert [file.name for file in tmp_path.iterdir()] == ["long.part"]  # no clip, but its frames


@pytest.mark.long
@linux
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_stopped_ends_all_with_one_line_and_no_clip(tmp_path, victim):
    """The other one waits as long as --process-timeout says, names it, and exits with 1."""
    run, ranks = streaming(tmp_path, "--process-timeout", "3")
    os.kill(ranks[victim], signal.SIGSTOP)
    start = time.monotonic()
    other = Path(f"/proc/{ranks[1 - victim]}/stat")
    while other.exists() and ") Z " not in other.read_text():
        assert time.monotonic() < start + 120
        time.sleep(0.1)
    assert time.monotonic() - start > 2.5
    os.kill(ranks[victim], signal.SIGKILL)  # as torchrun does after half a minute
    out, err = run.communicate(timeout=600)
    assert (run.returncode, out) == (1, "")
    assert re.search(rf"rank +: {1 - victim} .*\n +exitcode +: 1 ", err)
    (said_line,) = said(err)
    told = f"zs2: error: rank {victim} of 2 processes has not answered for 3 s (--process-timeout): is it stopped? "
    assert said_line.startswith(told)
    if victim == 1:
        assert re.search(r"the first \d+ of 9000 frames are kept: .*/long\.part/long$", said_line)
    assert [file.name for file in tmp_path.iterdir()] == ["long.part"]


@linux
@pytest.mark.slow
def test_a_signal_to_all_processes_ends_the_stream_with_the_frames_that_are_there(tmp_path):
    """As Slurm sends it: the frames are a whole clip, because no process is lost."""
    run, _ = streaming(tmp_path)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=600)
    kept, stopped = said(err)
    assert re.fullmatch(r"zs2: the first \d+ of 9000 frames are kept: .*/long", kept)
    assert stopped == "zs2: stopped by SIGTERM: what was finished before is kept"
    settings = json.loads((tmp_path / "long.json").read_text())
    assert settings["frames"] == len([*tmp_path.glob("long/*.png")]) > 0
    assert not (tmp_path / "long.part").exists()


@linux
@pytest.mark.slow
def test_a_stream_of_two_processes_goes_on(tmp_path):
    """After one of them has died: the frames are those of two processes that were not disturbed."""
    line = f"-m zs2.sample --steps 20 --frames 40 --size 16x16 {PAPER} --device cpu --stream --chunk 1 --out".split()
    run = torchrun(2, *line, "c", "--resume", cwd=tmp_path)
    while not (tmp_path / "c.part" / "c" / "0006.png").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = run.communicate(timeout=600)
    assert "has ended before the others" in err
    for name in ("c", "whole"):
        again = torchrun(2, *line, name, "--resume", cwd=tmp_path)
        _, err = again.communicate(timeout=600)
        assert again.returncode == 0, err
        assert ("going on from frame" in err) == (name == "c")
    frames = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("c", "whole")]
    assert frames[0] == frames[1]
    assert len(frames[0]) == 40


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none(started, seconds):
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    status, (said_line,), _ = started(f"--device cpu --process-timeout {seconds}", **place)
    assert (status, "expected seconds, above 0" in said_line) == (2, True)
