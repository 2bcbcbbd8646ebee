"""Other ways to run a model's parts, in place only while a decode runs: joined products and packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import FeedForward

# A module, the name of an attribute, and what the module has in its place.
StandIn = tuple[nn.Module, str, Any]

# From how many rows on packed weights are faster, measured on two Xeon cores with AMX (benchmarks/linear_rate.py).
MIN_PACKED_ROWS = {torch.float32: 4, torch.bfloat16: 1}


class Forwards:
    """Forwards and weights that stand in for modules' own ones. Outside ``active`` the model is as it was."""

    def __init__(
        self, stand_ins: list[StandIn], around: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """``around`` is entered whenever they are active."""
        self._stand_ins, self._around = stand_ins, around

    @contextmanager
    def active(self) -> Iterator[None]:
        """The stand-ins are used inside; hooks on the modules are called as usual."""
        own = [(module, name, module.__dict__[name]) for module, name, _ in self._stand_ins if name in module.__dict__]
        for module, name, value in self._stand_ins:
            module.__dict__[name] = value
        try:
            with self._around():
                yield
        finally:
            for module, name, _ in self._stand_ins:
                del module.__dict__[name]
            for module, name, value in own:
                module.__dict__[name] = value


def plain(model: FlasharModel) -> Forwards:
    """The model's own forwards."""
    return Forwards([])


def joined(model: FlasharModel) -> Forwards:
    """``joined_products`` alone."""
    return Forwards(joined_products(model))


def joined_products(model: FlasharModel) -> list[StandIn]:
    """``w1`` and ``w3`` of every feed-forward as one product, which saves a launch. Both parameters become views of one
    tensor. A later call finds that tensor, so no weight is held twice. Quantised weights stay apart.
    """
    unquantized = (each for each in model.modules() if isinstance(each, FeedForward) and not is_quantized(each))
    return [(each, "w13", _joined(each)) for each in unquantized]


@torch.inference_mode(False)
@torch.no_grad()
def _joined(module: FeedForward) -> Tensor:
    """``w1`` above ``w3`` [2F, D]; the two parameters become its halves, unless they are already."""
    w1, w3 = module.w1.weight, module.w3.weight
    same_storage = w1.untyped_storage().data_ptr() == w3.untyped_storage().data_ptr()
    in_sequence = w3.storage_offset() == w1.storage_offset() + w1.numel()
    if not (same_storage and in_sequence and w1.is_contiguous() and w3.is_contiguous()):
        w1.data, w3.data = torch.cat([w1, w3]).chunk(2)
    return w1.data.as_strided((len(w1) + len(w3), w1.shape[1]), w1.stride())


def packing_obstacle(model: FlasharModel) -> str | None:
    """Why ``packed_linears`` cannot run on this model here, in one line; None where it can."""
    on_cpu = model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if on_cpu and not is_quantized(model):
        if model.dtype == torch.float32:
            return None
        if model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
    return "packed weights need float32 or bfloat16 on a CPU with oneDNN, not quantised"


def packed_linears(model: FlasharModel) -> Forwards:
    """Gives every linear layer of a model on a CPU a second copy of its weights, in the order in which oneDNN's matrix
    kernels read them. Without it each product of a few rows first sorts all weights.
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
