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

import pytest
import torch
from helpers import CHECKPOINT, assert_close
from safetensors.torch import load_file

from zs2 import ZS2
from zs2.system.devices import own_device

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")

CLIPS = """
import sys
import torch
from safetensors.torch import save_file
from zs2 import ZS2
from zs2.cli.torchrun import joined

torch.set_num_threads(1)
model = ZS2.from_pretrained(sys.argv[1], device="cpu", lam=0.5, mu=0.9)
if sys.argv[2] == "float64":
    for part in (model.unet, *model.text.encoders):
        part.double()
with joined("gloo") as group:
    made = {}
    for attn in ("sa", "cfa", "tma", "tma-two-tap"):
        for noise in ("dnm", "text2video-zero"):
            clip = dict(frames=7, steps=4, height=32, width=32, guidance=3.0, seed=2, chunk=2)
            clip["sampler"] = "dpm++" if attn in ("cfa", "tma") else "ddim"
            clip["deep_cache"] = 2 if attn in ("sa", "tma") else 1
            variant = model.variant(attn=attn, noise=noise)
            made[f"{attn} {noise}"] = variant.latents(["rose", "rose", "red apple"], group=group, **clip)
            streamed = list(variant.stream(["rose", "rose", "red apple"], group=group, **clip))
            made[f"frames {attn} {noise}"] = torch.stack([torch.from_numpy(frame) for frame in streamed])
    save_file(made, f"{group.rank}.safetensors")
"""


