"""The floor of next-scale models against what PyTorch counts, and against published counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.costs import Workload
from flashar_cli.decoding.next_scale.costs import NUM_LOGITS, NUM_STREAMS, scale_bytes, scale_costs
from flashar_cli.decoding.next_scale.decoder import SCALE, TRUNCATE
from flashar_cli.decoding.quantize import quantize_model
from flashar_cli.families import PRESETS
from flashar_cli.grid import Grid
from flashar_cli.nn.attention import attention_kernels
from tests.decoding.next_scale.plain import CASES, conditions_of, model_of, plan_of, uniform_of

PRUNING = Pruning(ratios=((2, 0.3), (3, 0.5)), first_layer=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "pruning",
    (Pruning(), PRUNING, PRUNING.model_copy(update={"last_layer": 1}), Pruning(num_scales=3)),
    ids=("all", "pruned", "one layer", "skipped"),
)
@pytest.mark.parametrize("guided", (False, True))
def test_products_are_those_that_pytorch_counts(case, pruning, guided):
    """Convolutions of the quantizer are left out, as they are no products with the model's weights."""
    config, grid = CASES[case]
    parts, conditions = model_of(config), conditions_of(config, 2, (4, 6))
    sampling = Sampling(cfg_scale=2.0) if guided else Sampling()
    plan = plan_of(parts, conditions, grid, sampling, pruning)
    plan.load(conditions, sampling, uniform_of(parts[0], grid, 2))
    math = attention_kernels((SDPBackend.MATH,))  # others are not counted on a CPU
    with torch.inference_mode(), math, FlopCounterMode(display=False) as counter:
        plan.run()
    counted = sum(
        flops for operator, flops in counter.get_flop_counts()["Global"].items() if "convolution" not in str(operator)
    )
    work = Workload(grid, 4 if guided else 2, parts[0].prefix.length(conditions), weight_bytes=4)
    assert sum(cost.flops for cost in scale_costs(config, pruning, work)) == counted


@pytest.mark.parametrize("case", CASES)
def test_every_weight_that_is_read_is_counted_once_a_forward(case):
    """Rows of tables are not counted; what the condition takes is read by the first forward alone."""
    config, grid = CASES[case]
    model, _ = model_of(config)
    costs = scale_costs(config, Pruning(), Workload(grid, 2, 6, weight_bytes=2))
    every = sum(layer.weight.numel() for layer in model.step_layers) + model.head.out.weight.numel()
    assert {cost.read_bytes for cost in costs[1:]} == {2 * every}
    tables = model.levels.weight.numel() + (0 if model.positions is None else model.positions.numel())
    total = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for layer in model.step_layers for parameter in layer.parameters())
    small -= sum(layer.weight.numel() for layer in model.step_layers)
    assert 2 * (total - tables - small) <= costs[0].read_bytes <= 2 * (total - tables)


def test_quantised_weights_take_a_byte_each():
    pytest.importorskip("torchao")
    config, grid = CASES["tall"]
    model, _ = model_of(config)
    quantize_model(model, "int8")
    stored = sum(layer.weight.qdata.numel() + 4 * layer.weight.scale.numel() for layer in model.step_layers)
    costs = scale_costs(config, Pruning(), Workload(grid, 2, 6, weight_bytes=4, quantized=True))
    assert costs[1].read_bytes == stored + 4 * model.head.out.weight.numel()


def test_the_released_setting_against_published_counts():
    """TFLOP of the transformer with guidance at 1024x1024, counted from the released code."""
    config = PRESETS["infinity-2b"].config()
    work = Workload(Grid(64, 64), 2, 50, weight_bytes=2)
    released = config.fastvar
    for pruning, published in ((Pruning(), 115.3), (Pruning(num_scales=11), 36.7), (released, 27.3)):
        counted = sum(cost.flops for cost in scale_costs(config, pruning, work)) / 1e12
        assert counted == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("case", ("var", "tall"))
def test_memory_covers_the_plan_and_grows_with_what_it_holds(case):
    config, grid = CASES[case]
    parts, conditions = model_of(config), conditions_of(config, 1)
    work = Workload(grid, 2, parts[0].prefix.length(conditions), weight_bytes=4)
    for pruning in (Pruning(), PRUNING, Pruning(num_scales=3)):
        plan = plan_of(parts, conditions, grid, Sampling(cfg_scale=2.0), pruning)
        held = sum(4 * (cache.keys.numel() + cache.values.numel()) for cache in plan.caches)
        held += plan.blocks.outputs.numel() * 4
        if plan.context.memory is not None:
            held += plan.context.memory.numel() * 4
        one, two = (scale_bytes(config, pruning, work, caches, with_images=False) for caches in (1, 2))
        assert held <= two - one <= 2 * held


def test_memory_by_hand():
    """Of 7x4 tokens the scales have 1, 2, 8, 15 and 28; captions have up to 6 features; two rows of three blocks of
    width 32, and 4 bytes a value. What is pruned keeps the outputs of three parts of each block on the map before.
    """
    config, grid = CASES["tall"]
    part = config.transformer
    work, values = Workload(grid, 2, 6, weight_bytes=4), 2 * part.num_layers * part.dim * 4
    full, two = (scale_bytes(config, Pruning(), work, caches, with_images=False) for caches in (1, 2))
    assert two - full == values * 2 * (1 + 2 + 8 + 15 + 28 + 6)
    assert scale_bytes(config, Pruning(ratios=((3, 0.5),)), work, 1, False) - full == values * 3 * 8
    assert scale_bytes(config, Pruning(ratios=((4, 0.5),)), work, 1, False) - full == values * 3 * 15
    rest, short = 2 * full - two, Pruning(num_scales=3)
    shorter = 2 * scale_bytes(config, short, work, 1, False) - scale_bytes(config, short, work, 2, False)
    assert rest * 8 == shorter * 28, "what is not kept is of the largest map"
    each = NUM_STREAMS * part.dim * 4 + part.ffn_dim * 4 + NUM_LOGITS * config.head_outputs * 4
    assert rest == 2 * 28 * each
    assert TRUNCATE.image_bytes(config.with_fastvar(short), work) == scale_bytes(config, short, work, 1, True)
    assert SCALE.image_bytes(config.with_fastvar(short), work) == scale_bytes(config, Pruning(), work, 1, True)


@pytest.mark.parametrize("case", ("var", "tall"))
def test_what_is_kept_of_an_image_is_what_inspect_says(case):
    config, grid = CASES[case]
    parts = model_of(config)
    plan = plan_of(parts, conditions_of(config, 1, (6,)), grid, Sampling())
    kept = sum(cache.keys.numel() + cache.values.numel() for cache in plan.caches)
    memory = 0 if plan.context.memory is None else plan.context.memory.numel()
    assert config.with_grids([grid]).cache_values == kept + memory


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_a_block_are_those_of_its_layers(case):
    config, _ = CASES[case]
    model, _ = model_of(config)
    found = config.transformer.num_layers * config.transformer.token_outputs(config.cross_attention)
    assert found == sum(layer.out_features for layer in model.step_layers)
