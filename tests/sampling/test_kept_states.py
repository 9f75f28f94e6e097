"""States that are kept elsewhere come back as they were, in one buffer a step."""

from __future__ import annotations

import pytest
import torch
from simulated_device import AVAILABLE, SimTensor, simulated_device
from torch import Tensor

from zs2.sampling.kept_states import TravellingStates

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"torch {torch.__version__} can't take a device from Python")
CPU = torch.device("cpu")


def states(seed: int, *shapes: tuple[int, ...] | None) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    return [None if shape is None else torch.randn(shape, generator=generator) for shape in shapes]


def test_they_come_back_as_they_were() -> None:
    """Of two steps with other shapes, over three chunks; then with half as many branches."""
    first, second = [(2, 3, 4), None, (2, 5, 2)], [None, (2, 1, 3), None]
    with simulated_device():
        device = torch.device("sim", 0)
        kept = TravellingStates(2, device, CPU)
        assert list(kept.take(0)) == list(kept.take(1)) == []
        places = set()
        for chunk in range(3):
            wanted = [states(chunk, *first), states(10 + chunk, *second)]
            for i in range(2):
                kept.keep(i, [None if one is None else one.to(device) for one in wanted[i]])
            for i in range(2):
                for got, want in zip(kept.take(i), wanted[i], strict=True):
                    if want is None:
                        assert got is None
                    else:
                        assert isinstance(got, SimTensor)
                        assert torch.equal(got.cpu(), want)
            places.add(tuple(buffer.data_ptr() for buffer in kept._buffers if buffer is not None))
        assert len(places) == 1  # the same two buffers
        kept.keep(0, [torch.ones(1, 3, 4, device=device), None, None])
        assert torch.equal(kept.take(0)[0].cpu(), torch.ones(1, 3, 4))


def test_without_any_state_nothing_travels() -> None:
    with simulated_device() as crossings:
        kept = TravellingStates(1, torch.device("sim", 0), CPU)
        kept.keep(0, [None, None])
        assert list(kept.take(0)) == [None, None]
    assert not crossings
