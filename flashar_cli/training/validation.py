"""Validation losses of a model under both orders."""

from __future__ import annotations

import torch

from flashar_cli.data.codes import CodeSet
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.losses import cross_entropy, gate_entropy, gate_values


@torch.inference_mode()
def validation_losses(
    model: FlasharModel,
    data: CodeSet,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    raster_only: bool = False,
) -> dict[str, float]:
    """Nats per token on all pictures of ``data``: ``raster``; with a branch also ``fused``, ``horizontal`` and
    ``vertical`` (each over the cells it predicts), and ``gate_mean``, ``gate_std``, ``gate_entropy_bits`` and
    ``gate_corner``. ``raster_only`` leaves the branch out.
    """
    model.eval()
    grid = model.config.order_grid
    records = [_batch_losses(model, data, rows, grid.raster(), dtype) for rows in _slices(len(data), batch_size)]
    if model.branch is not None and not raster_only:
        diagonal = [_batch_losses(model, data, rows, grid.diagonal(), dtype) for rows in _slices(len(data), batch_size)]
        records = [first | second for first, second in zip(records, diagonal, strict=True)]
    weights = [record.pop("_weight") for record in records]
    return {
        name: sum(weight * record[name] for weight, record in zip(weights, records, strict=True)) / sum(weights)
        for name in records[0]
    }


def _slices(total: int, batch_size: int) -> list[slice]:
    return [slice(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]


def _batch_losses(
    model: FlasharModel, data: CodeSet, rows: slice, order: Order, dtype: torch.dtype
) -> dict[str, float]:
    codes_BHW, conditions = data.take(rows).tensors(model.device)
    codes_BN = order.from_raster(codes_BHW)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        prediction = model(codes_BN, conditions, order)
    record = {"_weight": float(len(codes_BN))}
    if prediction.vertical is None:
        return record | {"raster": float(cross_entropy(prediction.logits, codes_BN))}
    gates, corner = gate_values(prediction), prediction.gate
    assert corner is not None
    return record | {
        "fused": float(cross_entropy(prediction.logits, codes_BN)),
        "horizontal": float(cross_entropy(prediction.horizontal, codes_BN, prediction.targets.has_horizontal)),
        "vertical": float(cross_entropy(prediction.vertical, codes_BN, prediction.targets.has_vertical)),
        "gate_mean": float(gates.mean()),
        "gate_std": float(gates.std(unbiased=False)),
        "gate_entropy_bits": float(gate_entropy(prediction)),
        "gate_corner": float(corner[:, 0].mean()),
    }
