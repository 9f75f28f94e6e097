"""The tables of kinds: a row that does not fit is refused, and code that does not keep its promise is answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from helpers import CHECKPOINT

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS, NOISE_MODELS, AttentionKind, NoiseModel
from zs2.models.temporal import SelfAttention, momentum


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


@pytest.fixture
def added() -> Iterator[object]:
    """Adds rows, and takes them out again."""
    rows: list[tuple[object, str]] = []

    def add(table: object, row: object) -> None:
        table.add(row)
        rows.append((table, row.name))

    yield add
    for table, name in rows:
        table.remove(name)


def test_a_name_has_one_row() -> None:
    with pytest.raises(ValueError, match="there is a noise model 'iid' already"):
        NOISE_MODELS.add(NoiseModel("iid", "again", "zs2.noise.models:iid"))


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (ATTENTION_KINDS, AttentionKind("other", "", SelfAttention, {"alpha": 0.3})),
        (ATTENTION_KINDS, AttentionKind("other", "", SelfAttention, {"theta": 0.3})),
        (NOISE_MODELS, NoiseModel("other", "", "zs2.noise.models:iid", {"mu": 0.3})),
    ],
)
def test_a_parameter_of_the_other_table_or_of_none_is_refused(table, row) -> None:
    """Two values of one name could not both be recorded, nor replayed."""
    with pytest.raises(ValueError, match=r"'other' has the parameter '(alpha|theta|mu)', which PARAMETERS does not"):
        table.add(row)
    assert "other" not in table


@pytest.mark.parametrize("implementation", [None, dict, "zs2.noise.models:iid"])
def test_a_row_without_a_kind_of_attention_raises(added, implementation) -> None:
    added(ATTENTION_KINDS, AttentionKind("empty", "", implementation))
    with pytest.raises(InputError, match=r"attention kind 'empty' names .*: expected a subclass of Momentum"):
        momentum("empty")


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda draws: iter([draws(0)()]), "noise 'wrong' ended after 1 frames of 3"),
        (lambda draws: (draws(i)()[:, :2] for i in itertools.count()), "noise 'wrong' is torch.float32 .*: expected"),
        (lambda draws: (draws(i)().double() for i in itertools.count()), "noise 'wrong' is torch.float64"),
    ],
)
def test_noises_that_are_wrong_or_too_few_are_errors(added, model, generate, message) -> None:
    added(NOISE_MODELS, NoiseModel("wrong", "", generate))
    with pytest.raises(InputError, match=message):
        model.variant(noise="wrong").latents("rose", frames=3, steps=1)
    with pytest.raises(InputError, match=message):
        model.variant(noise="wrong").plan(Request("rose", frames=3, steps=1)).initial_noise()


def test_a_plan_says_its_memory(model) -> None:
    plan = model.plan(Request("rose", frames=3, steps=1))
    assert plan.memory.total > plan.memory.weights > 0
    assert torch.equal(plan.initial_noise()[0], next(plan.noises()))
