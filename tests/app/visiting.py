"""What the tests of the page share: its command in a process of its own, and what a visitor does there."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TESTS
from PIL import Image

ROOT = TESTS.parent
SHOTS = ROOT / "out" / "page"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SECONDS = 120_000  # milliseconds that a clip may take on a busy machine


def free_port() -> int:
    """A port at which nothing listens. Other processes of tests look elsewhere, and what connects gets higher ones."""
    for port in range(10_000 + 100 * (os.getpid() % 200), 32_768):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


class Server:
    """The page's command in a process of its own, with the lines that it printed."""

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        self.log = folder / "log"
        line = [sys.executable, str(TESTS / "app" / "guarded.py"), "--port", str(port), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, cwd=ROOT, env=environment)
        self.address = f"http://127.0.0.1:{port}/"
        end = time.monotonic() + 300  # on a busy machine
        while "the page is at" not in self.text and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        if "the page is at" not in self.text:
            self.process.kill()
            pytest.fail(f"the page did not open: {self.text}")

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Its resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> int:
        """End it as Ctrl-C does. Returns: its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(120)  # on a busy machine
        finally:
            self.process.kill()  # no effect if it has ended


def put(tab: Any, panel: str = "#settings", **settings: float) -> None:
    """Type numbers into controls."""
    for name, value in settings.items():
        tab.locator(f"{panel} .control-{name} input[type=number]").first.fill(str(value))
        tab.keyboard.press("Tab")


def choose(tab: Any, panel: str, name: str, value: str) -> None:
    """Choose from a list."""
    tab.locator(f"{panel} .control-{name} input").first.click()
    tab.get_by_role("option", name=value, exact=True).click()


def status(tab: Any, name: str, words: str) -> str:
    """The status of a tab, when it has these words."""
    place = tab.locator(f"#{name}-status .status", has_text=re.compile(words))
    place.wait_for()
    return place.inner_text()


def make(tab: Any, **settings: float) -> None:
    """Make one clip and wait for its end."""
    put(tab, **settings)
    tab.get_by_role("button", name="Make a clip").click()
    status(tab, "one", "^done$")


def pixels(tab: Any, selector: str) -> tuple[int, np.ndarray]:
    """The index of the frame that a canvas shows, and its pixels (H, W, 3), read at one moment."""
    index, address = tab.evaluate(
        "(selector) => { const c = document.querySelector(selector); return [c.shown.index, c.toDataURL()]; }",
        selector,
    )
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return int(index), np.asarray(picture.convert("RGB"))


def download(tab: Any, name: str, folder: Path) -> Path:
    """The file behind a button."""
    with tab.expect_download() as started:
        tab.locator("#downloads").get_by_text(name, exact=True).click()
    file = folder / started.value.suggested_filename
    started.value.save_as(file)
    return file
