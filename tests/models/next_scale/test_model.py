"""The whole model: which tokens depend on what, and in which precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashar_cli.config import NextScaleConfig
from flashar_cli.grid import Grid
from flashar_cli.models import build_model
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.next_scale.blocks import Block
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from tests.models.next_scale.test_condition import alone, captions
from tests.tiny_models import build_scale_model, infinity_like_config, random_config, var_like_config


def latents_of(config: NextScaleConfig, grid: Grid, batch: int) -> Tensor:
    """What a teacher-forced model reads, at random."""
    num_tokens = sum(scale.num_cells for scale in config.scales(grid))
    return torch.randn(batch, num_tokens - 1, config.token_dim, generator=torch.Generator().manual_seed(0))


def test_a_config_names_its_network():
    assert isinstance(build_model(var_like_config()), NextScaleModel)
    assert isinstance(build_model(random_config()), FlasharModel)


@pytest.mark.parametrize("config", (var_like_config(), infinity_like_config()), ids=("learned", "rotary"))
def test_a_map_is_predicted_from_what_it_and_those_before_it_read(config):
    model = build_scale_model(config)
    sizes = [scale.num_cells for scale in model.config.scales(config.order_grid)]
    conditions, latents = model.prefix.example(1, 0), latents_of(config, config.order_grid, 1)
    logits = model(latents, conditions, config.order_grid).split(sizes, dim=1)
    for scale in range(1, len(sizes)):
        changed = latents.clone()
        changed[:, sum(sizes[:scale]) - 1] += 1  # its first token
        others = model(changed, conditions, config.order_grid).split(sizes, dim=1)
        differs = [not torch.equal(*pair) for pair in zip(logits, others, strict=True)]
        assert differs == [False] * scale + [True] * (len(sizes) - scale)
        assert (logits[scale] != others[scale]).any(dim=-1).all()  # tokens of a map see each other


def test_captions_of_different_lengths_are_predicted_as_alone():
    model, grid = build_scale_model(infinity_like_config()), Grid(3, 8)
    conditions, drop = captions([4, 6, 1]), torch.tensor([False, False, True])
    latents = latents_of(model.config, grid, 3)
    together = model(latents, conditions, grid, drop)
    for row in range(3):
        single = model(latents[row : row + 1], alone(conditions, row), grid, drop[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], single, atol=1e-5, rtol=0)


def test_dropped_rows_are_unconditional():
    config = var_like_config()
    model, latents = build_scale_model(config), latents_of(config, config.order_grid, 2)
    dropped = model(latents, Conditions(labels=torch.tensor([3, 4])), config.order_grid, torch.tensor([False, True]))
    table = model.prefix.embedding.weight
    table[4] = table[10]
    expected = model(latents, Conditions(labels=torch.tensor([3, 4])), config.order_grid)
    assert torch.equal(dropped, expected)


@pytest.mark.parametrize("config", (var_like_config(), infinity_like_config()), ids=("learned", "rotary"))
def test_only_products_have_the_dtype_of_the_weights(config, monkeypatch):
    streams = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda block, x, given: streams.append(x.dtype) or forward(block, x, given))
    model = build_scale_model(config)
    latents = latents_of(config, config.order_grid, 1)
    conditions = model.prefix.example(1, 0)
    expected = model(latents, conditions, config.order_grid)
    logits = model.bfloat16()(latents, conditions, config.order_grid)
    assert set(streams) == {torch.float32} and logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.1 * expected.abs().max()
    x, vector = torch.randn(1, 3, 32), torch.randn(1, 32)
    exact = build_scale_model(config).head
    for name, parameter in exact.named_parameters():
        parameter.copy_(model.head.get_parameter(name))
    assert torch.equal(model.head(x, model.head.modulate(vector)), exact(x, exact.modulate(vector)))


@pytest.mark.parametrize("config", (var_like_config(), var_like_config(shared=True), infinity_like_config()))
def test_a_fresh_model_starts_as_published(config):
    """Next to nothing is added to the residual stream, and the head's logits are small; all follows from the seed."""
    model, again, other = (NextScaleModel(config) for _ in range(3))
    model.initialise(0), again.initialise(0), other.initialise(1)
    states = [each.state_dict() for each in (model, again, other)]
    std = (3 * 32) ** -0.5
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        if name.endswith("log_scale"):
            assert tensor.exp().flatten().tolist() == pytest.approx([4.0] * tensor.numel())
        elif name.endswith("norm.weight"):
            assert (tensor == 1).all()
        elif tensor.dim() == 1:
            assert not tensor.any(), name
        else:
            assert not torch.equal(tensor, states[2][name]), name
    assert float(states[0]["embedding.weight"].std()) == pytest.approx(std, rel=0.3)
    assert float(states[0]["blocks.0.attention.wo.weight"].std()) == pytest.approx(std / 6**0.5, rel=0.1)
    assert float(states[0]["head.out.weight"].std()) == pytest.approx(std / 50, rel=0.3)
    assert all(float(gate.abs().max()) < 1e-4 for gate in gates_of(model))
    model.initialise(0, zero_head=False)
    assert float(model.head.out.weight.detach().std()) == pytest.approx(std, rel=0.3)
    assert all(float(gate.std()) > 0.02 for gate in gates_of(model))


def gates_of(model):
    """What makes the two gates of each block."""
    for block in model.blocks:
        yield (block.modulation.weight[:64] if block.offsets is None else block.offsets[:, :, :2]).detach()
