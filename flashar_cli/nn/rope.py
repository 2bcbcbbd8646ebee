"""Rotary positions.

Letters: B batch, S sequence, A heads, E head dim, P prefix tokens, N = H*W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.grid import Order


def rope_table_2d(order: Order, prefix_length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """Rotation angles of a sequence ``[prefix, cells in the given order]`` as (cos, sin) pairs.

    The first half of the head dim turns with the row, the second with the column. Returns float32
    ``[P + N, E // 2, 2]``.
    """
    frequencies = 1.0 / (base ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2)))
    cells = torch.tensor(order.cells)
    rows, cols = cells // order.grid.width, cells % order.grid.width
    angles = torch.cat([torch.outer(rows.float(), frequencies), torch.outer(cols.float(), frequencies)], dim=-1)
    image = torch.stack([angles.cos(), angles.sin()], dim=-1)
    # Kept for parity: FoundationVision/LlamaGen autoregressive/models/gpt.py precompute_freqs_cis_2d gives the prefix
    # (cos, sin) = (0, 0), so that its queries and keys become exactly zero. The released weights rely on it.
    prefix = torch.zeros(prefix_length, *image.shape[1:])
    return torch.cat([prefix, image]).to(device)


def apply_rope(x_BSAE: Tensor, table: Tensor) -> Tensor:
    """Rotates interleaved pairs of the last axis by ``table`` [S, E // 2, 2], computed in float32, dtype kept."""
    pairs = x_BSAE.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # Inductor, which makes one kernel of this, makes none of complex numbers
        cos, sin = table[:, None, :, 0], table[:, None, :, 1]
        even, odd = pairs[..., 0], pairs[..., 1]
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)[:, None])
    return rotated.flatten(-2).type_as(x_BSAE)
