"""What a safetensors file means does not depend on the order in which the library gives its content.

The library keeps tensors and metadata in hash tables, whose order is another one each time that a file is opened.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.original import write
from helpers import TESTS

import zs2.checkpoints.tensor_files as tensor_files
from zs2.checkpoints.embeddings import bundled
from zs2.checkpoints.lora import merge
from zs2.checkpoints.single_file import SCHEDULE, SingleFile
from zs2.checkpoints.statements import Statements, read_statements
from zs2.errors import InputError

ORDERS = range(6)


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives what files hold in another order for each number."""
    read = tensor_files.safe_open

    def order(number: int) -> None:
        def mixed(values: Any) -> Any:
            return random.Random(number).sample(sorted(values), len(values))

        class Shuffled:
            def __init__(self, file: Any) -> None:
                self.file, self.get_tensor = file, file.get_tensor

            def keys(self) -> list[str]:
                return mixed(self.file.keys())

            def metadata(self) -> dict[str, str]:
                return dict(mixed((self.file.metadata() or {}).items()))

        @contextmanager
        def opened(path: Path, framework: str) -> Iterator[Shuffled]:
            with read(path, framework=framework) as file:
                yield Shuffled(file)

        monkeypatch.setattr(tensor_files, "safe_open", opened)

    return order


def outcome(act: Callable[[], Any]) -> str:
    """What something gives: its value or its error, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = repr(act())
        except InputError as error:
            result = f"error: {error}"
    return "\n".join([result, *(str(one.message) for one in caught)])


TWICE = {"modelspec.prediction_type": "v", "ModelSpec.Prediction_Type": "epsilon"}
STATED = [
    (TWICE, "contradicts itself: modelspec.prediction_type = 'epsilon', but modelspec.prediction_type = 'v': give"),
    (
        {"ss_v_parameterization": "false", "modelspec.prediction_type": "v", "predict_key": "eps"},
        "contradicts itself: modelspec.prediction_type = 'v', but predict_key = 'eps': give",
    ),
    ({"modelspec.prediction_type": "x", "modelspec.predict_key": "y"}, "modelspec.predict_key = 'y': zs2 knows"),
    (
        {"modelspec.resolution": "512x512", "ModelSpec.resolution": "1024x1024"},
        "sample_size=[128, 128])\nm.safetensors says what zs2 does not follow: modelspec.resolution = '512x512'",
    ),
    (
        {f"modelspec.other{i}": "1" for i in range(7)},
        "; ".join(f"modelspec.other{i} = '1'" for i in range(5)) + "; and 2 more",
    ),
    ({"modelspec.title": "one lcm", "ss_output_name": "lcm two"}, "an LCM (modelspec.title = 'one lcm')"),
]


@pytest.mark.parametrize(("metadata", "want"), STATED, ids=[next(iter(row[0])) + str(len(row[0])) for row in STATED])
def test_statements_in_any_order(tmp_path, shuffled, metadata, want):
    path = tmp_path / "m.safetensors"
    write(path, {"a": torch.zeros(1)}, metadata)

    def read() -> Statements:
        return read_statements(path, "SDXL", {}, tensor_files.read_metadata(path), None, SCHEDULE, 0.13)

    found = set()
    for number in ORDERS:
        shuffled(number)
        found.add(outcome(read))
    assert len(found) == 1
    assert want in found.pop()


@pytest.mark.parametrize("asked", ["epsilon", "v"])
def test_what_is_asked_wins_over_a_statement_in_two_spellings(tmp_path, asked):
    write(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, TWICE)
    metadata = tensor_files.read_metadata(tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match=f"but prediction is {asked}"):
        found = read_statements(tmp_path / "m.safetensors", "SDXL", {}, metadata, asked, SCHEDULE, 0.13)
    assert found.prediction == asked


def test_tensors_in_any_order(tmp_path, shuffled):
    """The dtype of a file that is half and half, the tensor that an error names, the tokens of a LoRA."""
    one, two = torch.zeros(4), torch.zeros(4, dtype=torch.float16)
    path = tmp_path / "m.safetensors"
    write(path, {"lora_unet_a.lora_up.weight": one, "b": two, "c": one, "d": two, "bundle_emb.x.y": one})
    tokens = tmp_path / "tokens.safetensors"
    write(tokens, {f"bundle_emb.<{name}>.emb_params": torch.zeros(1, 4) for name in "cab"})
    unet: Any = torch.nn.Module()  # no layer fits: the error names the first tensor
    unet.config = SimpleNamespace(layers_per_block=(2,), cross_attention_dim=8)

    def read() -> list[Any]:
        tensors = tensor_files.read_tensors([path])
        acts = (lambda: SingleFile(path), lambda: merge(path, 1.0, unet, ()), lambda: bundled(path))
        names = [one.token for one in bundled(tokens)]
        return [*tensors, tensor_files.stored_dtype(tensors), names, *map(outcome, acts)]

    found = []
    for number in ORDERS:
        shuffled(number)
        found.append(read())
    assert all(one == found[0] for one in found)
    assert found[0][:5] == ["b", "bundle_emb.x.y", "c", "d", "lora_unet_a.lora_up.weight"]


def test_files_are_opened_where_they_are_ordered():
    """Whoever reads a safetensors file otherwise has to order it, too."""
    package = TESTS.parent / "zs2"
    found = {file.name for file in package.rglob("*.py") if re.search(r"\bsafe_open\(|load_file\(", file.read_text())}
    assert found == {"tensor_files.py", "resume.py", "flow.py"}  # states have numbers, and a flow is one tensor
