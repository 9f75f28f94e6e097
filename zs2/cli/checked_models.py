"""Check models and ControlNets by their names and files, before their weights are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.controlnets import check_controlnet
from zs2.errors import InputError
from zs2.system.devices import choose_device, choose_dtype


def check_models(models: Sequence[str], controls: Sequence[str], loading: dict[str, Any]) -> None:
    """Check that models and ControlNets are there. No weights are loaded; what is on the hub is fetched.

    Args: loading: device and dtype, as `ZS2.from_pretrained` takes them.
    Raises: InputError for one that is not there, lacks a file, or is something else, and for a ControlNet that fits
        none of the models.
    """
    device, dtype = choose_device(loading["device"]), choose_dtype(loading["dtype"])
    found = []
    for name in models:
        with _naming(name):
            found.append(Checkpoint(name, dtype, device))
    for name in controls:
        with _naming(name):
            check_controlnet(name, found)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error of a model says which one."""
    try:
        yield
    except InputError as error:
        if name in str(error):
            raise
        raise InputError(f"{name}: {error}") from error
