"""Blocks against the formulas of a Llama, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flashar_cli.config import BackboneConfig
from flashar_cli.grid import Grid
from flashar_cli.nn.layers import Attention, Block, FeedForward, RMSNorm
from flashar_cli.nn.rope import rope_table_2d

CONFIG = BackboneConfig(dim=32, num_layers=1, num_heads=4, num_kv_heads=2, ffn_dim=24, vocab_size=8)


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return module.requires_grad_(False)


def test_norm_by_hand():
    norm = drawn(RMSNorm(4, 0.5))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(norm(x), x / math.sqrt(30 / 4 + 0.5) * norm.weight)


def test_feed_forward_by_hand():
    layer, x = drawn(FeedForward(CONFIG)), torch.randn(2, 3, 32)
    gate, up = x @ layer.w1.weight.T, x @ layer.w3.weight.T
    torch.testing.assert_close(layer(x), (gate / (1 + (-gate).exp()) * up) @ layer.w2.weight.T)


def test_attention_head_by_head():
    """Queries 0 and 1 read the first keys and values, 2 and 3 the second; each head is turned by its own position."""
    layer, x = drawn(Attention(CONFIG)), torch.randn(1, 6, 32)
    table = rope_table_2d(Grid(2, 3).raster(), 0, 8, 10000.0, torch.device("cpu"))
    rotations = torch.view_as_complex(table.contiguous())

    def turn(head_SE: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(
            torch.view_as_complex(head_SE.unflatten(-1, (-1, 2)).contiguous()) * rotations
        ).flatten(-2)

    q, k, v = (x[0] @ layer.wqkv.weight.T).split((32, 16, 16), dim=-1)
    outputs = []
    for head in range(4):
        shared = slice(8 * (head // 2), 8 * (head // 2) + 8)
        scores = turn(q[:, 8 * head : 8 * head + 8]) @ turn(k[:, shared]).T / math.sqrt(8)
        causal = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
        outputs.append(causal.softmax(-1) @ v[:, shared])
    expected = torch.cat(outputs, dim=-1) @ layer.wo.weight.T
    torch.testing.assert_close(layer(x, table, torch.ones(6, 6, dtype=torch.bool).tril())[0], expected)


@pytest.mark.parametrize("recompute", (False, True))
def test_dropout_is_of_both_residual_branches_while_training(recompute):
    block, x = drawn(Block(CONFIG)), torch.randn(2, 6, 32, requires_grad=True)
    block.recompute = recompute
    rope = rope_table_2d(Grid(2, 3).raster(), 0, 8, 10000.0, torch.device("cpu"))
    whole = block.train()(x, rope)
    block.dropout = 1.0  # nothing is left of either
    assert torch.equal(block.train()(x, rope), x)
    torch.testing.assert_close(block.eval()(x, rope), whole)
    block.dropout = 0.5
    attended = x + block.attention(block.attention_norm(x), rope)
    torch.manual_seed(0)
    dropped = block.train()(x, rope)
    torch.manual_seed(0)
    half = x + torch.nn.functional.dropout(attended - x, 0.5)
    expected = half + torch.nn.functional.dropout(block.feed_forward(block.ffn_norm(half)), 0.5)
    torch.testing.assert_close(dropped, expected)


@pytest.mark.parametrize("is_frozen", (False, True))
@pytest.mark.parametrize("recomputes", (False, True))
def test_a_compiled_block_is_the_block_recomputed_and_frozen_too(recomputes, is_frozen):
    """PyTorch 2.13 refuses a compiled frozen block that has its checkpoint inside."""
    block, rope = drawn(Block(CONFIG)), rope_table_2d(Grid(3, 4).diagonal(), 1, 8, 100.0, torch.device("cpu"))[:12]
    x_BSD, mask = torch.randn(2, 12, 32), torch.ones(12, 12, dtype=torch.bool).tril()
    expected = block(x_BSD, rope, mask)
    block.recompute = recomputes
    block.requires_grad_(not is_frozen)
    block.compile(backend="aot_eager", dynamic=False)
    result = block(x_BSD, rope, mask)
    torch.testing.assert_close(result, expected)
    if not is_frozen:
        result.sum().backward()
        assert all(parameter.grad is not None for parameter in block.parameters())
    assert set(block.state_dict()) == set(Block(CONFIG).state_dict())
