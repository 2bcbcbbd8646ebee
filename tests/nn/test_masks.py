from __future__ import annotations

import pytest
import torch

from flashar_cli.grid import Grid
from flashar_cli.nn.masks import order_block_mask, order_mask, scale_mask, sequence_ranks, with_valid_keys

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]


def allowed(query: int, key: int, prefix: int, cells: list[int], width: int, diagonal: bool) -> bool:
    """The rule in words: prefix causal, image sees the prefix and every cell whose step is not later."""
    if query < prefix:
        return key <= query
    if key < prefix:
        return True
    steps = [sum(divmod(cells[place - prefix], width)) if diagonal else cells[place - prefix] for place in (query, key)]
    return steps[1] <= steps[0]


@pytest.mark.parametrize("prefix", (1, 3))
@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("diagonal", (True, False))
def test_against_brute_force(shape, prefix, diagonal):
    grid = Grid(*shape)
    order = grid.diagonal() if diagonal else grid.raster()
    mask = order_mask(order, prefix, torch.device("cpu"))
    length = prefix + grid.num_cells
    expected = [
        [allowed(q, k, prefix, order.cells, grid.width, diagonal) for k in range(length)] for q in range(length)
    ]
    assert mask.tolist() == expected


def test_padded_keys_are_hidden_except_from_themselves():
    mask = order_mask(Grid(1, 2).raster(), 3, torch.device("cpu"))
    valid = torch.tensor([[False, True, True, True, True]])
    full = with_valid_keys(mask, valid)[0, 0]
    assert full[:, 0].tolist() == [True, False, False, False, False]
    assert torch.equal(full[:, 1:], mask[:, 1:])


@pytest.mark.parametrize("shape", [*GRIDS, (16, 16)])
@pytest.mark.parametrize("captions", (False, True))
def test_block_masks_allow_the_same(shape, captions):
    order, device = Grid(*shape).diagonal(), torch.device("cpu")
    ranks = sequence_ranks(order, 3, device)
    valid = None
    expected = order_mask(order, 3, device)[None, None]
    if captions:
        valid = torch.ones(2, len(ranks), dtype=torch.bool)
        valid[1, :2] = False
        expected = with_valid_keys(expected[0, 0], valid)
    block_mask = order_block_mask(ranks, valid)
    batch, head = torch.arange(len(expected))[:, None, None, None], torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    places = torch.arange(len(ranks))
    assert torch.equal(block_mask.mask_mod(batch, head, places[:, None], places).expand(expected.shape), expected)
    blocks = block_mask.to_dense()[:, 0].bool()
    size = block_mask.BLOCK_SIZE[0]
    for row in range(blocks.shape[-2]):
        for col in range(blocks.shape[-1]):
            part = expected[:, 0, row * size : (row + 1) * size, col * size : (col + 1) * size]
            assert torch.equal(blocks[:, row, col], part.flatten(1).any(dim=1))


def test_a_token_sees_its_own_scale_and_those_before_it():
    scales = [0, 1, 1, 2, 2, 2, 2]
    expected = [[key <= query for key in scales] for query in scales]
    assert scale_mask((1, 2, 4), torch.device("cpu")).tolist() == expected
