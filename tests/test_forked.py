"""Forked commands: a signal that comes early, and children that outlive them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import Forked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def test_a_signal_right_after_the_start_is_not_lost(tmp_path: Path) -> None:
    process = Forked(["-c", "import time; time.sleep(120)"], tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert process.returncode == -signal.SIGINT


def test_the_wait_ends_though_a_child_holds_its_outputs(tmp_path: Path) -> None:
    code = "import os, time\nif os.fork() == 0: open('begun', 'w'); time.sleep(30); os._exit(0)\ntime.sleep(60)"
    process = Forked(["-c", code], tmp_path)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    assert time.monotonic() - start < 30
