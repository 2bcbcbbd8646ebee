"""The backbone: one Llama-like decoder for every family, shaped by its config.

Letters: B batch, S sequence, D model dim, V codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

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
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)


def run_blocks(
    blocks: Iterable[nn.Module],
    x_BSD: Tensor,
    rope: Tensor,
    mask: Tensor | BlockMask | None,
    caches: list[LayerCache] | None,
    start: int,
) -> list[Tensor]:
    """The hidden state before each block and after the last, number of blocks + 1 tensors [B, S, D]."""
    states = [x_BSD]
    for index, block in enumerate(blocks):
        states.append(block(states[-1], rope, mask, caches[index] if caches else None, start))
    return states
