"""The card: what it is, which versions there are, and how fast it multiplies and copies."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from common import gemm

from cuda_stages.stage import Stage, exact_float32
from zs2.version import __version__


def card(stage: Stage) -> None:
    """Versions, the rate of products, and the rates of copies."""
    stage.figure("zs2", __version__)
    stage.figure("Python", platform.python_version())
    stage.figure("torch", str(torch.__version__))
    for name in ("transformers", "diffusers", "triton"):
        try:
            stage.figure(name, version(name))
        except PackageNotFoundError:
            stage.figure(name, "none")
    if stage.cuda:
        properties = torch.cuda.get_device_properties(stage.device)
        stage.figure("card", properties.name)
        stage.figure("compute capability", f"{properties.major}.{properties.minor}")
        stage.figure("memory", round(properties.total_memory / 2**30, 1), "GiB")
        stage.figure("multiprocessors", properties.multi_processor_count)
        stage.figure("CUDA of torch", str(torch.version.cuda))
        stage.figure("cuDNN", torch.backends.cudnn.version() or 0)
        free, _ = torch.cuda.mem_get_info(stage.device)
        stage.figure("free", round(free / 2**30, 1), "GiB")
    n = 128 if stage.tiny else 8192
    for name, dtype, exact in (
        ("bfloat16", torch.bfloat16, True),
        ("float16", torch.float16, True),
        ("TF32", torch.float32, False),
        ("float32", torch.float32, True),
    ):
        exact_float32(exact)
        rate = gemm(dtype, stage.device, n, rounds=5)
        stage.figure(f"product of {n}³, {name}", round(rate / 1e12, 3), "TFLOP/s")
    stage.check("rate of products", rate, 1, least=True)
    size = 2**20 if stage.tiny else 2**28
    there = torch.zeros(size, dtype=torch.uint8, device=stage.device)
    for name, pinned in (("pageable", False), ("pinned", True)):
        here = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned and stage.cuda)
        ways: tuple[tuple[str, Callable[[], object]], ...] = (
            (f"to the device, {name}", lambda here=here: there.copy_(here, non_blocking=True)),
            (f"to the host, {name}", lambda here=here: here.copy_(there, non_blocking=True)),
        )
        for way, copy in ways:
            copy()
            stage.figure(way, round(size / min(stage.seconds(copy) for _ in range(5)) / 1e9, 2), "GB/s")
    other = torch.empty_like(there)
    stage.figure(
        "on the device",
        round(2 * size / min(stage.seconds(lambda: other.copy_(there)) for _ in range(5)) / 1e9, 1),
        "GB/s",
    )
