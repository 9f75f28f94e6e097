"""What the UNet is conditioned on in a step: text, SDXL's added conditions, a ControlNet's residuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.models.attention import TextKV
from zs2.models.image_model import ImageModel
from zs2.models.unet import Residuals
from zs2.sampling.request import Request


@dataclass(frozen=True)
class Conditions:
    """The conditions of one call of the UNet.

    Args:
        branches: of guidance, 1 or 2; the negative prompt's comes first.
        text: keys and values of each cross-attention, a row a branch, or a row a branch and frame.
        added: SDXL's embedding of pooled text and size, rows as the text's; else None.
        residuals: a ControlNet's, a row a branch and frame; else None.
    """

    branches: int
    text: Sequence[TextKV]
    added: Tensor | None = None
    residuals: Residuals | None = None


class PickedRows(Sequence[TextKV]):
    """Keys and values of a few texts as those of one text a row. Each layer's are picked when it is asked for."""

    def __init__(self, layers: Sequence[TextKV], rows: Tensor) -> None:
        self.layers, self.rows = layers, rows

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> TextKV:  # type: ignore[override]
        keys, values = self.layers[layer]
        return keys[self.rows], values[self.rows]


class Conditioning:
    """The conditions of a clip, each text encoded and projected once.

    If a text comes back after others, it is projected anew: to keep the keys and values of all would need far more
    memory (8 MB a prompt in SD 1.5) than it saves time.

    Args: size: height and width in pixels, which SDXL reads.
    """

    def __init__(self, model: ImageModel, request: Request, size: tuple[int, int]) -> None:
        self.model, self.request, self.size = model, request, size
        self._texts: list[str] | None = None
        self._projected: tuple[list[TextKV], Tensor | None] | None = None
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def frames(self, first: int, count: int, guidance: float) -> Conditions:
        """Those of so many frames from the first, in a step of this guidance.

        At guidance 1, also where it has ended, there is only the prompt's branch; at 0 only the negative prompt's.
        """
        prompts = self.request.prompts(first, count) if guidance != 0 else []
        texts = list(dict.fromkeys(prompts))
        has_negative = self.request.guidance != 1  # in some steps, so that it is encoded before the others
        layers, added = self._project(texts, has_negative)
        negatives = int(guidance != 1)
        branches = negatives + bool(texts)
        if len(texts) <= 1 and negatives == has_negative:  # one text, with all of what was projected
            return Conditions(branches, layers, added)
        each = count if len(texts) > 1 else 1  # rows of a branch: a prompt a frame, or one
        rows = (*[0] * (negatives * each), *(has_negative + texts.index(prompt) for prompt in prompts[:each]))
        if rows not in self._rows:
            self._rows[rows] = torch.tensor(rows, device=self.model.device)
        index = self._rows[rows]
        return Conditions(branches, PickedRows(layers, index), None if added is None else added[index])

    def _project(self, texts: list[str], has_negative: bool) -> tuple[list[TextKV], Tensor | None]:
        """Keys and values (rows, n, c) a layer, and SDXL's embedding; the negative prompt's row is the first."""
        if self._projected is None or self._texts != texts:
            encoded = self.model.text(texts, [self.request.negative_prompt] * has_negative)
            unet = self.model.unet
            added = None if encoded.pooled is None else unet.added_embedding(encoded.pooled, self.size)
            self._texts, self._projected = texts, (unet.text_keys_values(encoded.context), added)
        return self._projected
