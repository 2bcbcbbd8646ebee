"""Validation losses of a model under both orders."""

from __future__ import annotations

import torch
import torch.distributed as dist

from flashar_cli.data.codes import CodeSet
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.losses import cross_entropy, gate_entropy, gate_values
from flashar_cli.training.parallel import sum_over_processes
from flashar_cli.world import World, current_world


@torch.no_grad()
def validation_losses(
    model: FlasharModel,
    data: CodeSet,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    raster_only: bool = False,
) -> dict[str, float]:
    """Nats per token on all pictures of ``data``: ``raster``; with a branch also ``fused``, ``horizontal`` and
    ``vertical`` (each over the cells it predicts), and ``gate_mean``, ``gate_std``, ``gate_entropy_bits`` and
    ``gate_corner``. ``raster_only`` leaves the branch out. Several processes share the batches; all get the result.
    """
    model.eval()
    world = current_world() if dist.is_initialized() else World()
    grid = model.config.order_grid
    orders = [grid.raster()]
    if model.branch is not None and not raster_only:
        orders.append(grid.diagonal())
    sums: dict[str, float] = {}
    for rows, weight in _turns(len(data), batch_size, world):
        for order in orders:
            for name, value in _batch_losses(model, data, rows, order, dtype).items():
                sums[name] = sums.get(name, 0.0) + weight * value
    return dict(zip(sums, sum_over_processes([value / len(data) for value in sums.values()]), strict=True))


def _turns(total: int, batch_size: int, world: World) -> list[tuple[slice, int]]:
    """The batches of this process with the number of pictures each counts for. Sharded models need every process in
    every forward, so one that has run out repeats the first batch for nothing.
    """
    batches = [slice(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    rounds = -(-len(batches) // world.size)
    indices = [turn * world.size + world.rank for turn in range(rounds)]
    return [
        (batches[index], batches[index].stop - batches[index].start) if index < len(batches) else (batches[0], 0)
        for index in indices
    ]


def _batch_losses(
    model: FlasharModel, data: CodeSet, rows: slice, order: Order, dtype: torch.dtype
) -> dict[str, float]:
    codes_BHW, conditions = data.take(rows).tensors(model.device)
    codes_BN = order.from_raster(codes_BHW)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        prediction = model(codes_BN, conditions, order)
    if prediction.vertical is None:
        return {"raster": float(cross_entropy(prediction.logits, codes_BN))}
    gates, corner = gate_values(prediction), prediction.gate
    assert corner is not None
    return {
        "fused": float(cross_entropy(prediction.logits, codes_BN)),
        "horizontal": float(cross_entropy(prediction.horizontal, codes_BN, prediction.targets.has_horizontal)),
        "vertical": float(cross_entropy(prediction.vertical, codes_BN, prediction.targets.has_vertical)),
        "gate_mean": float(gates.mean()),
        "gate_std": float(gates.std(unbiased=False)),
        "gate_entropy_bits": float(gate_entropy(prediction)),
        "gate_corner": float(corner[:, 0].mean()),
    }
