"""The floor against sums by hand."""

import pytest
import torch
from torch import nn

from flashar_cli.decoding.costs import Floor, ForwardCost, Workload, forward_costs
from flashar_cli.decoding.quantize import Scheme, quantize_model
from flashar_cli.decoding.static import RASTER
from flashar_cli.families import PRESETS
from flashar_cli.grid import Grid
from flashar_cli.machine.rates import Rates
from tests.tiny_models import build_model, emu_like_config, random_config


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
def test_costs_by_hand(height: int, width: int) -> None:
    config = random_config(height, width)
    backbone, branch = config.backbone, config.branch
    assert branch is not None
    grid, rows = Grid(height, width), 6
    block, head, gate = backbone.block_weights, backbone.head_weights, config.gate_weights
    work = Workload(grid, rows, prefix_length=1, weight_bytes=4)

    raster = forward_costs(config, grid.raster(), work)
    assert len(raster) == height * width
    assert {cost.read_bytes for cost in raster} == {4 * (2 * block + head)}
    assert {cost.flops for cost in raster} == {2 * rows * (2 * block + head)}

    diagonal = forward_costs(config, grid.diagonal(), work)
    assert len(diagonal) == height + width - 1
    assert {cost.read_bytes for cost in diagonal} == {4 * (3 * block + 2 * head + gate)}
    # Blocks run on the prefix token and all cells but the last, heads on all cells.
    num_cells = height * width
    expected = 2 * rows * (3 * block * num_cells + (2 * head + gate) * num_cells)
    assert sum(cost.flops for cost in diagonal) == expected


def test_costs_with_line_ends_and_a_branch_apart_by_hand() -> None:
    config = emu_like_config(3, 5, depth=2)
    grid, rows, prefix = Grid(3, 5), 4, 7
    block, head, gate = config.backbone.block_weights, config.backbone.head_weights, config.gate_weights
    work = Workload(grid, rows, prefix, weight_bytes=2)
    raster = forward_costs(config, config.raster(grid), work)
    assert len(raster) == 15 and {cost.read_bytes for cost in raster} == {2 * (2 * block + head)}
    # All tokens of the image but the last are fed, two of them end rows.
    assert sum(cost.flops for cost in raster) == 2 * rows * (2 * block * (prefix + 14 + 2) + head * 15)
    diagonal = forward_costs(config, grid.diagonal(), work)
    assert [cost.read_bytes for cost in diagonal] == [2 * (2 * block + 2 * head + gate)] + 6 * [
        2 * (4 * block + 2 * head + gate)
    ]
    expected = 2 * rows * (2 * block * (prefix + 14) + 2 * block * 14 + (2 * head + gate) * 15)
    assert sum(cost.flops for cost in diagonal) == expected


@pytest.mark.parametrize("scheme", ("int8", "fp8"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_quantised_bytes_are_those_of_the_tensors(scheme: Scheme, dtype: torch.dtype) -> None:
    pytest.importorskip("torchao")
    config = random_config(3, 5)
    model = build_model(config).to(dtype)
    quantize_model(model, scheme)
    assert model.branch is not None

    def num_bytes(*modules: nn.Module) -> int:
        weights = [weight for module in modules for weight in module.parameters()]
        parts = [[weight.qdata, weight.scale] if hasattr(weight, "qdata") else [weight] for weight in weights]
        return sum(part.numel() * part.element_size() for tensors in parts for part in tensors)

    raster = num_bytes(model.backbone) - num_bytes(model.backbone.embedding)
    both = raster + num_bytes(model.branch)
    for order, expected in ((Grid(3, 5).raster(), raster), (Grid(3, 5).diagonal(), both)):
        costs = forward_costs(config, order, Workload(order.grid, 6, 1, dtype.itemsize, quantized=True))
        plain = Workload(order.grid, 6, 1, 4)
        assert {cost.read_bytes for cost in costs} == {expected}
        assert [cost.flops for cost in costs] == [cost.flops for cost in forward_costs(config, order, plain)]


def test_the_slower_of_reading_and_computing_counts() -> None:
    rates = Rates(copy_bytes_per_s=100.0, matmul_flops_per_s=1000.0)
    floor = Floor.of([ForwardCost(200, 1000), ForwardCost(100, 3000)], rates)
    assert floor.seconds == pytest.approx(2.0 + 3.0) and floor.num_memory_bound == 1


def test_published_size_matches_the_stated_floor() -> None:
    """LlamaGen-XL, 24x24, bfloat16, at 4.3 TB/s: 0.21 s raster."""
    config = PRESETS["llamagen-xl"].config()
    costs = RASTER.costs(config, Workload(config.order_grid, 2, 1, 2))
    assert Floor.of(costs, Rates(copy_bytes_per_s=4.3e12, matmul_flops_per_s=790e12)).seconds == pytest.approx(
        0.21, abs=0.01
    )


def test_the_34_billion_parameters_match_the_stated_floors() -> None:
    """Emu3.5, 32x32, bfloat16, at 4.3 TB/s. Reading all 34.1 G weights in each of 1024 forwards takes 16.2 s; no
    forward reads the table of 282926 tokens, nor the rows of the head for the 151854 text tokens: 2.2 G weights.
    """
    config, rates = PRESETS["emu3.5-image"].config(), Rates(copy_bytes_per_s=4.3e12, matmul_flops_per_s=790e12)
    head_of_text = 151854 * 5120
    assert config.num_weights + head_of_text == pytest.approx(34.1e9, rel=0.01)
    work = Workload(config.order_grid, 2, 64, 2)
    raster = Floor.of(forward_costs(config, config.raster(work.grid), work), rates).seconds
    assert raster == pytest.approx(16.2 * (34.1 - 2.23) / 34.1, rel=0.01)
