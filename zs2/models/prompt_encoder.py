"""Encode prompts as conditions of the UNet: with one text tower in SD 1 and 2, with two in SDXL."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zs2.models.clip import TextEncoder
from zs2.models.tokenizer import Tokenizer

CACHE_SIZE = 64  # the number of texts whose encoding is kept


@dataclass(frozen=True)
class Encoded:
    """Encoded texts, one per row: the context of cross-attention (rows, n, c), and in SDXL pooled text (rows, p)."""

    context: Tensor
    pooled: Tensor | None


class PromptEncoder:
    """The text towers of a model with their tokenizers.

    SD 1 and 2 use the last hidden states of their tower. SDXL (Podell et al. 2023, arXiv 2307.01952, section 2.1)
    concatenates the penultimate hidden states of both towers, and also uses the second tower's embedding of the whole
    text.

    Args:
        towers: (text encoder, tokenizer) pairs: one, or two for SDXL.
        zero_empty: whether an empty negative prompt is zeros instead of an encoded empty text, as SDXL was trained.
    """

    def __init__(self, towers: Sequence[tuple[TextEncoder, Tokenizer]], zero_empty: bool = False) -> None:
        self.towers, self.zero_empty = list(towers), zero_empty
        self.embeddings: list[str] = []  # the tokens that were added
        self._unchecked: list[str] = []  # those of which it is not known whether a prompt has them
        self._known: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    @property
    def encoders(self) -> list[TextEncoder]:
        """The text encoders, without their tokenizers."""
        return [encoder for encoder, _ in self.towers]

    @property
    def width(self) -> int:
        """The width of the context, c."""
        return sum(encoder.config.hidden_size for encoder in self.encoders)

    @property
    def pooled_width(self) -> int:
        """The width of the pooled text, p; 0 if the model has none."""
        return self.encoders[-1].config.projection_dim if len(self.towers) > 1 else 0

    @property
    def most_skipped(self) -> int:
        """The largest clip skip: at least the embeddings of the tokens are left, in every tower."""
        return min(encoder.config.num_hidden_layers for encoder in self.encoders) - (len(self.towers) > 1)

    def add(self, token: str, vectors: Sequence[Tensor]) -> None:
        """Add a token with vectors (n, c) for each tower. Raises: InputError as `Tokenizer.add` does."""
        for (encoder, tokenizer), rows in zip(self.towers, vectors, strict=True):
            tokenizer.add(token, len(rows))
            encoder.add_tokens(rows)
        self.embeddings.append(token)
        self._unchecked.append(token)
        self._known.clear()

    def warn_of_unused(self, texts: Sequence[str]) -> None:
        """Warn of tokens that were added and that none of these texts has. Each token is checked once, by the first
        texts: a command gives all of its own."""
        used = {token for _, tokenizer in self.towers for text in texts for token in tokenizer.used(text)}
        unused, self._unchecked = [token for token in self._unchecked if token not in used], []
        if unused:
            warnings.warn(f"no prompt has {', '.join(map(repr, unused))}: the embedding has no effect", stacklevel=4)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], negatives: Sequence[str] = (), clip_skip: int = 0) -> Encoded:
        """Encode texts, one per row, negative prompts first. Each text is encoded once.

        clip_skip: the number of last layers that the prompts, but not the negative ones, do without, as in diffusers.
        Warns of a text that is too long.
        """
        rows = [self._zeros() if self.zero_empty and not text else self._encode(text) for text in negatives]
        rows += [self._encode(text, clip_skip) for text in prompts]
        context, pooled = zip(*rows, strict=True)
        return Encoded(torch.stack(context), None if pooled[0] is None else torch.stack(pooled))

    def _encode(self, text: str, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Encode a text alone, so that no bit of its encoding depends on the texts that were encoded before."""
        key = text, skip
        if key not in self._known:
            while len(self._known) >= CACHE_SIZE:
                del self._known[next(iter(self._known))]
            ids = [
                tokenizer.encode([tokenizer.expand(text)]).to(encoder.text_model.final_layer_norm.weight.device)
                for encoder, tokenizer in self.towers
            ]
            if len(self.towers) == 1:
                self._known[key] = self.encoders[0](ids[0], skip)[0], None
            else:
                states = [encoder.before_last(one, skip) for encoder, one in zip(self.encoders, ids, strict=True)]
                pooled = states[-1][1]
                self._known[key] = (
                    torch.cat([state for state, _ in states], dim=-1)[0],
                    None if pooled is None else pooled[0],
                )
        return self._known[key]

    def _zeros(self) -> tuple[Tensor, Tensor | None]:
        context, pooled = self._encode("")
        return torch.zeros_like(context), None if pooled is None else torch.zeros_like(pooled)
