"""Encode prompts as conditions of the UNet: with one text tower in SD 1 and 2, with two in SDXL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from zs2.errors import InputError, check_texts, warn
from zs2.models.clip import TextEncoder
from zs2.models.tokenizer import Tokenizer

CACHE_SIZE = 64  # the number of texts whose encoding is kept

# A plain text, or sections of texts with weights, as `zs2.sampling.prompt_syntax.parse` returns them.
Text: TypeAlias = str | tuple[tuple[tuple[str, float], ...], ...]
Chunk: TypeAlias = tuple[list[int], list[float]]  # the ids and weights of what one call of a tower reads


@dataclass(frozen=True)
class Encoded:
    """Encoded texts, one per row: the context of cross-attention (rows, n, c), and in SDXL pooled text (rows, p)."""

    context: Tensor
    pooled: Tensor | None

    def rows(self, numbers: Sequence[int]) -> Encoded:
        """Some of the rows."""
        context = torch.stack([self.context[number] for number in numbers])  # an index of a list would wait for a GPU
        return Encoded(context, None if self.pooled is None else torch.stack([self.pooled[n] for n in numbers]))


class PromptEncoder:
    """The text towers of a model with their tokenizers.

    SD 1 and 2 use the last hidden states of their tower. SDXL (Podell et al. 2023, arXiv 2307.01952, section 2.1)
    concatenates the penultimate hidden states of both towers, and also uses the second tower's embedding of the whole
    text.

    A text with weights, as A1111's web UI has it: every section is cut into chunks of as many tokens as a tower reads,
    each encoded on its own, and their contexts are concatenated. In a chunk with a weight other than 1 the hidden
    states of each token are multiplied by its weight, and all of them by one number that restores their mean. The
    pooled text of SDXL is that of the first chunk.

    Args:
        towers: (text encoder, tokenizer) pairs: one, or two for SDXL.
        zero_empty: whether an empty negative prompt is zeros instead of an encoded empty text, as SDXL was trained.
    """

    def __init__(self, towers: Sequence[tuple[TextEncoder, Tokenizer]], zero_empty: bool = False) -> None:
        self.towers, self.zero_empty = list(towers), zero_empty
        self.embeddings: list[str] = []  # the tokens that were added
        self._unchecked: list[str] = []  # those of which it is not known whether a prompt has them
        self._known: dict[tuple[Text, int], tuple[Tensor, Tensor | None]] = {}

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
            warn(f"no prompt has {', '.join(map(repr, unused))}: the embedding has no effect")

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Text], negatives: Sequence[Text] = (), clip_skip: int = 0, chunks: int = 1
    ) -> Encoded:
        """Encode texts, one per row, negative prompts first. Each text is encoded once.

        Args:
            clip_skip: the number of last layers that the prompts, but not the negative ones, do without, as in
                diffusers.
            chunks: the number of chunks of each row: shorter texts are followed by empty ones.
        Raises: InputError for what is no list of texts, such as one text, and for no text.
        Warns of a plain text that is too long.
        """
        for texts in (prompts, negatives):
            check_texts(texts, (str, tuple))
        rows = [self._row(text, 0, chunks, zero=self.zero_empty and text in ("", ((),))) for text in negatives]
        rows += [self._row(text, clip_skip, chunks) for text in prompts]
        if not rows:
            raise InputError("no text to encode: expected one at least")
        context, pooled = zip(*rows, strict=True)
        return Encoded(torch.stack(context), None if pooled[0] is None else torch.stack(pooled))

    def chunks(self, text: Text) -> int:
        """The number of chunks of a text; of a plain one it is 1."""
        return 1 if isinstance(text, str) else max(len(_chunks(text, tokenizer)) for _, tokenizer in self.towers)

    def _row(self, text: Text, skip: int, chunks: int, zero: bool = False) -> tuple[Tensor, Tensor | None]:
        """The context (chunks·n, c) of a text, and the pooled text (p) of its first chunk."""
        context, pooled = self._encode(text, skip)
        if missing := chunks - self.chunks(text):
            context = torch.cat([context, *[self._encode("", skip)[0]] * missing])
        if zero:
            return torch.zeros_like(context), None if pooled is None else torch.zeros_like(pooled)
        return context, pooled

    def _encode(self, text: Text, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Encode a text alone, so that no bit of its encoding depends on the texts that were encoded before."""
        key = text, skip
        if key not in self._known:
            while len(self._known) >= CACHE_SIZE:
                del self._known[next(iter(self._known))]
            read: list[list[Chunk]] = [
                [(tokenizer.encode([tokenizer.expand(text)])[0].tolist(), [])]
                if isinstance(text, str)
                else _chunks(text, tokenizer)
                for _, tokenizer in self.towers
            ]
            most = max(map(len, read))
            for (_, tokenizer), chunks in zip(self.towers, read, strict=True):
                chunks += _chunks(((),), tokenizer) * (most - len(chunks))
            parts = [self._chunk(chunks, skip) for chunks in zip(*read, strict=True)]
            self._known[key] = torch.cat([context for context, _ in parts]), parts[0][1]
        return self._known[key]

    def _chunk(self, read: Sequence[Chunk], skip: int) -> tuple[Tensor, Tensor | None]:
        """The context (n, c) of one chunk, as each tower reads it, and its pooled text (p)."""
        contexts, pooled = [], None
        for encoder, (ids, weights) in zip(self.encoders, read, strict=True):
            row = torch.tensor([ids], device=encoder.text_model.final_layer_norm.weight.device)
            if len(self.towers) == 1:
                states = encoder(row, skip)[0]
            else:
                states, pooled = encoder.before_last(row, skip)
                states, pooled = states[0], None if pooled is None else pooled[0]
            contexts.append(_weighted(states, weights))
        return torch.cat(contexts, dim=-1), pooled


def _chunks(sections: Sequence[Sequence[tuple[str, float]]], tokenizer: Tokenizer) -> list[Chunk]:
    """The chunks of a text with weights, each with start, end and padding, of weight 1."""
    room = tokenizer.max_length - 2
    found: list[tuple[list[int], list[float]]] = []
    for section in sections:
        found.append(([], []))
        for text, weight in section:
            for group in tokenizer.groups(text):
                if len(found[-1][0]) + len(group) > room:
                    found.append(([], []))
                found[-1][0].extend(group)
                found[-1][1].extend([weight] * len(group))
    if len(found) > 1 and not found[-1][0]:
        found.pop()  # nothing follows the last BREAK
    chunks = []
    for ids, weights in found:
        framed = tokenizer.framed(ids)
        before = 1 if tokenizer.padding_side == "right" else len(framed) - len(ids) - 1
        chunks.append((framed, [1.0] * before + weights + [1.0] * (len(framed) - before - len(ids))))
    return chunks


def _weighted(states: Tensor, weights: Sequence[float]) -> Tensor:
    """The states (n, c) of a chunk with weights (n) other than 1: scaled, and their mean restored.

    Raises: InputError for weights that leave no mean.
    """
    if all(weight == 1 for weight in weights):
        return states
    scaled = states.float() * torch.tensor(weights, device=states.device)[:, None]
    before, after = (one.cpu().double().mean() for one in (states, scaled))  # near 0: float32 would lose digits
    scaled = scaled * float(before / after)
    if not scaled.isfinite().all():
        raise InputError("the weights of the prompt cancel each other: the mean of its context is 0; change one")
    return scaled.to(states.dtype)
