"""Weights in the order in which a CPU's matrix kernels read them."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.decoding.forwards import Forwards
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.models.flashar import FlasharModel

# From how many rows on packed weights are faster, measured on two Xeon cores with AMX (benchmarks/linear_rate.py).
MIN_PACKED_ROWS = {torch.float32: 4, torch.bfloat16: 1}


def can_pack(model: FlasharModel) -> bool:
    """Whether ``packed_linears`` works on this model, here."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available() or is_quantized(model):
        return False
    return model.dtype == torch.float32 or (
        model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def packed_linears(model: FlasharModel) -> Forwards:
    """Every linear layer of a model on a CPU with a second copy of its weights, in the order in which oneDNN's
    matrix kernels read them: otherwise each product of a few rows sorts all weights first.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Forwards([(linear, "forward", partial(_packed_linear, linear, _pack(linear))) for linear in linears])


@torch.inference_mode()
def _pack(linear: nn.Linear) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)


def _packed_linear(linear: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if x.numel() < MIN_PACKED_ROWS[x.dtype] * x.shape[-1]:
        return F.linear(x, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, linear.bias, "none", [], "")
