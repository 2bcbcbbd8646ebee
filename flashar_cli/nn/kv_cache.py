"""Static key/value memory for decoding.

Letters: B batch, A key/value heads, S = P + N sequence, E head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer [B, A, S, E], filled from the front in contiguous slices."""

    def __init__(self, keys_BASE: Tensor, values_BASE: Tensor) -> None:
        self.keys = keys_BASE
        self.values = values_BASE

    def update(self, start: int, keys_BACE: Tensor, values_BACE: Tensor) -> tuple[Tensor, Tensor]:
        """Stores C new positions from ``start`` on and returns all that is stored up to them, [B, A, start + C, E]."""
        end = start + keys_BACE.shape[2]
        self.keys[:, :, start:end] = keys_BACE
        self.values[:, :, start:end] = values_BACE
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One :class:`LayerCache` for each block of the backbone, then for each block of the branch."""

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_layers, 2, batch, num_kv_heads, length, head_dim)
        self.memory = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(layer[0], layer[1]) for layer in self.memory]
