"""Other ways to run a model's parts, in place only for as long as a decode runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import Block, FeedForward

# From how many rows on packed weights are faster. LlamaGen-B's linear layers on two Xeon cores with AMX, ms plain and
# packed: float32 2 rows 17 and 20, 4 rows 29 and 20, 16 rows 44 and 30, 32 rows 50 and 43; bfloat16 2 rows 17 and 12,
# 32 rows 18 and 16.
MIN_PACKED_ROWS = {torch.float32: 4, torch.bfloat16: 1}


class Forwards:
    """Forwards and weights that stand in for modules' own ones. Outside ``active`` the model is as it was."""

    def __init__(self, stand_ins: list[tuple[nn.Module, str, Any]]) -> None:
        """Each is a module, the name of an attribute of its class, and what the module itself has instead."""
        self._stand_ins = stand_ins

    @contextmanager
    def active(self) -> Iterator[None]:
        """The stand-ins are used inside; hooks on the modules are called as ever."""
        for module, name, value in self._stand_ins:
            module.__dict__[name] = value
        try:
            yield
        finally:
            for module, name, _ in self._stand_ins:
                del module.__dict__[name]


def compiled_blocks(model: FlasharModel) -> Forwards:
    """Every transformer block through ``torch.compile``, its ``w1`` and ``w3`` as one product: a launch less. Both
    parameters become views of one new tensor, so that no weight is held twice; quantised ones stay apart, and quantised
    heads are compiled too, as an eager product widens all of their weights first.
    """
    modules = list(model.modules())
    heads = [model.backbone.head, *([] if model.branch is None else [model.branch.head])]
    parts = [each for each in modules if isinstance(each, Block)] + [head for head in heads if is_quantized(head)]
    # dynamic: the number of cells and of stored keys changes from step to step.
    compiled = [(each, "forward", torch.compile(each.forward, dynamic=True)) for each in parts]
    apart = [each for each in modules if isinstance(each, FeedForward) and not is_quantized(each)]
    return Forwards(compiled + [(each, "w13", _joined(each)) for each in apart])


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


@torch.inference_mode(False)
@torch.no_grad()
def _joined(module: FeedForward) -> Tensor:
    joined = torch.cat([module.w1.weight, module.w3.weight])
    module.w1.weight.data, module.w3.weight.data = joined.chunk(2)
    return joined
