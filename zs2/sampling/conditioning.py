"""The conditions of the networks in a step: text, SDXL's added conditions, and an editing model's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.guidance.contexts import checked_context, joined, tokens_of
from zs2.guidance.edits import image_channels, is_guided
from zs2.guidance.sources import SourceLatents
from zs2.guidance.steering import ReadText
from zs2.models.attention import TextKV
from zs2.models.image_model import ImageModel
from zs2.models.prompt_encoder import Encoded, Text
from zs2.sampling.prompt_syntax import A1111, Blend, most_contexts, parse
from zs2.sampling.request import Request

Shown: TypeAlias = str | Blend | int  # what a frame shows: a text, one between two, or a row of a context


@dataclass(frozen=True)
class Conditions:
    """The conditions of one call of the UNet.

    Args:
        branches: the number of guidance branches: 1 or 2, or 3 for an editing model. That of the prompt is the last.
        text: keys and values of each cross-attention, one row per branch, or one per branch and frame.
        added: SDXL's embedding of pooled text and size, with the rows of `text`; None for other models.
        controls: what each ControlNet reads of the same texts.
        image: an editing model's extra channels, one row per branch and frame; None for other models.
    """

    branches: int
    text: Sequence[TextKV]
    added: Tensor | None = None
    controls: tuple[ReadText, ...] = ()
    image: Tensor | None = None

    def input(self, latents: Tensor) -> Tensor:
        """What the UNet takes: (f, c, h, w) → (branches·f, C, h, w)."""
        x = torch.cat([latents] * self.branches)
        return x if self.image is None else torch.cat([x, self.image], dim=1)


class PickedRows(Sequence[TextKV]):
    """Keys and values of a few texts, as one text per row. The rows of a layer are picked when that layer is read."""

    def __init__(self, layers: Sequence[TextKV], rows: Tensor) -> None:
        self.layers, self.rows = layers, rows

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> TextKV:  # type: ignore[override]
        keys, values = self.layers[layer]
        return keys[self.rows], values[self.rows]


def picked(read: ReadText, rows: Tensor) -> ReadText:
    """Some rows of what a network reads."""
    return ReadText(PickedRows(read.text, rows), None if read.added is None else read.added[rows])


class Conditioning:
    """The conditions of a clip. Each text is encoded and projected once.

    A text that comes back after others is projected again. To keep the keys and values of all texts would take much
    memory (8 MB per prompt in SD 1.5) and save little time.

    Args:
        size: height and width in pixels, which SDXL uses.
        edited: the latents that an editing model edits; None for other models.
    """

    def __init__(
        self, model: ImageModel, request: Request, size: tuple[int, int], edited: SourceLatents | None = None
    ) -> None:
        self.model, self.request, self.size, self.edited = model, request, size, edited
        self.chunks = chunks(model, request)
        self.context, self.negative = own_contexts(model, request)
        self._texts: list[Shown] | None = None
        self._networks = (model.unet, *(model.controls if request.control else ()))
        self._projected: list[ReadText] = []  # of each network
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def frames(self, first: int, count: int, guidance: float) -> Conditions:
        """The conditions of `count` frames from the frame `first` on, in a step with this guidance.

        At guidance 1, which is also the guidance outside its interval, there is only the branch of the prompt. At
        guidance 0 there is only that of the negative prompt. An editing model has two of the negative prompt, or none.
        """
        conditions = self._of_text(first, count, guidance)
        if self.edited is None:
            return conditions
        return replace(conditions, image=image_channels(self.edited.frames(first, count), conditions.branches))

    def _of_text(self, first: int, count: int, guidance: float) -> Conditions:
        prompts = self._shown(first, count) if guidance != 0 else []
        texts = list(dict.fromkeys(prompts))
        has_negative = self.request.guidance != 1  # true if any step uses it: its row comes before the others
        projected = self._project(texts, has_negative)
        negatives = int(guidance != 1)
        if self.edited is not None:
            negatives = 2 * is_guided(guidance, self.request.image_guidance)
        branches = negatives + bool(texts)
        if len(texts) > 1 or negatives != has_negative:  # else at most one prompt, and all projected rows are needed
            each = count if len(texts) > 1 else 1  # rows per branch: one prompt per frame, or one for all
            rows = (*[0] * (negatives * each), *(has_negative + texts.index(prompt) for prompt in prompts[:each]))
            if rows not in self._rows:
                self._rows[rows] = torch.tensor(rows, device=self.model.device)
            projected = [picked(one, self._rows[rows]) for one in projected]
        return Conditions(branches, projected[0].text, projected[0].added, tuple(projected[1:]))

    def _shown(self, first: int, count: int) -> list[Shown]:
        """What each frame shows: its prompt, or the number of its row in the context that was given."""
        if self.context is None:
            return [*self.request.prompts(first, count)]
        return [min(frame, len(self.context.context) - 1) for frame in range(first, first + count)]

    def _project(self, texts: list[Shown], has_negative: bool) -> list[ReadText]:
        """What each network reads, keys and values (rows, n, c). The negative prompt has the first row."""
        if not self._projected or self._texts != texts:
            encoded = self._encoded(texts, has_negative)
            self._texts, self._projected = texts, []
            for network in self._networks:
                added = None if encoded.pooled is None else network.added_embedding(encoded.pooled, self.size)
                self._projected.append(ReadText(network.text_keys_values(encoded.context), added))
        return self._projected

    def _encoded(self, texts: list[Shown], has_negative: bool) -> Encoded:
        """The contexts of the negative prompt and of the texts, those that were given as they are."""
        negatives = [self.request.negative_prompt] * (has_negative and self.negative is None)
        prompts = [text for text in texts if not isinstance(text, int)]
        ends = [*dict.fromkeys(end for text in prompts for end in ([text] if isinstance(text, str) else text[:2]))]
        parts = [self.negative] if has_negative and self.negative is not None else []
        if negatives or ends:
            read_texts = (read(ends, self.request), read(negatives, self.request))
            encoded = self.model.text(*read_texts, self.request.clip_skip, self.chunks)
            parts.append(encoded if ends == prompts else interpolated(encoded, ends, prompts))
        if self.context is not None and texts:
            rows = [text for text in texts if isinstance(text, int)]
            parts.append(self.context.rows(rows))
        return joined(parts)


def interpolated(encoded: Encoded, ends: list[str], texts: Sequence[str | Blend]) -> Encoded:
    """The encoded `texts`, interpolated token by token between their ends. Rows before those of `ends` stay.

    In float32, rounded to the type of the contexts.
    """

    def rows(parts: Tensor) -> Tensor:
        first = len(parts) - len(ends)  # rows of negative prompts
        found = [*parts[:first]]
        for text in texts:
            before, after, share = (text, text, 0.0) if isinstance(text, str) else text
            start, end = parts[first + ends.index(before)], parts[first + ends.index(after)]
            found.append(start if share == 0 else torch.lerp(start.float(), end.float(), share).to(parts.dtype))
        return torch.stack(found)

    return Encoded(rows(encoded.context), None if encoded.pooled is None else rows(encoded.pooled))


def read(texts: Sequence[str], request: Request) -> list[Text]:
    """The texts as the request's syntax reads them."""
    return [parse(text) for text in texts] if request.prompt_syntax == A1111 else [*texts]


