from __future__ import annotations

import pytest
import torch

from flashar_cli.nn.rope import apply_rope


def one_by_one(x, table):
    """Each pair of numbers turned by its own two-by-two matrix, in float64."""
    turned = x.double().clone()
    for position in range(x.shape[1]):
        for pair in range(x.shape[-1] // 2):
            cos, sin = table[position, pair].double()
            matrix = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
            at = slice(2 * pair, 2 * pair + 2)
            turned[:, position, :, at] = x[:, position, :, at].double() @ matrix.T
    return turned


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("head_dim", (4, 16, 100))
@pytest.mark.parametrize("compiling", (False, True))
def test_pairs_turn_by_their_angles(monkeypatch, compiling, head_dim, dtype):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator = torch.Generator().manual_seed(0)
    # A view with gaps, as the queries of a product that makes keys and values too.
    x = torch.randn(2, 5, 3, 3 * head_dim, generator=generator).to(dtype)[..., :head_dim]
    angles = torch.randn(5, head_dim // 2, generator=generator)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    turned = apply_rope(x, table)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, one_by_one(x, table).to(dtype))
