"""Rotary positions.

Letters: B batch, R rows, S sequence, or slots of the image, A heads, E head dim, P prefix tokens.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from flashar_cli.grid import Grid, Order


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # shared with training, and autograd refuses inference tensors
def rope_table_2d(order: Order, prefix_length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """Rotations by row and column of a sequence ``[prefix, image in the given order]`` as (cos, sin) pairs, float32
    [P + S, E // 2, 2]: the first half of the head dim is rotated by the row, the second by the column.
    """
    cells = torch.tensor(order.slot_cells)
    angles = _angles_2d(cells // order.grid.width, cells % order.grid.width, head_dim, base)
    # Kept for parity: FoundationVision/LlamaGen autoregressive/models/gpt.py precompute_freqs_cis_2d gives the prefix
    # (cos, sin) = (0, 0), which makes its queries and keys exactly zero. The released weights rely on it.
    prefix = torch.zeros(prefix_length, head_dim // 2, 2)
    return torch.cat([prefix, _pairs(angles)]).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rope_table_scales(
    scales: tuple[Grid, ...], finest: Grid, head_dim: int, base: float, device: torch.device
) -> Tensor:
    """Rotations by row and column of maps of several scales, one map after the other, as (cos, sin) pairs, float32
    [L, E // 2, 2] of L tokens in all. Rows and columns are those of the ``finest`` map, rounded
    (FoundationVision/Infinity infinity/models/basic.py precompute_rope2d_freqs_grid, rope2d_normalized_by_hw 2).
    """
    rows = [(torch.arange(scale.height) * (finest.height / scale.height)).round() for scale in scales]
    cols = [(torch.arange(scale.width) * (finest.width / scale.width)).round() for scale in scales]
    rows_L = torch.cat([each.repeat_interleave(scale.width) for each, scale in zip(rows, scales, strict=True)])
    cols_L = torch.cat([each.repeat(scale.height) for each, scale in zip(cols, scales, strict=True)])
    return _pairs(_angles_2d(rows_L, cols_L, head_dim, base)).to(device)


def rope_table_1d(places: Tensor, head_dim: int, base: float) -> Tensor:
    """Rotations by place in the text, int64 [..], as (cos, sin) pairs, float32 [.., E // 2, 2]."""
    return _pairs(places.float()[..., None] * _frequencies_on(head_dim, base, places.device))


def text_places(valid_RP: Tensor, image_S: Tensor, starts_R: Tensor | None) -> Tensor:
    """Places int64 [R, P + S] of the tokens of ``[prefix, image]`` in a text: the valid ones of the prefix, bool
    [R, P], count from 0, and those of the image are ``image_S`` after ``starts_R`` (None: after the row's own prefix).
    """
    prefix_RP = (valid_RP.cumsum(dim=1) - 1).clamp(min=0)
    starts_R = valid_RP.sum(dim=1) if starts_R is None else starts_R
    return torch.cat([prefix_RP, starts_R[:, None] + image_S], dim=1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _frequencies_on(dim: int, base: float, device: torch.device) -> Tensor:
    return _frequencies(dim, base).to(device)


def _frequencies(dim: int, base: float) -> Tensor:
    return 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))


def _angles_2d(rows_S: Tensor, cols_S: Tensor, head_dim: int, base: float) -> Tensor:
    """Angles [S, E // 2] by row, then by column."""
    frequencies = _frequencies(head_dim // 2, base)
    return torch.cat([torch.outer(rows_S.float(), frequencies), torch.outer(cols_S.float(), frequencies)], dim=-1)


def _pairs(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rope(x_BSAE: Tensor, table: Tensor, halves: bool = False) -> Tensor:
    """Rotates pairs of the last axis by ``table`` [S, E // 2, 2] or [B, S, E // 2, 2]; computes in float32 and keeps
    the dtype. Pairs are neighbours (2k, 2k + 1) or, with ``halves``, (k, k + E / 2), as in Hugging Face's layout of
    Llama.
    """
    if halves:
        cos, sin = table[..., None, :, 0], table[..., None, :, 1]
        first, second = x_BSAE.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).type_as(x_BSAE)
    pairs = x_BSAE.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # Inductor fuses this into one kernel, and can't compile complex numbers
        cos, sin = table[..., None, :, 0], table[..., None, :, 1]
        even, odd = pairs[..., 0], pairs[..., 1]
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)[..., None, :])
    return rotated.flatten(-2).type_as(x_BSAE)
