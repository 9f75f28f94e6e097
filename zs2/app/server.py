"""Serving the page: its looks, and that nothing but this machine is asked for anything. It needs Gradio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from zs2.app.page import Page
from zs2.app.studio import Studio
from zs2.errors import InputError

ASSETS = files("zs2.app") / "assets"
FAVICON = (
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='4' fill='%231f5fa8'/><circle cx='4' cy='8' r='2' fill='%23fff' opacity='.5'/>"
    "<circle cx='8' cy='8' r='2' fill='%23fff' opacity='.75'/><circle cx='12' cy='8' r='2' fill='%23fff'/></svg>\">"
)
# A browser that shows the page asks no other host for anything, whatever Gradio's page says.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
Message = MutableMapping[str, Any]


class Policy:
    """ASGI middleware: the content security policy in every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        """Pass a request on."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


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
    bytes_max: str,
) -> tuple[Callable[[], object], str]:
    """Load the first model, and serve the page in threads of their own.

    Args: root: the folder of visitors' files. visitors: who may enter, with passwords; None for everybody.
    Returns: a function that ends it, and the page's address.
    Raises: InputError for a model that can't be loaded, and for a host or a port that can't be had.
    """
    page = Page(studio, root).blocks
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
            footer_links=[],
            app_kwargs={"middleware": [_middleware()], "docs_url": None, "redoc_url": None},
            theme=theme(),
            css=(ASSETS / "page.css").read_text(encoding="utf-8"),
            head=f"{FAVICON}<script>{script}</script>",
        )
    except OSError as error:
        raise InputError(f"--host {host}, --port {port}: can't be served there ({error}): choose others") from error
    return page.close, address


def _middleware() -> Any:
    from starlette.middleware import Middleware

    return Middleware(Policy)
