"""Other ways to run a model's parts, in place only for as long as a decode runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import Block

# Below, reading the weights is all the time, and the plain product reads them faster. LlamaGen-B's linear layers on two
# Xeon cores: 2 rows 15 ms plain, 17 packed; 4 rows 25 and 17; 16 rows 36 and 25; 32 rows 43 and 36.
MIN_PACKED_ROWS = 4


class Forwards:
    """Forwards that stand in for modules' own ones. The model itself stays as it is outside ``active``."""

    def __init__(self, forwards: list[tuple[nn.Module, Callable[..., Any]]]) -> None:
        self._forwards = forwards

    @contextmanager
    def active(self) -> Iterator[None]:
        """The forwards are used inside; hooks on the modules are called as ever."""
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.__dict__["forward"]


def compiled_blocks(model: FlasharModel) -> Forwards:
    """Every transformer block through ``torch.compile``."""
    # dynamic: the number of cells and of stored keys changes from step to step.
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return Forwards([(block, torch.compile(block.forward, dynamic=True)) for block in blocks])


def can_pack(model: FlasharModel) -> bool:
    """Whether ``packed_linears`` works on this model, here."""
    return model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def packed_linears(model: FlasharModel) -> Forwards:
    """Every linear layer of a float32 model on a CPU with a second copy of its weights, in the order in which oneDNN's
    matrix kernels read them: otherwise each product of a few rows sorts all weights first.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Forwards([(linear, partial(_packed_linear, linear, _pack(linear))) for linear in linears])


@torch.inference_mode()
def _pack(linear: nn.Linear) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)


def _packed_linear(linear: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if x.numel() < MIN_PACKED_ROWS * x.shape[-1]:
        return F.linear(x, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, linear.bias, "none", [], "")
