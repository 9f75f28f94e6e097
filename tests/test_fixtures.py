"""The files of tests/fixtures: what was written is read, bit for bit, and random weights take little space."""

from __future__ import annotations

import lzma
from pathlib import Path

import helpers
import pytest
import torch
from fixtures.store import CHECKPOINT, SUFFIX, Drawn, read, scramble, write
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

CONFIG = {"b": [1, 0.1, None, True], "a": {"ä": "λ"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"case{SUFFIX}"


def network() -> nn.Module:
    """Parameters of 3, 15, 16, 17, 31 and many numbers: torch draws fewer than 16, and rests, in other ways."""
    shapes = {"few": (3,), "almost": (3, 5), "just": (16,), "over": (17,), "rest": (31,), "conv": (24, 16, 3, 3)}
    parameters = {name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}
    return nn.ModuleDict({"one": nn.ParameterDict(parameters), "norm": nn.LayerNorm(40), "to_q": nn.Linear(40, 50)})


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Assert that tensors are the same, to the bit."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [x.flatten().view(torch.uint8) for x in (got[name], tensor.contiguous())]
        assert torch.equal(*bits), name


def named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net/weights/{name}": tensor for name, tensor in weights.items()}


def test_fixtures_are_from_the_default_checkpoint():
    assert helpers.CHECKPOINT == CHECKPOINT


def test_tensors_and_config_are_read_as_they_were_written(path):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])
    tensors = {f"{dtype}": torch.arange(12).reshape(3, 4).to(dtype) for dtype in (torch.uint8, torch.int8, torch.int64)}
    tensors |= {
        f"{dtype}": special.to(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    tensors |= {"number": torch.tensor(7), "nothing": torch.zeros(0, 3), "not contiguous": torch.rand(5, 4).T}
    write(path, tensors, CONFIG)
    got, config = read(path)
    assert_same(got, tensors)
    assert config == CONFIG
    assert list(config) == list(CONFIG)


def test_zeros_take_no_space(path):
    write(path, {"x": torch.eye(1000)}, {})
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("seed", [0, 20, 2**31])
def test_drawn_weights_are_read_to_the_bit(path, seed):
    """And the seed is what takes their place: the file is a third of the weights' size at most."""
    weights = scramble(network(), seed).state_dict()
    write(path, {"net": Drawn(seed, weights), "x": torch.ones(2)}, {})
    assert_same(read(path)[0], {**named(weights), "x": torch.ones(2)})
    assert path.stat().st_size < sum(tensor.nbytes for tensor in weights.values()) / 3


@given(st.integers(0, 2**32), st.lists(st.integers(1, 80), min_size=1, max_size=8))
def test_weights_of_any_shapes_are_read_to_the_bit(tmp_path_factory, seed, counts):
    path = tmp_path_factory.mktemp("any") / f"case{SUFFIX}"
    module = nn.ParameterList([nn.Parameter(torch.empty(count)) for count in counts])
    weights = scramble(module, seed).state_dict()
    write(path, {"net": Drawn(seed, weights)}, {})
    assert_same(read(path)[0], named(weights))


def test_weights_that_the_seed_does_not_give_are_stored_whole(path):
    weights = scramble(network(), 5).state_dict() | {"to_q.bias": torch.full((50,), torch.nan)}
    for seed in (5, 6):
        write(path, {"net": Drawn(seed, weights)}, {})
        assert_same(read(path)[0], named(weights))


def test_the_same_contents_give_the_same_bytes(path):
    contents = {"net": Drawn(1, scramble(network(), 1).state_dict()), "b": torch.ones(3), "a": torch.zeros(2)}
    write(path, contents, CONFIG)
    first = path.read_bytes()
    write(path, contents, CONFIG)
    assert path.read_bytes() == first


def test_a_generator_that_draws_other_numbers_is_noticed(path):
    write(path, {"net": Drawn(1, scramble(network(), 1).state_dict())}, {})
    data = lzma.decompress(path.read_bytes())
    assert data.count(rb"\"seed\": 1,") == 1
    path.write_bytes(lzma.compress(data.replace(rb"\"seed\": 1,", rb"\"seed\": 2,")))
    with pytest.raises(ValueError, match="the weights of 'net' are not those that seed 2 gave"):
        read(path)
