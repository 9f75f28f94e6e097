"""Some damaged inputs of every kind of file (`make test-long`), and in `make test-slow` thousands: see fuzzing.py."""

from __future__ import annotations

from random import SystemRandom

import pytest
from fuzzing import KINDS, fuzz

SLOW = 2000
SEED = 19  # of the quick ones: the same in every run


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_stranger_s_file_is_read_or_refused(tmp_path, kind):
    _, faults, _ = fuzz(kind, kind.quick, SEED, tmp_path)
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_thousands_of_strangers_files(tmp_path, kind):
    seed = SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    total, faults, worst = fuzz(kind, SLOW, seed, tmp_path)
    assert faults == [], f"{total}, {worst}"
