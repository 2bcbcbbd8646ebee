"""Memory estimates against the bytes that autograd stores."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from flashar_cli.config import BranchConfig
from flashar_cli.config.recipe import EngineSettings
from flashar_cli.models.flashar import FlasharModel, initialise
from flashar_cli.training import memory
from tests.tiny_models import random_config


def config_of(num_layers: int, height: int, width: int):
    config = random_config(height, width, branch=False, tokenizer=False)
    changes = {"num_layers": num_layers, "dim": 64, "num_heads": 4, "num_kv_heads": 4}
    branch = BranchConfig(layer=num_layers, gate="hidden", gate_dim=64)
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=changes), "branch": branch})


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("shape", ((3, 5), (5, 3), (8, 8)))
def test_extrapolation_meets_the_deep_model(shape, dtype):
    config = config_of(5, *shape)
    model = FlasharModel(config)
    initialise(model, 0)
    per_image = memory._stored_bytes(model, 3, dtype) - memory._stored_bytes(model, 2, dtype)
    tokens = config.prefix.longest + config.order_grid.num_cells - 1
    gradients = tokens * 2 * 4 * config.backbone.vocab_size
    assert memory.activation_bytes(config, False, dtype) - gradients == pytest.approx(per_image, rel=0.05)


def test_measuring_keeps_nothing():
    """A cycle through autograd, which garbage collection can't find, would keep the weights forever."""
    config = config_of(2, 3, 5)
    model = FlasharModel(config)
    initialise(model, 0)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    assert memory._stored_bytes(model, 2, torch.float32) > 0
    del model
    gc.collect()
    assert not any(weight() is not None for weight in weights)


def test_recomputing_takes_less():
    config = config_of(8, 4, 4)
    recomputed, stored = (memory.activation_bytes(config, recompute, torch.float32) for recompute in (True, False))
    assert recomputed < 0.5 * stored


def test_shards_divide_what_the_optimizer_holds():
    config, engine = config_of(4, 4, 4), EngineSettings(strategy="fsdp", micro_batch_size=4)
    alone = memory.estimate_memory(config, engine, 8, 1, 2**30, torch.float32)
    shared = memory.estimate_memory(config, engine, 8, 4, 2**30, torch.float32)
    assert (alone.strategy, shared.strategy) == ("single", "fsdp")
    assert shared.weights_and_optimizer_bytes == -(-alone.weights_and_optimizer_bytes // 4)
    assert (alone.images_per_forward, shared.images_per_forward) == (4, 2)
    room = alone.total_bytes / memory.MOST_FILLED
    assert alone.largest_micro_batch(int(room) + 1) == 4 and alone.largest_micro_batch(int(room * 0.99)) == 3


def test_auto_shards_what_would_not_fit():
    config, engine = config_of(4, 4, 4), EngineSettings()
    size = sum(parameter.numel() for parameter in FlasharModel(config).parameters())
    for device_bytes, strategy in ((100 * size, "ddp"), (16 * size, "fsdp")):
        assert memory.estimate_memory(config, engine, 8, 2, device_bytes, torch.float32).strategy == strategy


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_losses_hold_the_logits_of_some_targets(dtype):
    """By hand: both heads' logits, two log-softmaxes, two gradients: V float32 numbers each; heads' gradients."""
    config = config_of(2, 16, 16)
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"vocab_size": 4096})})
    heads = 2 * 64 * 4096 * 4
    assert memory.loss_bytes(config, 4, dtype) == pytest.approx(1024 * 6 * 4096 * 4 + heads, rel=0.05)
    assert memory.loss_bytes(config, 8, dtype) == memory.loss_bytes(config, 4, dtype)
    few = memory.loss_bytes(config, 1, dtype)
    assert few == pytest.approx(256 * 6 * 4096 * 4 + heads, rel=0.05)
    assert memory.estimate_memory(config, EngineSettings(), 4, 1, 2**33, dtype).total_bytes > 1024 * 6 * 4096 * 4