def own_contexts(model: ImageModel, request: Request) -> tuple[Encoded | None, Encoded | None]:
    """The contexts of the request: that of the prompt and that of the negative prompt. Raises: InputError."""
    context, negative = request.context, request.negative_context
    return (
        None if context is None else checked_context(model, "context", context, request.frames),
        None if negative is None else checked_context(model, "negative_context", negative, 1),
    )


def most_rows(request: Request, frames: int) -> int:
    """How many different contexts so many frames have at most."""
    if request.context is None:
        return most_contexts(request.prompt, frames, request.travel_mode)
    rows = request.context if isinstance(request.context, Tensor) else request.context.context
    return min(len(rows) if rows.ndim == 3 else 1, frames)


def chunks(model: ImageModel, request: Request) -> int:
    """The number of chunks of text of every frame and guidance branch: that of the longest text of the clip.

    Raises: InputError for contexts that this model can't read, and for one that is shorter.
    """
    lengths = [part.context.shape[1] // tokens_of(model) for part in own_contexts(model, request) if part is not None]
    texts = request.texts if request.prompt_syntax == A1111 else []
    most = max([1, *lengths, *(model.text.chunks(text) for text in read([*dict.fromkeys(texts)], request))])
    if any(length < most for length in lengths):
        got, want = min(lengths) * tokens_of(model), most * tokens_of(model)
        raise InputError(f"a context has {got} tokens, another or a prompt {want}: expected equally many")
    return most
