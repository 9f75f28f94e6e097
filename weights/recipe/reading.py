"""How a UNet that knows captions comes to read instructions, without a training.

The text encoder has never seen "turn it into a", so that what it makes of the words after it is far from what it makes
of a caption: the UNet draws none of the things. But the things differ there, too. So the keys and values of the
cross-attention are found by least squares: an instruction shall do there what a caption of the same content does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from weights.recipe.training import batches
from zs2.models.attention import Attention, attend
from zs2.models.unet import UNet

BATCH, QUERIES = 50, 32  # scenes in a call; queries that are kept of each scene in each layer
RIDGE = 1e-8  # of the least squares, as a share of the mean square: enough to be solvable, too little to matter
Contexts = Callable[[Sequence[str]], Tensor]  # texts → (b, n, c)


@torch.no_grad()
def read(
    unet: UNet,
    instructions: Sequence[str],
    captions: Sequence[str],
    contexts: Contexts,
    lengths: Callable[[str], int],
    noisy: Tensor,
    t: Tensor,
    source: torch.Generator,
) -> None:
    """Change the keys and values of each cross-attention in place, so that instructions act as captions do now.

    Args:
        instructions, captions: for each scene, two texts of the same content.
        contexts: texts → what cross-attention sees of them, (b, n, c). lengths: the number of a text's tokens, without
            the first and the last.
        noisy: latents of the scenes, (b, c, h, w). t: their timesteps (b,). source: draws the queries that are fitted.
    """
    layers = [block.attn2 for block in unet.transformer_blocks()]
    queries = [
        torch.cat(part) for part in zip(*_queries(unet, layers, contexts, captions, noisy, t, source), strict=True)
    ]
    told, wanted = contexts(instructions), contexts(captions)
    words = _words(instructions, captions, contexts, lengths)
    for layer, q in zip(layers, queries, strict=True):
        out = attend(q, *layer.keys_values(wanted), layer.heads)
        layer.to_k.weight.copy_(layer.to_k.weight @ words)
        layer.to_v.weight.copy_(_values(q, layer.to_k(told), told, out, layer.heads))


def _queries(
    unet: UNet,
    layers: Sequence[Attention],
    contexts: Contexts,
    captions: Sequence[str],
    noisy: Tensor,
    t: Tensor,
    source: torch.Generator,
) -> Iterator[list[Tensor]]:
    """At most QUERIES queries of each scene in each layer, (b, q, c) each, BATCH scenes at a time."""
    found: dict[int, Tensor] = {}

    def keep(index: int, x: Tensor) -> None:
        which = torch.rand(x.shape[:2], generator=source).topk(min(QUERIES, x.shape[1]), dim=1).indices.to(x.device)
        found[index] = layers[index].to_q(x.gather(1, which[..., None].expand(-1, -1, x.shape[-1])))

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, index=index: keep(index, inputs[0]))
        for index, layer in enumerate(layers)
    ]
    try:
        for part in batches(len(noisy), BATCH):
            unet(noisy[part], t[part], contexts(captions[part]), frames=1)
            yield [found[index] for index in range(len(layers))]
    finally:
        for handle in handles:
            handle.remove()


def _words(
    instructions: Sequence[str], captions: Sequence[str], contexts: Contexts, lengths: Callable[[str], int]
) -> Tensor:
    """The matrix (c, c) that takes an instruction's tokens nearest to those of its caption.

    Both end in the same words, and what follows them; the first words of an instruction become the caption's first
    token, which no text changes.
    """
    told, wanted = [], []
    for instruction, caption in sorted(set(zip(instructions, captions, strict=True))):
        more = lengths(instruction) - lengths(caption)
        long, short = contexts([instruction])[0], contexts([caption])[0]
        told.append(long)
        wanted.append(torch.cat([short[:1].expand(1 + more, -1), short[1 : len(short) - more]]))
    return _least_squares(torch.cat(told), torch.cat(wanted))


def _values(q: Tensor, k: Tensor, context: Tensor, out: Tensor, heads: int) -> Tensor:
    """The weight (dim, c) of values that brings an attention's outputs nearest to `out`, head by head.

    q: (b, q, dim). k: (b, n, dim). context: (b, n, c). out: (b, q, dim)
    """
    q, k, out = (x.unflatten(-1, (heads, -1)).movedim(2, 0) for x in (q, k, out))
    weights = []
    for head in range(heads):
        seen = (q[head] @ k[head].mT * q.shape[-1] ** -0.5).softmax(-1) @ context
        weights.append(_least_squares(seen.flatten(0, 1), out[head].flatten(0, 1)))
    return torch.cat(weights)


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The matrix W (y, x) for which the rows of x @ W.T are nearest to those of y."""
    device, x, y = x.device, x.cpu().double(), y.cpu().double()
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, x.T @ y).T.float().to(device)
