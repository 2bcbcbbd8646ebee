"""The hidden states that probes read, against blocks run one after another."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.models.transformer import run_blocks
from flashar_cli.probing.states import hidden_grids
from tests.tiny_models import build_model, random_config


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("diagonal", (False, True))
def test_states_are_what_each_block_reads(height: int, width: int, diagonal: bool) -> None:
    model = build_model(random_config(height, width, tokenizer=False))
    grid = model.config.order_grid
    order = grid.diagonal() if diagonal else grid.raster()
    tokens_BHW = torch.randint(32, (2, height, width), generator=torch.Generator().manual_seed(0))
    conditions = model.prefix.example(2, seed=0)
    layers = (2, 0, 1)  # of two blocks, in any order
    found = hidden_grids(model, tokens_BHW, conditions, order, layers)
    given = model.inputs(order.from_raster(tokens_BHW), conditions, order)
    states = [given.x_BSD]
    for block in model.backbone.blocks:
        states.append(run_blocks([block], states[-1], given.rope, given.mask, None, 0))
    for layer, got_BHWD in zip(layers, found, strict=True):
        for position, cell in enumerate(order.cells[:-1]):
            row, col = divmod(cell, width)
            assert torch.equal(got_BHWD[:, row, col], states[layer][:, 1 + position])
        row, col = divmod(order.cells[-1], width)
        assert not got_BHWD[:, row, col].any()
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.backbone.blocks)
