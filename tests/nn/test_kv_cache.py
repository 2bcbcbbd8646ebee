"""What a cache stores and gives back, on a model whose queries share keys and values."""

from __future__ import annotations

import torch

from flashar_cli.nn.kv_cache import KVCache
from tests.tiny_models import build_model, random_config


def test_a_model_keeps_its_own_number_of_heads():
    config = random_config(3, 5)
    model = build_model(config)
    assert config.backbone.num_kv_heads < config.backbone.num_heads
    # Two blocks and one of the branch; keys and values; 3 images; 2 key and value heads; 1 + 15 positions; 64 / 4.
    assert model.new_cache(3, 1, 15).memory.shape == (3, 2, 3, 2, 16, 16)
    assert build_model(random_config(3, 5, branch=False)).new_cache(1, 1, 15).memory.shape == (2, 2, 1, 2, 16, 16)


def test_what_was_stored_comes_back_in_its_place():
    cache = KVCache([0, 0], 1, 2, 5, 4, torch.device("cpu"), torch.float32)
    keys, values = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    for start, end in ((0, 2), (2, 3), (3, 5)):
        stored = cache.layers[1].update(start, keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(stored[0], keys[:, :, :end]) and torch.equal(stored[1], values[:, :, :end])
    assert torch.equal(cache.memory[1], torch.stack([keys, values]))
    assert not cache.memory[0].any()
