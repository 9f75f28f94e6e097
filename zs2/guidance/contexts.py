"""Contexts that are given instead of prompts: what the text encoders would make of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zs2.errors import InputError
from zs2.models.image_model import ImageModel
from zs2.models.prompt_encoder import Encoded


def checked_context(model: ImageModel, name: str, value: Tensor | Encoded, most: int | None) -> Encoded:
    """A context as the model reads it: (rows, n, c), and for SDXL the pooled text (rows, p), on its device.

    Args: name: for messages. value: a tensor (n, c) or (rows, n, c), or an `Encoded`. most: of the rows; None: any.
    Raises: InputError for a context that this model can't read, or with more rows.
    """
    context, pooled = (value, None) if isinstance(value, Tensor) else (value.context, value.pooled)
    context = context[None] if context.ndim == 2 else context
    text, tokens = model.text, tokens_of(model)
    if context.ndim != 3 or not context.numel() or context.shape[1] % tokens or context.shape[2] != text.width:
        want = f"(rows, {tokens}·k, {text.width})"
        raise InputError(f"{name} is {tuple(context.shape)}: expected {want}, as this model's text encoders make")
    if most is not None and len(context) > most:
        raise InputError(f"{name} has {len(context)} rows: expected from 1 to {most} (give more frames?)")
    shape, wanted = None if pooled is None else tuple(pooled.shape), (len(context), text.pooled_width)
    if shape != (wanted if text.pooled_width else None):
        raise InputError(
            f"the pooled text of {name} is {shape}: expected {wanted if text.pooled_width else None}, as model.text "
            "returns it with a context"
        )
    for part in (context, pooled):
        if part is not None and not (part.is_floating_point() and part.isfinite().all()):
            raise InputError(f"{name}: expected floating-point numbers, none of them NaN or infinite")
    device, dtype = model.device, model.dtype
    return Encoded(context.to(device, dtype), None if pooled is None else pooled.to(device, dtype))


def tokens_of(model: ImageModel) -> int:
    """The tokens of a chunk of text."""
    return model.text.encoders[0].config.max_position_embeddings


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The rows of several contexts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Encoded(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)
