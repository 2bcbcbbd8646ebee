"""A fresh branch against the backbone that it was copied from."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import BackboneConfig, BranchConfig
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from tests.tiny_models import build_model, random_config


def base_of_three() -> FlasharModel:
    """A base of three blocks, no tensor of which is like another."""
    config = random_config(3, 5, branch=False, tokenizer=False)
    backbone = BackboneConfig(**{**config.backbone.model_dump(), "num_layers": 3})
    model = build_model(config.model_copy(update={"backbone": backbone}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.parametrize(
    ("layer", "depth", "copied"),
    (
        (0, 1, [0]),
        (1, 1, [1]),
        (2, 1, [2]),  # m = L - 1
        (3, 1, [2]),  # m = L
        (0, 2, [0, 1]),
        (1, 2, [1, 2]),
        (2, 2, [2, 2]),
        (3, 3, [2, 2, 2]),
        (1, 4, [1, 2, 2, 2]),
    ),
)
def test_block_i_is_a_copy_of_backbone_block_m_plus_i_or_of_the_last(layer, depth, copied):
    model = base_of_three()
    model.add_branch(BranchConfig(layer=layer, depth=depth, gate="hidden", gate_dim=64), seed=0)
    branch, backbone = model.branch, model.backbone
    assert branch is not None and len(branch.blocks) == depth
    pairs = [(branch.norm, backbone.norm), (branch.head, backbone.head)]
    pairs += [(branch.blocks[i], backbone.blocks[k]) for i, k in enumerate(copied)]
    for ours, source in pairs:
        for name, tensor in source.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
            assert ours.state_dict()[name].data_ptr() != tensor.data_ptr(), f"{name} is not a copy"


@pytest.mark.parametrize(("gate", "gate_dim"), (("hidden", 64), ("logits", 32), ("scalar", None), ("mean", None)))
def test_every_gate_starts_at_one_half(gate, gate_dim):
    model = base_of_three()
    model.add_branch(BranchConfig(layer=1, gate=gate, gate_dim=gate_dim), seed=0)
    order = model.config.order_grid.diagonal()
    with torch.no_grad():
        prediction = model(torch.randint(32, (2, 15)), Conditions(labels=torch.tensor([1, 2])), order)
    both = prediction.targets.has_horizontal & prediction.targets.has_vertical
    assert both.sum() == 1 + 2 * 4 and (prediction.gate[:, both] == 0.5).all()
    if gate in ("hidden", "logits"):  # its first layer is random, so that the gate can learn
        assert model.branch is not None and model.branch.gate.mlp.fc1.weight.std() > 0


@pytest.mark.parametrize("layer", (0, 1, 2, 3))
def test_the_branch_reads_the_state_before_block_m(layer):
    """Copied from blocks m.., a branch of depth L - m predicts what the backbone predicts."""
    model = base_of_three()
    model.add_branch(BranchConfig(layer=layer, depth=max(1, 3 - layer), gate="mean"), seed=0)
    if layer == 3:  # nothing is left to copy: a block that adds nothing stands for it
        with torch.no_grad():
            model.branch.blocks[0].attention.wo.weight.zero_()
            model.branch.blocks[0].feed_forward.w2.weight.zero_()
    grid, tokens = model.config.order_grid, torch.randint(32, (2, 15))
    with torch.no_grad():
        given = model.inputs(tokens, Conditions(labels=torch.tensor([1, 2])), grid.diagonal())
        hidden = model.hidden_states(given.x_BSD, given.rope, given.mask, use_branch=True)
        alone = model.hidden_states(given.x_BSD, given.rope, given.mask, use_branch=False)
    torch.testing.assert_close(hidden.vertical, hidden.horizontal)
    torch.testing.assert_close(alone.horizontal, hidden.horizontal)
