"""Weights of two products in one tensor, for one product in their place."""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.decoding.forwards import StandIn
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import FeedForward


def joined_products(model: FlasharModel) -> list[StandIn]:
    """``w1`` and ``w3`` of every feed-forward as one product: a launch less. Both parameters become views of one
    tensor, which a later call finds, so that no weight is held twice. Quantised ones stay apart.
    """
    plain = (each for each in model.modules() if isinstance(each, FeedForward) and not is_quantized(each))
    return [(each, "w13", _joined(each)) for each in plain]


@torch.inference_mode(False)
@torch.no_grad()
def _joined(module: FeedForward) -> Tensor:
    """``w1`` above ``w3`` [2F, D], whose halves the two parameters are from here on, where they are not yet."""
    w1, w3 = module.w1.weight, module.w3.weight
    if not _are_halves(w1, w3):
        w1.data, w3.data = torch.cat([w1, w3]).chunk(2)
    return w1.data.as_strided((len(w1) + len(w3), w1.shape[1]), w1.stride())


def _are_halves(first: Tensor, second: Tensor) -> bool:
    return (
        first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and first.is_contiguous()
        and second.is_contiguous()
        and second.storage_offset() == first.storage_offset() + first.numel()
    )
