"""Which cell's prediction depends on which cells, and how a fresh model starts."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import BranchConfig
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from tests.tiny_models import build_model, random_config

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("diagonal", (True, False))
def test_a_cell_is_predicted_from_all_earlier_steps_and_from_nothing_else(shape, diagonal):
    """Every cell's token is changed in turn; the logits that move are those of later steps, all of them."""
    model = build_model(random_config(*shape, tokenizer=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(6))
    grid = model.config.order_grid
    order = grid.diagonal() if diagonal else grid.raster()
    tokens = torch.randint(32, (1, grid.num_cells), generator=torch.Generator().manual_seed(7))
    others = tokens.repeat(grid.num_cells, 1)
    others.fill_diagonal_(0)
    others += torch.diag((tokens[0] + 1) % 32)
    labels = torch.tensor([4])
    with torch.no_grad():
        before = model(tokens, Conditions(labels=labels), order).logits
        after = model(others, Conditions(labels=labels.repeat(grid.num_cells)), order).logits
    moved = (after - before).abs().amax(dim=-1) > 1e-5
    steps = torch.tensor(order.ranks)
    assert torch.equal(moved, steps[None, :] > steps[:, None])


def test_a_fresh_model_knows_nothing():
    """Its head is zero, so every token is as likely; everything else but gains is random."""
    config = random_config(branch=False, tokenizer=False)
    model = FlasharModel(config)
    model.initialise(0)
    for name, parameter in model.named_parameters():
        if name == "backbone.head.weight":
            assert not parameter.any()
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all()
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.2), name
    again, other = FlasharModel(config), FlasharModel(config)
    again.initialise(0), other.initialise(1)
    name = "backbone.embedding.weight"
    assert torch.equal(again.state_dict()[name], model.state_dict()[name])
    assert not torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_the_config_says_that_a_branch_was_added():
    model = build_model(random_config(branch=False, tokenizer=False)).bfloat16()
    branch = BranchConfig(layer=2, depth=2, gate="mean")
    model.add_branch(branch, seed=0)
    assert model.config.branch == branch
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
