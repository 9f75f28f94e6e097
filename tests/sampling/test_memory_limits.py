"""Limits of memory: what counts as too little of it, `ulimit -v` and `ulimit -d` in the plan, and what errors name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import TESTS

from zs2 import ZS2, Request
from zs2.checkpoints.tensor_files import loading
from zs2.errors import InputError, OutOfMemory, is_out_of_memory
from zs2.models.temporal import SelfAttention
from zs2.sampling import decoding, memory
from zs2.sampling.decoding import decode_frames
from zs2.sampling.memory import LOWER, MemoryPlan, free_for, out_of_memory, planned_memory
from zs2.sampling.sampler import Sampler
from zs2.system.free_memory import address_room, fitting, kernel_numbers

# What allocators say, as they were seen or stand in their sources, and what is alike and is none.
TOO_LITTLE = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.57 GB)"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("unable to mmap 134217728 bytes from file <x>: Cannot allocate memory (12)"),
]
ANOTHER = [
    RuntimeError("could not create a primitive descriptor for a matmul primitive"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.ENOENT, "out of memory.safetensors"),
    ValueError("the memory format is unknown"),
]


@pytest.mark.parametrize("error", TOO_LITTLE, ids=str)
def test_each_allocator_is_understood(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory, match=r"loading the weights of unet/x: try half precision"), loading("unet/x"):
        raise error


@pytest.mark.parametrize("error", ANOTHER, ids=str)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(InputError, match="unet/x can't be loaded"), loading("unet/x"):
        raise error


@pytest.fixture(scope="module")
def model(narrow):
    return ZS2.from_pretrained(narrow, device="cpu")


def planned(model, **request):
    return model.plan(Request("rose", **{"frames": 4, "steps": 2, "width": 32, "height": 32, **request}))


def plan_of(part):
    sizes = dict.fromkeys((field for field in MemoryPlan.__dataclass_fields__), 1)
    return MemoryPlan(**sizes | {part: 2**30})


@pytest.mark.parametrize("part", MemoryPlan.__dataclass_fields__)
def test_the_largest_part_is_named_with_what_to_lower(model, monkeypatch, part):
    monkeypatch.setattr(memory, "planned_memory", lambda plan: plan_of(part))
    error = str(out_of_memory(planned(model), "a step"))
    assert error.startswith("out of memory in a step: of 1.00 GiB that are planned, ")
    assert f"{part} needs most, 1.00 GiB: try " in error
    assert error.endswith(LOWER[part])
    assert ("a chunk of 2 (--chunk), or" in error) == (part == "unet")


def test_a_plan_that_does_not_fit_names_its_largest_part():
    words = r"8 frames needs 1.00 GiB, 1.0 MiB are free within ulimit -v \(weights needs most, 1.00 GiB\), and not even"
    with pytest.raises(InputError, match=words):
        fitting(lambda chunk: plan_of("weights"), 8, 2**20, asked=True, of=" within ulimit -v")


@pytest.mark.parametrize("error", TOO_LITTLE[1:5], ids=str)
def test_a_step_and_the_decoding_name_the_plan(model, monkeypatch, error):
    def fail(*_, **__):
        raise error

    plan = planned(model)
    latents = torch.zeros(4, *plan.latent_shape)
    monkeypatch.setattr(decoding, "decode", fail)
    with pytest.raises(OutOfMemory, match=r"out of memory in decoding: of .* needs most, .*: try "):
        decode_frames(plan, latents)
    monkeypatch.setattr(type(plan.model.unet), "forward", fail)
    with pytest.raises(OutOfMemory, match=r"in a step of 4 frames at once: of .* needs most, .*: try "):
        list(Sampler(plan).steps())


# --- limits of the process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "name"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_a_limit_of_the_process_counts(model, monkeypatch, limit, name):
    """What is mapped already, such as the weights, is not needed again."""
    resource = pytest.importorskip("resource")
    if address_room() is not None or sys.platform != "linux":
        pytest.skip("this process has a limit already, or no /proc")
    plan, before = planned(model), resource.getrlimit(getattr(resource, limit))
    assert free_for(plan)[1] == ""
    held = kernel_numbers("/proc/self/status")["VmSize" if limit == "RLIMIT_AS" else "VmData"] * 1024
    need = planned_memory(plan)
    more = need.total - need.weights - memory.PROCESS + memory.CALLS + memory.ARENA
    try:
        for spare, fits in ((64 * 2**20, True), (-64 * 2**20, False)):
            resource.setrlimit(getattr(resource, limit), (held + more + spare, before[1]))
            free, of = free_for(plan)
            assert of == f" within {name}"
            assert (free >= need.total) == fits
    finally:
        resource.setrlimit(getattr(resource, limit), before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit -v")
def test_no_limit_of_the_address_space_ends_in_a_traceback(tmp_path):
    """From too little for torch's threads to enough: a clip, or one line that says what to do."""
    code = (
        "import resource, sys; from zs2.sample import main; import zs2.pipeline, torch; torch.set_num_threads(1)\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + int(sys.argv[1]) * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "sys.exit(main(['panda face', '--frames', '8', '--steps', '1', '--size', '256x256']))"
    )
    ends, environment = [], os.environ | {"PYTHONPATH": str(TESTS.parent)}
    for room in (10, 60, 200, 400, 2000):
        words = [sys.executable, "-c", code, str(room)]
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode in (0, 1, 2), ended.stderr
        assert ended.returncode == 0 or "memory" in ended.stderr or "ulimit -v" in ended.stderr, ended.stderr
        ends.append(ended.returncode)
    assert ends[-1] == 0
    assert ends[0] != 0


def test_a_flow_that_is_given_counts(model):
    """It may have a gigabyte, and stays in memory as long as the clip is made."""
    plain = planned_memory(planned(model))
    flow = np.zeros((3, 2, 128, 128), np.float32)
    plan = planned(model.variant(noise="warp", flow=flow))
    assert planned_memory(plan) == replace(plain, flow=flow.nbytes)
    assert planned_memory(plan).total == plain.total + flow.nbytes
    assert [line for line in planned_memory(plan).lines() if line.startswith("flow")] == ["flow         0.4 MiB"]
    assert not any(line.startswith("flow") for line in plain.lines())


# --- kinds with more keys than queries --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window(SelfAttention):
    key_frames: ClassVar[int] = 16


def test_a_kind_with_more_keys_needs_more(model):
    """Self-attention with the keys of 16 frames needs 72 maps, more than the feed-forward's 22."""
    plan = planned(model, width=512, height=512)
    more = planned_memory(replace(plan, model=plan.model.with_momentum(Window())))
    assert more.unet > 2 * planned_memory(plan).unet
    assert replace(more, unet=0, states=0) == replace(planned_memory(plan), unet=0, states=0)
