"""zs2: zero-shot video from image diffusion models (ZS², arXiv 2407.21475).

from zs2 import ZS2
clip = ZS2.from_pretrained("weights/emoji128")("strawberry on a sky blue background")
clip.save("berry.gif")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zs2.cli.replay import replay
    from zs2.pipeline import ZS2
    from zs2.sampling.request import FAST, Request
    from zs2.sampling.sampler import Step
    from zs2.video.clip import Clip

from zs2.version import __version__ as __version__

_HOME = {
    "FAST": "zs2.sampling.request",
    "ZS2": "zs2.pipeline",
    "Step": "zs2.sampling.sampler",
    "Request": "zs2.sampling.request",
    "Clip": "zs2.video.clip",
    "replay": "zs2.cli.replay",
}
__all__ = ["FAST", "ZS2", "Clip", "Request", "Step", "replay"]


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first used: `--help` and wrong arguments are then answered without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from zs2.system.collector import without_collector

    with without_collector():
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The API."""
    return [*__all__, "__version__"]
