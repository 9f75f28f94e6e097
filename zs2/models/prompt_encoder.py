"""From prompts to what the UNet is conditioned on: by one text tower in SD 1 and 2, by two in SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.models.clip import TextEncoder
from zs2.models.tokenizer import Tokenizer

REMEMBERED = 64  # texts whose encoding is kept


@dataclass(frozen=True)
class Encoded:
    """Encoded texts, a row each: context of the cross-attentions (rows, n, c) and, in SDXL, pooled text (rows, p)."""

    context: Tensor
    pooled: Tensor | None


class PromptEncoder:
    """The text towers of a model with their tokenizers.

    SD 1 and 2 read the tower's last states. SDXL (Podell et al. 2023, arXiv 2307.01952, section 2.1) reads the states
    of the last layer but one of both towers, side by side, and the second tower's embedding of the whole text.

    Args:
        towers: (text encoder, tokenizer), one, or for SDXL two.
        zero_empty: whether an empty negative prompt is zeros instead of an encoded empty text, as SDXL was trained.
    """

    def __init__(self, towers: Sequence[tuple[TextEncoder, Tokenizer]], zero_empty: bool = False) -> None:
        self.towers, self.zero_empty = list(towers), zero_empty
        self._known: dict[str, tuple[Tensor, Tensor | None]] = {}

    @property
    def encoders(self) -> list[TextEncoder]:
        """The towers alone."""
        return [encoder for encoder, _ in self.towers]

    @property
    def width(self) -> int:
        """Of the context, c."""
        return sum(encoder.config.hidden_size for encoder in self.encoders)

    @property
    def pooled_width(self) -> int:
        """Of the pooled text, p; 0 without."""
        return self.encoders[-1].config.projection_dim if len(self.towers) > 1 else 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Encoded:
        """Encode texts, negative prompts first: one a row, each text once. Warns of a text that is too long."""
        rows = [self._zeros() if self.zero_empty and not text else self._encode(text) for text in negatives]
        rows += [self._encode(text) for text in prompts]
        context, pooled = zip(*rows, strict=True)
        return Encoded(torch.stack(context), None if pooled[0] is None else torch.stack(pooled))

    def _encode(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Each text alone, so that its encoding does not depend on what was asked for before, to the last bit."""
        if text not in self._known:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            ids = [
                tokenizer.encode([text]).to(encoder.text_model.final_layer_norm.weight.device)
                for encoder, tokenizer in self.towers
            ]
            if len(self.towers) == 1:
                self._known[text] = self.encoders[0](ids[0])[0], None
            else:
                states = [encoder.before_last(one) for encoder, one in zip(self.encoders, ids, strict=True)]
                pooled = states[-1][1]
                self._known[text] = (
                    torch.cat([state for state, _ in states], dim=-1)[0],
                    None if pooled is None else pooled[0],
                )
        return self._known[text]

    def _zeros(self) -> tuple[Tensor, Tensor | None]:
        context, pooled = self._encode("")
        return torch.zeros_like(context), None if pooled is None else torch.zeros_like(pooled)
