"""Memory estimates against the bytes that autograd stores."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch

from flashar_cli.config import BackboneConfig, BranchConfig, DiffusionConfig, TextPrefix
from flashar_cli.config.recipe import EngineSettings, LoraSettings
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.training import memory
from tests.tiny_models import emu_like_config, random_config


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
    model.initialise(0)
    per_image = memory._stored_bytes(model, 3, dtype) - memory._stored_bytes(model, 2, dtype)
    tokens = config.prefix.longest + config.order_grid.num_cells - 1
    gradients = tokens * 2 * 4 * config.backbone.vocab_size
    assert memory.activation_bytes(config, False, dtype) - gradients == pytest.approx(per_image, rel=0.05)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_extrapolation_of_a_branch_that_does_not_see_the_prompt(dtype):
    config = emu_like_config(5, 3, depth=2).model_copy(update={"tokenizer": None})
    backbone = config.backbone.model_copy(update={"num_layers": 5, "num_heads": 4, "num_kv_heads": 4})
    branch = config.branch.model_copy(update={"layer": 5})
    config = config.model_copy(update={"backbone": backbone, "branch": branch})
    model = FlasharModel(config)
    model.initialise(0)
    per_image = memory._stored_bytes(model, 3, dtype) - memory._stored_bytes(model, 2, dtype)
    assert memory.activation_bytes(config, False, dtype) == pytest.approx(per_image, rel=0.05)


def test_extrapolation_of_block_diffusion():
    """Three images against two, as above, in a forward with unknown tokens."""
    config = config_of(5, 8, 8).model_copy(update={"branch": None, "diffusion": DiffusionConfig(block=8)})
    model = FlasharModel(config).train()
    model.initialise(0)

    def stored(count: int) -> int:
        tokens, unknown = torch.zeros(count, 64, dtype=torch.int64), torch.ones(count, 64, dtype=torch.bool)
        conditions, raster = model.prefix.example(count, seed=0), config.order_grid.raster()

        def forward():
            return model(tokens, conditions, raster, read=HiddenStates.sources, unknown_BN=unknown)

        kept, sources = memory._kept(model, forward, torch.float32)
        return kept + 2 * sources.horizontal.nbytes

    assert memory.activation_bytes(config, False, torch.float32) == pytest.approx(stored(3) - stored(2), rel=0.1)


@pytest.mark.parametrize("num_kv_heads", (6, 3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_extrapolation_meets_the_wide_model(dtype, num_kv_heads):
    sizes = {"dim": 160, "ffn_dim": 272, "num_heads": 6, "num_kv_heads": num_kv_heads}
    config = config_of(2, 3, 5)
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update=sizes)})
    found = memory._extrapolated_bytes_per_token(config, 2, dtype)
    assert found == pytest.approx(memory._stored_bytes_per_token(config, sizes, 2, dtype), rel=0.01)


def test_measuring_keeps_nothing():
    """A cycle through autograd, which garbage collection can't find, would keep the weights forever."""
    config = config_of(2, 3, 5)
    model = FlasharModel(config)
    model.initialise(0)
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
    heads, measured = 2 * 64 * 4096 * 4, memory.Measured.of(config, EngineSettings(), dtype)
    assert measured.loss_bytes(config, 4) == pytest.approx(1024 * 6 * 4096 * 4 + heads, rel=0.05)
    assert measured.loss_bytes(config, 8) == measured.loss_bytes(config, 4)
    few = measured.loss_bytes(config, 1)
    assert few == pytest.approx(256 * 6 * 4096 * 4 + heads, rel=0.05)
    assert memory.estimate_memory(config, EngineSettings(), 4, 1, 2**33, dtype).total_bytes > 1024 * 6 * 4096 * 4


def wide_config():
    """34 billion weights: 64 blocks of width 5120, 131072 tokens, a table of text; and a branch of four blocks."""
    backbone = BackboneConfig(
        dim=5120, num_layers=64, num_heads=64, num_kv_heads=8, head_dim=128, ffn_dim=25600, vocab_size=131072
    )
    prefix = TextPrefix(vocab_size=151854, max_length=64)
    branch = BranchConfig(layer=60, depth=4, gate="hidden", gate_dim=640)
    config = random_config(32, 32, tokenizer=False)
    return config.model_copy(update={"backbone": backbone, "prefix": prefix, "branch": branch})


def test_adapters_of_a_wide_model_by_hand():
    """In bfloat16 the frozen base takes 2 bytes a weight, its adapters and the branch 16."""
    config, lora = wide_config(), LoraSettings(rank=16)
    block = 5120 * (80 + 64) * 128 + 3 * 5120 * 25600 + 2 * 5120
    base = 64 * block + 2 * 131072 * 5120 + 151854 * 5120 + 5120
    branch = 4 * block + 131072 * 5120 + 5120 + 640 * (2 * 5120 + 1) + 1
    adapters = 64 * 16 * ((5120 + 80 * 128) + (64 * 128 + 5120) + 3 * (5120 + 25600))
    assert 33e9 < base < 35e9 and config.num_weights == base + branch
    measured = memory.Measured(2**30, 2**20)
    estimate = partial(memory.estimate_memory, config, EngineSettings(strategy="fsdp"), 8, measured=measured)
    held = 2 * base + 16 * (branch + adapters)
    alone = estimate(1, 2**40, torch.bfloat16, lora)
    assert alone.weights_and_optimizer_bytes == held and alone.copies_bytes == 2 * (branch + adapters)
    assert estimate(4, 2**40, torch.bfloat16, lora).weights_and_optimizer_bytes == -(-held // 4)
    stored_wider = estimate(1, 2**40, torch.bfloat16, lora, torch.float32)
    assert stored_wider.weights_and_optimizer_bytes == held + 2 * base
    assert estimate(1, 2**40, torch.bfloat16).weights_and_optimizer_bytes == 16 * (base + branch)


def test_the_memory_of_a_wide_model_is_measured_without_it():
    """Of 512 targets both heads' logits, two log-softmaxes and two gradients, 4 bytes each."""
    config = wide_config()
    each = memory.target_bytes(config, torch.bfloat16)
    assert each == pytest.approx(6 * 4 * 131072, rel=0.1)
    heads = 2 * 4 * 5120 * 131072
    assert memory.Measured(0, each).loss_bytes(config, 1) == pytest.approx(512 * each + heads, rel=0.01)


def test_ways_say_what_fits_and_which_would():
    """Devices of 140 GiB hold adapters of 34 billion weights on one, all of them in training on eight."""
    config, engine = wide_config(), EngineSettings(micro_batch_size=1, activation_checkpointing=True)
    ways = memory.ways_that_fit(
        config, engine, 8, 140 * 2**30, torch.bfloat16, LoraSettings(rank=8), None, memory.Measured(2**30, 2**22)
    )
    found = [(way.lora_rank, way.processes, way.strategy, fits) for way, fits in ways]
    assert found == [(0, 1, "single", False), (0, 8, "fsdp", True), (8, 1, "single", True), (8, 2, "fsdp", True)]
    assert all(fits == (way.total_bytes <= 0.9 * 140 * 2**30) for way, fits in ways)
