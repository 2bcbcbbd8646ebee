"""What published outputs do not cover: scores without cosines, and the largest scale of a head."""

from __future__ import annotations

import math

import pytest
import torch

from flashar_cli.models.next_scale.layers import SelfAttention
from tests.tiny_models import var_like_config


@pytest.mark.parametrize("cosine", (True, False))
def test_self_attention_by_hand(cosine):
    """Query by query, in float64; one head's learned scale is beyond the largest."""
    torch.manual_seed(0)
    attention = SelfAttention(var_like_config(cosine=cosine).transformer).requires_grad_(False)
    for parameter in attention.parameters():
        parameter.normal_(std=0.3)
    if cosine:
        attention.log_scale[0, :, 0, 0] = torch.tensor([1.5, 7.0])
    x = torch.randn(1, 5, 32)
    weights = attention.wqkv.weight.double().view(3, 2, 16, 32)
    biases = [attention.q_bias.double().view(2, 16), torch.zeros(2, 16), attention.v_bias.double().view(2, 16)]
    heads = torch.zeros(5, 2, 16, dtype=torch.float64)
    for head in range(2):
        q, k, v = (weights[each, head] @ x[0].double().T + biases[each][head][:, None] for each in range(3))
        scale = 0.25 / math.sqrt(16)
        if cosine:
            q, k = q / q.norm(dim=0), k / k.norm(dim=0)
            scale = (math.exp(1.5), 100.0)[head]
        for query in range(5):
            shares = torch.softmax(torch.stack([scale * q[:, query] @ k[:, key] for key in range(5)]), dim=0)
            heads[query, head] = sum(share * v[:, key] for key, share in enumerate(shares))
    expected = heads.flatten(1) @ attention.wo.weight.double().T + attention.wo.bias.double()
    torch.testing.assert_close(attention(x, None)[0].double(), expected, atol=1e-5, rtol=0)
