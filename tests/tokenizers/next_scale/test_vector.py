"""VAR's quantizer: which row is nearest, and which convolution a scale passes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from flashar_cli.config import MultiScaleVQConfig
from flashar_cli.tokenizers.next_scale.vector import MultiScaleVQ, residual_of
from tests.parity.fixtures import read_fixture


@pytest.mark.parametrize("name", ("var_small", "var_shared_aln_small"))
def test_scales_share_the_published_convolutions(name: str) -> None:
    """Ten scales have two ties, which are not decided alike."""
    published = read_fixture(name).meta["phi_of_scale"]
    assert [residual_of(index, len(published), 4) for index in range(len(published))] == published


@pytest.mark.parametrize("num_residuals", range(1, 12))
@pytest.mark.parametrize("num_scales", range(1, 15))
def test_no_convolution_is_nearer(num_residuals: int, num_scales: int) -> None:
    """By the definition in exact fractions; where two are as near, either."""
    margin = Fraction(1, 12) if num_residuals == 4 else Fraction(1, 2 * num_residuals)
    step = (1 - 2 * margin) / max(1, num_residuals - 1)
    for index in range(num_scales):
        place = Fraction(index, max(1, num_scales - 1))
        distances = [abs(margin + number * step - place) for number in range(num_residuals)]
        assert distances[residual_of(index, num_scales, num_residuals)] == min(distances)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
def test_tokens_are_the_nearest_rows(size: tuple[int, int]) -> None:
    """Rows differ in length, so neither the largest dot product nor the smallest angle will do."""
    torch.manual_seed(0)
    quantizer = MultiScaleVQ(MultiScaleVQConfig(codebook_size=50, codebook_dim=3))
    quantizer.embedding.weight.data *= torch.rand(50, 1) * 3
    features = torch.randn(2, 3, *size)
    distances = (features.double()[:, None] - quantizer.embedding.weight.double()[:, :, None, None]).norm(dim=2)
    assert torch.equal(quantizer.quantize(features), distances.argmin(dim=1))
    assert torch.equal(
        quantizer.codes(quantizer.quantize(features))[:, :, -1, 0],
        quantizer.embedding.weight[distances.argmin(dim=1)[:, -1, 0]],
    )


def test_rows_that_are_almost_as_near_are_told_apart_under_autocast() -> None:
    torch.manual_seed(0)
    quantizer = MultiScaleVQ(MultiScaleVQConfig(codebook_size=500, codebook_dim=3))
    features = torch.randn(1, 3, 20, 30)
    expected = quantizer.quantize(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.quantize(features), expected)


def test_a_token_has_its_own_code() -> None:
    quantizer = MultiScaleVQ(MultiScaleVQConfig(codebook_size=12, codebook_dim=5))
    tokens = torch.arange(12).reshape(1, 3, 4)
    codes = quantizer.codes(tokens)
    assert torch.equal(codes[0].flatten(1).T, quantizer.embedding.weight)
    assert torch.equal(quantizer.quantize(codes), tokens)


def test_the_share_is_the_convolutions() -> None:
    """At 0 the scale is what it was, at 1 it is the convolution's."""
    torch.manual_seed(0)
    features = torch.randn(1, 4, 3, 5)
    for share in (0.0, 0.25, 1.0):
        quantizer = MultiScaleVQ(MultiScaleVQConfig(codebook_size=3, codebook_dim=4, residual_share=share))
        residual = quantizer.residuals[0]
        made = torch.nn.functional.conv2d(features, residual.weight, residual.bias, padding=1)
        torch.testing.assert_close(residual(features), torch.lerp(features, made, share))
