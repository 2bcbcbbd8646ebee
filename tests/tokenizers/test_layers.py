"""The blocks of image tokenizers: gradients, and what is written in place."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.tokenizers.layers import ResBlock, Upsample


@pytest.mark.parametrize("block", [ResBlock(32, 32), ResBlock(32, 64), Upsample(32)], ids=["same", "wider", "up"])
def test_gradients_of_the_blocks_are_finite_differences(block: torch.nn.Module) -> None:
    """What is written in place where no gradient is wanted must not be where one is."""
    torch.manual_seed(0)
    block = block.double()
    features = torch.randn(1, 32, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, features)
    with torch.no_grad():
        assert torch.equal(block(features), block(features.clone()))


def test_without_gradients_the_input_stays_and_the_result_is_the_same() -> None:
    block, features = ResBlock(32, 32), torch.randn(2, 32, 3, 5)
    kept, expected = features.clone(), block(features)
    with torch.no_grad():
        assert torch.equal(block(features), expected)
    assert torch.equal(features, kept)
