"""Validation losses of a model under both orders."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from flashar_cli.data.codes import CodeSet
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.targets import Targets
from flashar_cli.recipe import StageSettings
from flashar_cli.training.losses import Losses, gate_statistics, losses_of
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
        losses, targets = model(codes_BN, conditions, order, read=partial(_read, model, codes_BN))
    if losses.gate is None or losses.horizontal is None or losses.vertical is None:
        return {"raster": float(losses.fused)}
    mean, deviation, entropy = gate_statistics(losses.gate, targets)
    return {
        "fused": float(losses.fused),
        "horizontal": float(losses.horizontal),
        "vertical": float(losses.vertical),
        "gate_mean": float(mean),
        "gate_std": float(deviation),
        "gate_entropy_bits": float(entropy),
        "gate_corner": float(losses.gate[:, 0].mean()),
    }


def _read(model: FlasharModel, codes_BN: Tensor, hidden: HiddenStates, targets: Targets) -> tuple[Losses, Targets]:
    return losses_of(model, hidden, targets, codes_BN, StageSettings()), targets
