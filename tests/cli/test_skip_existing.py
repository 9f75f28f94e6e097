"""Which clips that are there count as made by the settings of today: also those of files from before a setting."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import UNGUIDED

from zs2.cli.replay import ADDED
from zs2.cli.sample_requests import has_clip
from zs2.errors import InputError
from zs2.sampling.request import DEFAULTS, OPTIONS
from zs2.sampling.resume import differences
from zs2.video.encoding import Encoding
from zs2.video.formats import write_apng

# Those that a request left open are as the checkpoint says.
SCHEDULE = {"spacing": "leading", "zero_snr": False, "final_alpha": "first"}
SETTINGS: dict[str, Any] = {
    **{name: [*value] if isinstance(value, tuple) else value for name, value in DEFAULTS.items()},
    **UNGUIDED,
    **SCHEDULE,
    **{name: None for name in ADDED if name not in OPTIONS},
    **{"prompt": "rose", "seed": 1, "width": 4, "height": 4, "fps": 8, "attn": "tma", "mu": 0.5, "compile": False},
    **{"versions": {"zs2": "0.1.0"}, "chunk": 8, "processes": 1, "device": "cpu", "revision": 3},
}
OTHER = {"spacing": "trailing", "zero_snr": True, "final_alpha": "one", "compile": True}
# Another value of each setting that was added later.
OTHERS = {name: OTHER.get(name, "another") for name in ADDED if name != "revision"}


def saved(folder: Path, settings: dict[str, Any]) -> Path:
    """A clip of before with these settings, whatever they say of its file."""
    write_apng(np.zeros((1, 4, 4, 3), np.uint8), Encoding(), json.dumps(settings), folder / "c.png")
    return folder / "c.png"


def asked(settings: dict[str, Any]) -> Any:
    """What has the options of a request, which leaves to the checkpoint what SCHEDULE has."""
    return SimpleNamespace(**settings | {name: None for name in SCHEDULE if settings[name] == SCHEDULE[name]})


def there(path: Path, settings: dict[str, Any], *, overwrite: bool = False) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return has_clip(path, settings, asked(settings), overwrite=overwrite)


def test_a_clip_from_before_all_that_was_added_is_the_clip_of_their_defaults(tmp_path: Path) -> None:
    old = {name: value for name, value in SETTINGS.items() if name not in ADDED} | {"revision": 3}
    assert len(old) < len(SETTINGS) - 20
    assert there(saved(tmp_path, old), SETTINGS)
    assert there(tmp_path / "c.png", SETTINGS, overwrite=True)
    assert differences(old | SCHEDULE, SETTINGS) == ""


@pytest.mark.parametrize("name", OTHERS)
def test_a_clip_from_before_a_setting_is_no_clip_of_another_value(tmp_path: Path, name: str) -> None:
    old = {key: value for key, value in SETTINGS.items() if key != name}
    now = SETTINGS | {name: OTHERS[name]}
    path = saved(tmp_path, old)
    with pytest.raises(InputError, match=f"made with another {name}: expected the same"):
        there(path, now)
    assert not there(path, now, overwrite=True)
    assert differences(old, now).startswith(f"{name} ")


@pytest.mark.parametrize("more", [{"frozen": True}, {"of tomorrow": 1}, {"quality": 5}], ids=str)
def test_a_setting_that_is_not_known_is_another_clip(tmp_path: Path, more: dict[str, Any]) -> None:
    path = saved(tmp_path, SETTINGS | more)
    with pytest.raises(InputError, match=f"made with another {next(iter(more))}: expected the same"):
        there(path, SETTINGS)
    assert not there(path, SETTINGS, overwrite=True)


@pytest.mark.parametrize("name", ["versions", "chunk", "processes", "device"])
def test_what_changes_last_bits_only_is_not_compared(tmp_path: Path, name: str) -> None:
    assert there(saved(tmp_path, SETTINGS | {name: "other"}), SETTINGS)


@pytest.mark.parametrize("recorded", [{}, {"revision": 4}], ids=str)
def test_a_clip_of_another_revision_stays_with_a_warning(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = saved(tmp_path, {name: value for name, value in SETTINGS.items() if name != "revision"} | recorded)
    words = "revision 4" if recorded else "no revision"
    with pytest.warns(UserWarning, match=f"was made by {words}.* of what zs2 computes, now it is revision 3"):
        assert has_clip(path, SETTINGS, asked(SETTINGS), overwrite=False)
    assert not there(path, SETTINGS, overwrite=True)
