"""A server of the page, a browser, and visitors: what the tests of the page begin with."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKPOINT, SIDE
from visiting import SECONDS, WIDE, Server

NAMES = ("chromium", "chromium-browser", "google-chrome")
GRADIOS_OWN = "Method not implemented."  # a warning of Gradio's script at every upload


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are there, but can't be read."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_text("no weights")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, broken: Path) -> Iterator[Server]:
    pytest.importorskip("gradio", reason="pip install -e '.[app]', or make test-page")
    limits = ("--max-frames", "8", "--max-steps", "40", "--max-size", str(SIDE), "--queue", "4")
    server = Server(tmp_path_factory.mktemp("server"), "--models", str(CHECKPOINT), str(broken), *limits)
    yield server
    assert server.end() == 128 + signal.SIGINT
    assert "BLOCKED" not in server.text
    assert "Traceback" not in server.text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(f"no browser found (looked for {', '.join(NAMES)}): apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Opens the page as a visitor of its own. At the end nothing was wrong, and nobody else was asked for anything."""
    contexts, wrong, addresses = [], [], []

    def visit(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(SECONDS)
        tab.on("console", lambda message: message.text != GRADIOS_OWN and wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: addresses.append(request.url))
        tab.goto(server.address)
        tab.get_by_role("button", name="Make a clip").wait_for()
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []
    assert {url for url in addresses if not url.startswith((server.address, "data:", "blob:"))} == set()
