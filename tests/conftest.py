"""What all tests share: one thread, hypothesis's same examples in every run, a copy of the checkpoint to change."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import CHECKPOINT, write_narrow

try:
    from hypothesis import settings
except ImportError:  # the tests that need a GPU do without it
    settings = None

# One thread, here and in the processes that tests start: their tensors are small, so that threads cost more than they
# save. OMP_NUM_THREADS chooses another number.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

if settings is not None:
    settings.register_profile("zs2", deadline=None, max_examples=40, derandomize=True)
    settings.load_profile("zs2")


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
