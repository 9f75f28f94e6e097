"""The names of models for those who see no path of the machine, such as visitors of a page. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from zs2.checkpoints.locate import local_path


def shown_names(models: Iterable[str]) -> dict[str, str]:
    """The names of models, in their order, each with the model: a short name or an id of the hub as it is, of a file or
    a folder its last part. Of two that would be alike, the second has a number."""
    found: dict[str, str] = {}
    for model in dict.fromkeys(models):
        last = model if local_path(model) is None else os.path.basename(os.path.abspath(model))
        name, number = last, 1
        while name in found:
            number += 1
            name = f"{last} ({number})"
        found[name] = model
    return found


def names_of_paths(models: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What stands for a path in a text that names no folder of the machine: the model's name for its own path, nothing
    for the folder around it, unless that is a model, too. models: the names that are shown, each with its model."""
    found: dict[str, str] = {}
    around: dict[str, str] = {}
    for name, model in models:
        if (place := local_path(model)) is not None:
            paths = [Path(model), place, place.absolute(), Path(os.path.abspath(place)), place.resolve()]
            found |= {str(path): name for path in paths if len(path.parts) > 1}
            around |= {str(path.parent): "" for path in paths if path.is_absolute() and path.parent.name}
    return around | found
