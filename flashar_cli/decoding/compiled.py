"""Transformer blocks through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.config import CaptionPrefix
from flashar_cli.decoding.failures import OptimisationFailed, give_up
from flashar_cli.decoding.forwards import Forwards
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.attention import flex_takes
from flashar_cli.nn.layers import Attention, Block, FeedForward

# All blocks of a process share their compiled variants: prefix, one cell, several cells, each for rows 1 and more; with
# FlexAttention for every batch size.
MAX_VARIANTS = 64
# Whose kinds of errors are about compiling: what compiled code itself raises, eager code would raise too.
COMPILER = ("torch._dynamo.", "torch._inductor.", "triton.")


def compiled_blocks(model: FlasharModel, flex: bool = False) -> Forwards:
    """Every transformer block compiled, its ``w1`` and ``w3`` as one product: a launch less. Both parameters become
    views of one tensor, which a later call finds, so that no weight is held twice.

    Quantised ones stay apart, and quantised heads are compiled too, as an eager product widens all of their weights
    first. With ``flex``, attention that needs no mask is FlexAttention. In use OptimisationFailed is raised rather
    than a block run as it is.
    """
    modules = list(model.modules())
    heads = [model.backbone.head, *([] if model.branch is None else [model.branch.head])]
    parts = [each for each in modules if isinstance(each, Block)] + [head for head in heads if is_quantized(head)]
    # dynamic: the number of cells and of stored keys changes from step to step.
    stand_ins: list[tuple[nn.Module, str, Any]] = [
        (part, "forward", torch.compile(part.forward, dynamic=True)) for part in parts
    ]
    plain = [each for each in modules if isinstance(each, FeedForward) and not is_quantized(each)]
    stand_ins += [(each, "w13", _joined(each)) for each in plain]
    if flex:
        stand_ins += [(each, "backend", "flex_decoding") for each in modules if isinstance(each, Attention)]
    return Forwards(stand_ins, _compiling)


def flex_obstacle(model: FlasharModel) -> str | None:
    """What keeps a model from decoding with FlexAttention where it is, in one line, or nothing."""
    if isinstance(model.config.prefix, CaptionPrefix):
        return "captions need a key mask at every step, for which attention is not FlexAttention's"
    head_dim = model.config.backbone.head_dim
    if model.device.type == "cuda" and not flex_takes(head_dim):
        return f"FlexAttention takes head sizes 16, 32, 64, ... on CUDA, not {head_dim}"
    return None


@contextmanager
def _compiling() -> Iterator[None]:
    """Room for the compiled variants of a block; running out of it is an error, as a block that silently runs as it is
    would falsify every measurement.
    """
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS, fail_on_recompile_limit_hit=True):
        try:
            yield
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise OptimisationFailed(
                f"torch.compile failed (the blocks have {MAX_VARIANTS} compiled variants and need more)"
            ) from error
        except Exception as error:
            if not type(error).__module__.startswith(COMPILER):
                raise
            give_up("torch.compile failed", error)


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
