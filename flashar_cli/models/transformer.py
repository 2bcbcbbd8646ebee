"""The backbone: one Llama-like decoder for every family, shaped by its config.

Letters: B batch, S sequence, D model dim, V codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import BackboneConfig
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.layers import Block, RMSNorm

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Transformer(nn.Module):
    """Token embedding, blocks, final norm and output head. The head is the horizontal one."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.embedding = build_embedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = build_head(config)


class MLPEmbedding(nn.Embedding):
    """A narrow table, then ``Linear -> GELU -> Linear`` to the width of the model, with biases."""

    def __init__(self, vocab_size: int, table_dim: int, dim: int) -> None:
        super().__init__(vocab_size, table_dim)
        self.fc1 = nn.Linear(table_dim, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [..] -> [.., D]."""
        return self.fc2(F.gelu(self.fc1(super().forward(tokens))))


class MLPHead(nn.Module):
    """``Linear -> GELU -> Linear`` to logits, with biases."""

    def __init__(self, dim: int, hidden_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """[.., D] -> [.., V]."""
        return self.fc2(F.gelu(self.fc1(x)))


def build_embedding(config: BackboneConfig) -> nn.Embedding:
    """The token embedding that a config describes."""
    if config.embedding_dim is None:
        return nn.Embedding(config.vocab_size, config.dim)
    return MLPEmbedding(config.vocab_size, config.embedding_dim, config.dim)


def build_head(config: BackboneConfig) -> nn.Module:
    """The output head that a config describes; the vertical branch has one of the same shape."""
    if config.head_hidden_dim is None:
        return nn.Linear(config.dim, config.vocab_size, bias=False)
    return MLPHead(config.dim, config.head_hidden_dim, config.vocab_size)


def run_blocks(
    blocks: Iterable[nn.Module],
    x_BSD: Tensor,
    rope: Tensor,
    mask: Tensor | BlockMask | None,
    caches: list[LayerCache] | None,
    start: int,
) -> Tensor:
    """The hidden state after the last of these blocks, [B, S, D]."""
    for index, block in enumerate(blocks):
        x_BSD = block(x_BSD, rope, mask, caches[index] if caches else None, start)
    return x_BSD
