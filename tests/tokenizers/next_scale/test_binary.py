"""Infinity's quantizer: bits are signs, and codes have length 1."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import BSQConfig
from flashar_cli.tokenizers.next_scale.binary import MultiScaleBSQ


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
def test_bits_are_those_of_the_nearest_of_all_codes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    quantizer = MultiScaleBSQ(BSQConfig(num_bits=5))
    every = torch.arange(32)[:, None].bitwise_and(2 ** torch.arange(5)).gt(0).long()  # [32, 5]
    codes = quantizer.codes(every[None, None])[0, :, 0]  # [5, 32]
    assert torch.allclose(codes.norm(dim=0), torch.ones(32)) and codes.unique().numel() == 2
    features = torch.randn(2, 5, *size)
    nearest = torch.einsum("bzhw,zk->bhwk", torch.nn.functional.normalize(features, dim=1), codes).argmax(dim=-1)
    bits = quantizer.quantize(features)
    assert bits.dtype == torch.uint8 and torch.equal(bits.long(), every[nearest])
    assert torch.equal(quantizer.quantize(quantizer.codes(bits)), bits)


def test_a_value_of_zero_is_no_sign() -> None:
    quantizer = MultiScaleBSQ(BSQConfig(num_bits=3))
    features = torch.tensor([0.0, -0.0, 1e-30]).reshape(1, 3, 1, 1)
    assert quantizer.quantize(features).tolist() == [[[[0, 0, 1]]]]
