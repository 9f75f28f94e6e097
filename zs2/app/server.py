"""Serving the page: its looks, and that nothing but this machine is asked for anything. It needs Gradio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils

from zs2.app.page import Page
from zs2.app.studio import Studio
from zs2.errors import InputError

ASSETS = files("zs2.app") / "assets"
FAVICON = (
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='4' fill='%231f5fa8'/><circle cx='4' cy='8' r='2' fill='%23fff' opacity='.5'/>"
    "<circle cx='8' cy='8' r='2' fill='%23fff' opacity='.75'/><circle cx='12' cy='8' r='2' fill='%23fff'/></svg>\">"
)
HEADERS = [  # of every answer
    # A browser that shows the page asks no other host for anything, whatever Gradio's page says.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'; "
        b"form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
]
BODY_MAX = 2**20  # bytes of a request that is no upload
FILES_MAX = 2**32  # bytes of visitors' files together
UPLOAD_SECONDS = 1800  # that an upload may take: until then it keeps its room
THREADS = 40  # at least
SESSIONS = 256  # of visitors whose last values Gradio keeps
Message = MutableMapping[str, Any]


class Guard:
    """ASGI middleware: HEADERS in every answer, and no request that is larger than the page needs.

    Args: root: the folder of visitors' files. bytes_max: of an upload.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], root: Path, bytes_max: int) -> None:
        self.app, self.root, self.bytes_max = app, root, bytes_max
        self._arriving = 0  # bytes of the uploads that are not finished

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        """Pass a request on, or refuse it."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, text = await self._passed(scope, receive, with_headers)
        if not status:
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await with_headers({"type": "http.response.body", "body": text.encode()})

    async def _passed(self, scope: Message, receive: Any, send: Any) -> tuple[int, str]:
        """Pass a request on. Returns: the status and the reason if it is refused, else (0, "")."""
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:  # without it, the server reads no more than the length
            return 411, "expected a request with its length"
        length = int(headers.get(b"content-length", 0))
        upload = scope["path"].rstrip("/").endswith("/upload")
        if length > (self.bytes_max + BODY_MAX if upload else BODY_MAX):
            return 413, f"the request has {length} bytes: expected less"
        if not upload:
            await self.app(scope, receive, send)
            return 0, ""
        self._arriving += length
        arriving = self._arriving  # before the files are counted: what is finished meanwhile may count twice, not never
        try:
            if arriving + await asyncio.to_thread(stored, self.root) > FILES_MAX:
                return 507, "the files of visitors take all the room that they may: try again in some hours"
            async with asyncio.timeout(UPLOAD_SECONDS) as limit:
                await self.app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():  # one of the application's own
                raise
            return 408, f"the upload took longer than {UPLOAD_SECONDS} s"
        finally:
            self._arriving -= length
        return 0, ""


def stored(root: Path) -> int:
    """The bytes of the files in a folder and its folders.

    Gradio gives what has arrived a folder. What is in none, and is older than an upload can be, is the rest of one that
    broke off, which Gradio forgets: it is removed.
    """
    total = 0
    for folder, _, names in sorted(os.walk(root)):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = os.lstat(path)
                if folder == os.fspath(root) and time.time() - status.st_mtime > UPLOAD_SECONDS:
                    os.remove(path)
                else:
                    total += status.st_size
    return total


async def _no_address(address: str, cache_dir: str) -> str:
    """In the place of Gradio's function, which loads what a visitor names as a file by an address."""
    raise gr.Error("an address is no file: expected a file that was dropped on the page", print_exception=False)


def theme() -> Any:
    """The looks, as far as Gradio's own parts have them: fonts of the machine, one blue, contrast AA."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return base.set(
        button_primary_background_fill="#1f5fa8",
        button_primary_background_fill_hover="#174a85",
        button_primary_background_fill_dark="#86b6ee",
        button_primary_background_fill_hover_dark="#a9ccf5",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#10161d",
        button_primary_text_color_hover_dark="#10161d",
        block_info_text_color="#57534e",
        block_info_text_color_dark="#b8b3ae",
        block_label_text_color="#44403c",
        block_label_text_color_dark="#d6d3d1",
        block_title_text_color="#1c1917",
        block_title_text_color_dark="#f5f5f4",
        slider_color="#1f5fa8",
        slider_color_dark="#86b6ee",
    )


def serve(
    studio: Studio,
    root: Path,
    host: str,
    port: int | None,
    visitors: Sequence[tuple[str, str]] | None,
    bytes_max: int,
) -> tuple[Callable[[], object], str]:
    """Load the first model, and serve the page in threads of their own.

    Args:
        root: the folder of visitors' files, of which each has at most `bytes_max` bytes.
        visitors: who may enter, with passwords; None for everybody.
    Returns: a function that ends it, and the page's address.
    Raises: InputError for a model that can't be loaded, and for a host or a port that can't be had.
    """
    page = Page(studio, root).blocks
    processing_utils.async_ssrf_protected_download = _no_address
    script = (ASSETS / "film.js").read_text(encoding="utf-8")
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=list(visitors) if visitors else None,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            max_file_size=bytes_max,
            max_threads=max(THREADS, 2 * studio.limits.queue),  # of events at work, of which those in line are some
            state_session_capacity=SESSIONS,
            footer_links=[],
            app_kwargs={"middleware": [_middleware(root, bytes_max)], "docs_url": None, "redoc_url": None},
            theme=theme(),
            css=(ASSETS / "page.css").read_text(encoding="utf-8"),
            head=f"{FAVICON}<script>{script}</script>",
        )
    except OSError as error:
        raise InputError(f"--host {host}, --port {port}: can't be served there ({error}): choose others") from error
    return page.close, address


def _middleware(root: Path, bytes_max: int) -> Any:
    from starlette.middleware import Middleware

    return Middleware(Guard, root=root, bytes_max=bytes_max)
