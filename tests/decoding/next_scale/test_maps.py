"""Tokens to a latent and to what the model reads of it, by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.decoding.next_scale.maps import TokenMaps
from tests.decoding.next_scale.plain import CASES, model_of


def test_bits_of_squares_by_hand():
    """A token's bits lie in its square of positions; sums are resized without antialiasing, and put into squares."""
    config, grid = CASES["patches"]
    model, quantizer = model_of(config)
    scales = model.config.scales(grid)
    maps = TokenMaps(config, quantizer, scales)
    sizes = [scale.num_cells for scale in scales]
    tokens = torch.randint(2, (2, sum(sizes), 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latent, expected = torch.zeros(2, 3, 14, 8), []
    for index, (scale, part) in enumerate(zip(scales, tokens.split(sizes, dim=1), strict=True)):
        codes = torch.zeros(2, 3, 2 * scale.height, 2 * scale.width)
        for cell in range(scale.num_cells):
            row, col = divmod(cell, scale.width)
            for bit in range(12):
                value, (down, right) = bit // 4, divmod(bit % 4, 2)
                signs = 2 * part[:, cell, bit].float() - 1
                codes[:, value, 2 * row + down, 2 * col + right] = signs / 3**0.5
        latent += F.interpolate(codes, (14, 8), mode="bilinear")
        if index + 1 < len(scales):
            after = scales[index + 1]
            seen = F.interpolate(latent, (2 * after.height, 2 * after.width), mode="bilinear")
            expected.append(F.pixel_unshuffle(seen, 2).flatten(2).mT)
    torch.testing.assert_close(maps.inputs(tokens), torch.cat(expected, dim=1))


@pytest.mark.parametrize("case", CASES)
def test_shapes(case):
    config, grid = CASES[case]
    model, quantizer = model_of(config)
    maps = TokenMaps(config, quantizer, model.config.scales(grid))
    num_tokens = sum(scale.num_cells for scale in model.config.scales(grid))
    tokens = torch.randint(2, (2, num_tokens, *config.token_shape))
    assert maps.blank(2, model.device).shape[2:] == (grid.height * config.patch, grid.width * config.patch)
    assert maps.inputs(tokens).shape == (2, num_tokens - 1, config.token_dim)
