"""CLIP (Radford et al. 2021): the text tower, which conditions Stable Diffusion, and the vision tower, for scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zs2.models.attention import attend
from zs2.models.clip_config import TextConfig, VisionConfig


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(b, n, c) → (b, n, c)"""
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=causal))


class MLP(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, dim: int, inner_dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(dim, inner_dim)
        self.fc2 = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → (b, n, c)"""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SelfAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(b, n, c) → (b, n, c)"""
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    """The stack of layers."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Embeddings(nn.Module):
    """Token and position embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, n) → (b, n, c)"""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTransformer(nn.Module):
    """Embeddings, causal layers, final norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """(b, n) → the embeddings, and the states of each layer, before the final norm: (b, n, c) each"""
        states = [self.embeddings(ids)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], causal=True))
        return states


class TextEncoder(nn.Module):
    """The text tower. Its projection into the space shared with images is optional; SDXL and the metrics use it."""

    def __init__(self, config: TextConfig, projection: bool = True) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False) if projection else None

    def forward(self, ids: Tensor, skip: int = 0) -> Tensor:
        """Token ids (b, n) → hidden states after the final norm (b, n, c): the context of SD 1 and 2.

        skip: the number of last layers that are not used (CLIP skip).
        """
        return self.text_model.final_layer_norm(self.text_model(ids)[-1 - skip])

    def before_last(self, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Token ids (b, n) → states of the penultimate layer (b, n, c), SDXL's context, or of `skip` layers before it;
        and the embedding that `embed` returns, or None if there is no projection."""
        states = self.text_model(ids)
        pooled = None
        if self.text_projection is not None:
            pooled = self.text_projection(self._end(self.text_model.final_layer_norm(states[-1]), ids))
        return states[-2 - skip], pooled

    def add_tokens(self, vectors: Tensor) -> None:
        """Add rows (n, c) to the table of token embeddings. The table is replaced, not changed: it may be mapped."""
        table = self.text_model.embeddings.token_embedding.weight
        table = torch.cat([table, vectors.to(table.device, table.dtype)])
        self.text_model.embeddings.token_embedding = nn.Embedding.from_pretrained(table)
        self.config = replace(self.config, vocab_size=len(table))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, n) → the projected hidden state of the end token, (b, projection_dim).

        Raises: ValueError if the checkpoint has no `text_projection`.
        """
        if self.text_projection is None:
            raise ValueError("this text encoder has no text_projection: its embedding can't be compared with images")
        return self.text_projection(self._end(self(ids), ids))

    def _end(self, states: Tensor, ids: Tensor) -> Tensor:
        """States (b, n, c) → the state of each row's end token (b, c)"""
        # old configurations have eos_token_id 2, which occurs in no prompt: there the end token has the largest id
        is_end = ids == (
            ids.max(dim=1, keepdim=True).values if self.config.eos_token_id == 2 else self.config.eos_token_id
        )
        end = is_end.int().argmax(dim=1)
        return states[torch.arange(len(ids), device=ids.device), end]


class PatchEmbeddings(nn.Module):
    """One token for the whole image, then one for each patch in reading order, with position embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + side**2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) → (b, 1 + patches, c)"""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (b, patches, c)
        whole = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, a norm, the layers, and a norm of the token of the whole image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # spelt as in the weight files
        self.encoder = Layers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) → (b, c)"""
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x, causal=False)
        return self.post_layernorm(x[:, 0])


class VisionEncoder(nn.Module):
    """The vision tower with its projection into the space shared with texts."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (b, 3, image_size, image_size) → embeddings (b, projection_dim).

        Raises: ValueError for another size, because the position embeddings are learnt for one size.
        """
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels are {tuple(pixels.shape)}: this vision tower reads (b, 3, {size}, {size})")
        return self.visual_projection(self.vision_model(pixels))
