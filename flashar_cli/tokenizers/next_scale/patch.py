"""Tokens that stand for squares of ``patch`` x ``patch`` positions of the latent (upstream: FoundationVision/Infinity
infinity/models/infinity.py, apply_spatial_patchify).

Letters: B images, h x w tokens, Q the side of a square, Z values at a position. Value (Z, row, col) of a square is
number (Z * Q + row) * Q + col of its token.
"""

from __future__ import annotations

from torch import Tensor

from flashar_cli.grid import Grid


def unpatchify(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """[B, h*w, Z*Q*Q] of any dtype, in raster order of ``grid`` -> [B, h*Q, w*Q, Z]."""
    squares = tokens.reshape(len(tokens), grid.height, grid.width, -1, patch, patch)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(len(tokens), grid.height * patch, grid.width * patch, -1)


def patchify(positions: Tensor, patch: int) -> Tensor:
    """[B, h*Q, w*Q, Z] of any dtype -> [B, h*w, Z*Q*Q], the inverse of ``unpatchify``."""
    batch, rows, cols, values = positions.shape
    squares = positions.reshape(batch, rows // patch, patch, cols // patch, patch, values)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, values * patch**2)
