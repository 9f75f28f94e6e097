"""The CLIP model that scores clips."""

from __future__ import annotations

from pathlib import Path

import torch


class Scorer:
    """A CLIP."""

    name: str
    digests: dict[str, str]
    comparable: bool

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device = "cpu") -> Scorer:
        """Load it."""
        raise NotImplementedError
