"""Tokens of several positions, against upstream's operation and one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.grid import Grid
from flashar_cli.tokenizers.next_scale import patchify, unpatchify


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("patch", (1, 2, 3))
def test_a_token_is_a_square_of_positions(size: tuple[int, int], patch: int) -> None:
    grid, values = Grid(*size), 3
    tokens = torch.arange(2 * grid.num_cells * values * patch**2).reshape(2, grid.num_cells, -1)
    positions = unpatchify(tokens, grid, patch)
    assert positions.shape == (2, grid.height * patch, grid.width * patch, values)
    for row in range(grid.height * patch):
        for col in range(grid.width * patch):
            for value in range(values):
                token = row // patch * grid.width + col // patch
                number = value * patch**2 + row % patch * patch + col % patch
                assert positions[1, row, col, value] == tokens[1, token, number]
    shuffled = F.pixel_shuffle(tokens.mT.unflatten(2, size), patch)
    assert torch.equal(positions, shuffled.permute(0, 2, 3, 1))
    assert torch.equal(patchify(positions, patch), tokens)
