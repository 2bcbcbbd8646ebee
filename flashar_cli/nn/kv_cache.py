"""Static key/value memory for decoding.

Letters: B batch, A key/value heads, S = P + N sequence, E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer [B, A, S, E], filled in contiguous slices from position ``first`` on."""

    def __init__(self, keys_BASE: Tensor, values_BASE: Tensor, first: int = 0) -> None:
        self.keys = keys_BASE
        self.values = values_BASE
        self.first = first

    def update(self, start: int, keys_BACE: Tensor, values_BACE: Tensor) -> tuple[Tensor, Tensor]:
        """Stores C new positions from ``start`` on and returns all that is stored up to them: [B, A, start + C, E] less
        the positions before ``first``.
        """
        end = start + keys_BACE.shape[2]
        self.keys[:, :, start:end] = keys_BACE
        self.values[:, :, start:end] = values_BACE
        return self.keys[:, :, self.first : end], self.values[:, :, self.first : end]


class KVCache:
    """One :class:`LayerCache` for each block of the backbone, then for each block of the branch; ``firsts`` are their
    first positions.
    """

    def __init__(
        self,
        firsts: Sequence[int],
        batch: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (len(firsts), 2, batch, num_kv_heads, length, head_dim)
        self.memory = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(layer[0], layer[1], first) for layer, first in zip(self.memory, firsts, strict=True)]
