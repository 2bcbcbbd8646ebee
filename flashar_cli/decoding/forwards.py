"""Other ways to run a model's parts, in place only for as long as a decode runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import CaptionPrefix
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.attention import flex_takes
from flashar_cli.nn.layers import Attention, Block, FeedForward

# From how many rows on packed weights are faster. LlamaGen-B's linear layers on two Xeon cores with AMX, ms plain and
# packed: float32 2 rows 17 and 20, 4 rows 29 and 20, 16 rows 44 and 30, 32 rows 50 and 43; bfloat16 2 rows 17 and 12,
# 32 rows 18 and 16.
MIN_PACKED_ROWS = {torch.float32: 4, torch.bfloat16: 1}
# All blocks of a process share their compiled variants: prefix, one cell, several cells, each for rows 1 and more; with
# FlexAttention for every batch size.
MAX_VARIANTS = 64


class Forwards:
    """Forwards and weights that stand in for modules' own ones. Outside ``active`` the model is as it was."""

    def __init__(
        self,
        stand_ins: list[tuple[nn.Module, str, Any]],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Each is a module, the name of an attribute, and what the module has instead; all act inside ``around``."""
        self._stand_ins, self._around = stand_ins, around

    @contextmanager
    def active(self) -> Iterator[None]:
        """The stand-ins are used inside; hooks on the modules are called as ever."""
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


def compiled_blocks(model: FlasharModel, flex: bool = False) -> Forwards:
    """Every transformer block through ``torch.compile``, its ``w1`` and ``w3`` as one product: a launch less. Both
    parameters become views of one new tensor, so that no weight is held twice. With ``flex``, attention that needs no
    mask is FlexAttention. In use RuntimeError is raised rather than a block run as it is.
    """
    modules = list(model.modules())
    # dynamic: the number of cells and of stored keys changes from step to step.
    stand_ins: list[tuple[nn.Module, str, Any]] = [
        (each, "forward", torch.compile(each.forward, dynamic=True)) for each in modules if isinstance(each, Block)
    ]
    stand_ins += [(each, "w13", _joined(each)) for each in modules if isinstance(each, FeedForward)]
    if flex:
        stand_ins += [(each, "backend", "flex_decoding") for each in modules if isinstance(each, Attention)]
    return Forwards(stand_ins, _many_variants)


@contextmanager
def _many_variants() -> Iterator[None]:
    """Room for the compiled variants of a block; running out of it is an error, as a block that silently runs as it is
    would falsify every measurement.
    """
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS, fail_on_recompile_limit_hit=True):
        try:
            yield
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:  # which is no RuntimeError
            raise RuntimeError(f"the blocks have {MAX_VARIANTS} compiled variants and need more") from error


def flex_obstacle(model: FlasharModel) -> str | None:
    """What keeps a model from decoding with FlexAttention where it is, in one line, or nothing."""
    if isinstance(model.config.prefix, CaptionPrefix):
        return "captions need a key mask at every step, for which attention is not FlexAttention's"
    head_dim = model.config.backbone.head_dim
    if model.device.type == "cuda" and not flex_takes(head_dim):
        return f"FlexAttention takes head sizes 16, 32, 64, ... on CUDA, not {head_dim}"
    return None


def can_pack(model: FlasharModel) -> bool:
    """Whether ``packed_linears`` works on this model, here."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
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
