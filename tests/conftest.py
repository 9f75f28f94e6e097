"""What all tests share: no network, one thread, hypothesis's same examples, a copy of the checkpoint to change."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, write_narrow
from network import stay_here

try:
    from hypothesis import settings
except ImportError:  # the tests that need a GPU do without it
    settings = None

# What a user's shell may have set for the hub and for colours would decide how tests end. Folders may stay.
USERS = ("HF_HUB_", "HF_TOKEN", "HF_ENDPOINT", "TRANSFORMERS_", "FORCE_COLOR", "PYTHON_COLORS")
for name in [name for name in os.environ if name.startswith(USERS) and not name.endswith("_CACHE")]:
    del os.environ[name]

# Without HF_HUB_OFFLINE, a test may ask the hub, so every process that this one forks fails as without a network.
ASKED: list[Any] = []
stay_here(ASKED.append)

# One thread, here and in the processes that tests start: their tensors are small, so that threads cost more than they
# save. OMP_NUM_THREADS chooses another number.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

if settings is not None:
    settings.register_profile("zs2", deadline=None, max_examples=40, derandomize=True)
    settings.load_profile("zs2")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw without a seed of their own is the same, whatever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[list[Any]]:
    """A test that asks another machine for something fails, also if it would pass without an answer."""
    ASKED.clear()
    yield ASKED
    assert ASKED == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The default checkpoint in a folder of its own. Its weights are links: unlink one before writing another."""
    copy = tmp_path / "checkpoint"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(CHECKPOINT / part, copy / part, ignore=shutil.ignore_patterns("*.safetensors"))
        for file in (CHECKPOINT / part).glob("*.safetensors"):
            (copy / part / file.name).symlink_to(file)
    return copy


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights and few channels; see `write_narrow`. Not to be changed."""
    return write_narrow(tmp_path_factory.mktemp("narrow") / "narrow")