def torchrun(processes: int, *arguments: str, cwd: Path, limit: int | None = None) -> subprocess.Popen[str]:
    """limit: of the bytes of a file that it writes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    if limit is not None:
        code = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)"
        words = [sys.executable, "-c", f"{code}; os.execv(sys.argv[2], sys.argv[2:])", str(limit), *words]
    return subprocess.Popen(
        [*words, *arguments], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.usefixtures("one_thread")
def test_the_clip_is_that_of_one_process(tmp_path, processes, dtype, tolerance):
    """Seven frames, two a process: the last chunk leaves some processes without any.

    In float64 little but errors of the method is left (momentum stays in float32). A clip in float32 is itself 1e-5
    from float64's: four steps with a guidance of 3 multiply what the matrix products round. So float32 is compared
    with as many frames at once as a process has, which rounds as that does.
    """
    (tmp_path / "clips.py").write_text(CLIPS)
    run = torchrun(processes, "clips.py", str(CHECKPOINT), dtype, cwd=tmp_path)
    _, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    made = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(processes)]
    model = ZS2.from_pretrained(CHECKPOINT, device="cpu", lam=0.5, mu=0.9)
    if dtype == "float64":
        for part in (model.unet, *model.text.encoders):
            part.double()
    clip = {"frames": 7, "steps": 4, "height": 32, "width": 32, "guidance": 3.0, "seed": 2}
    clip["chunk"] = 2 if dtype == "float32" else 7
    for name, latents in made[0].items():
        assert all(torch.equal(other[name], latents) for other in made)
        if not name.startswith("frames"):
            attn, noise = name.split()
            variant = model.variant(attn=attn, noise=noise)
            clip["sampler"] = "dpm++" if attn in ("cfa", "tma") else "ddim"
            clip["deep_cache"] = 2 if attn in ("sa", "tma") else 1
            assert_close(latents, variant.latents(["rose", "rose", "red apple"], **clip), tolerance)
            frames = torch.from_numpy(model.decode(latents)).int()
            assert (made[0][f"frames {name}"].int() - frames).abs().max() <= 1


def test_the_command_writes_one_clip(tmp_path):
    line = "-m zs2.sample --steps 1 --frames 3 --size 16x16 --device cpu --out c.webp"
    run = torchrun(2, *line.split(), cwd=tmp_path)
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert out.split() == ["c.webp", "c.sheet.png", "c.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(out.split())
    settings = json.loads((tmp_path / "c.json").read_text())
    assert (settings["processes"], settings["chunk"], settings["frames"]) == (2, 2, 3)
    assert len(re.findall("sampling 1/1", err)) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--frames 1", "2 processes for 1 frames"),
        ("--steps 0", "steps is 0: expected at least 1"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, line, words):
    run = torchrun(2, *f"-m zs2.sample --device cpu {line}".split(), cwd=tmp_path)
    out, err = run.communicate(timeout=600)
    assert run.returncode != 0
    assert (out, list(tmp_path.iterdir())) == ("", [])
    (said_line,) = said(err)
    assert words in said_line


@pytest.mark.parametrize(("local", "lines"), [("0", 1), ("1", 0)])
def test_of_each_machine_one_process_says_what_is_wrong_there(tmp_path, local, lines):
    """Of four processes on two machines, one of the second one's, where the file to replay is missing."""
    env = {**os.environ, "RANK": str(2 + int(local)), "LOCAL_RANK": local, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    line = [sys.executable, "-m", "zs2.sample", "--replay", "c.json", "--device", "cpu"]
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode != 0
    assert ["c.json" in told for told in said(run.stderr)] == [True] * lines


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device(None) == own_device("cuda") == "cuda"  # without torchrun there is one process
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(None) == own_device("cuda") == "cuda:1"
    assert [own_device(name) for name in ("cuda:0", "cpu")] == ["cuda:0", "cpu"]


DIFFER = """
import sys
from dataclasses import replace
from zs2 import ZS2
from zs2.sampling import memory, plan
from zs2.cli.torchrun import joined
from zs2.sampling.request import Request

model = ZS2.from_pretrained(sys.argv[1], device="cpu")
request = Request("star", frames=40, height=512, width=512)
with joined("gloo") as group:
    assert group.here == group.size == 2
    resolved = plan.resolve(model.image_model, model.method, request, group)
    needs = [memory.planned_memory(replace(resolved, chunk=chunk)).total for chunk in (5, 9)]
    plan.free_memory = lambda device, sharing: int(needs[group.rank] / memory.SPARE) + 1
    made = model.plan(request, group)
    print(f"{group.rank} {made.chunk}\\n", end="", flush=True)  # in one write
"""


def test_processes_with_different_memory_decide_on_one_chunk(tmp_path):
    (tmp_path / "differ.py").write_text(DIFFER)
    run = torchrun(2, "differ.py", str(CHECKPOINT), cwd=tmp_path)
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert sorted(out.splitlines()) == ["0 5", "1 5"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_what_can_not_be_written_is_said_once(tmp_path):
    line = "-m zs2.sample --steps 1 --frames 3 --size 16x16 --device cpu --out c"
    run = torchrun(2, *line.split(), cwd=tmp_path, limit=1)
    out, err = run.communicate(timeout=600)
    assert run.returncode != 0
    assert [line.partition("] ")[2] for line in said(err)] == ["File too large"]
    for module in ("sample", "cli/torchrun", "sampling/frame_parallel"):
        assert Path(ROOT, f"zs2/{module}.py").exists()
        assert f"zs2/{module}.py" not in err  # no trace of the other one
    assert (out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_all_with_one_line_and_no_clip(tmp_path, victim):
    line = (
        f"-m zs2.sample --steps 20 --frames 900 --size 16x16 --device cpu --stream --chunk 1 --out {tmp_path / 'long'}"
    )
    run = torchrun(2, *line.split(), cwd=tmp_path)
    start = time.monotonic()
    while not list(tmp_path.glob(".zs2-*/new/long")):  # until the first frame is being written
        assert time.monotonic() < start + 300
        time.sleep(0.2)
        assert run.poll() is None, run.communicate()
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    ranks = {int(_environment(int(child))["RANK"]): int(child) for child in children}
    os.kill(ranks[victim], signal.SIGKILL)
    start = time.monotonic()
    out, err = run.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert run.returncode != 0
    (said_line,) = said(err)
    assert said_line.startswith("zs2: error: one of the 2 processes has ended before the others")
    assert out == ""
    if victim == 1:
        assert list(tmp_path.iterdir()) == []
    assert not (tmp_path / "long").exists()
    assert not (tmp_path / "long.json").exists()


def _environment(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return dict(line.decode().split("=", 1) for line in lines if b"=" in line)
