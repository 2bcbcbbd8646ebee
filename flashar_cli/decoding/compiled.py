"""The parts of a decoding step through ``torch.compile``.

Letters: R rows, C cells of a step, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import CaptionPrefix
from flashar_cli.decoding.failures import OptimisationFailed, give_up
from flashar_cli.decoding.forwards import Forwards, StandIn
from flashar_cli.decoding.joined import joined_products
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.attention import flex_takes
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.layers import Attention, Block, RMSNorm

# All blocks of a process share their compiled variants: prefix, one cell, several cells, each for rows 1 and more; with
# FlexAttention for every batch size.
MAX_VARIANTS = 64
# Whose kinds of errors are about compiling: what compiled code itself raises, eager code would raise too.
COMPILER = ("torch._dynamo.", "torch._inductor.", "triton.")


class Stream(NamedTuple):
    """The residual stream between two compiled blocks, a sum that the one after makes part of its norm."""

    x: Tensor
    update: Tensor


def compiled_parts(model: FlasharModel, flex: bool = False) -> Forwards:
    """A step's parts through ``torch.compile``: embedding, one block, norm, and heads with gate and guidance. Each is
    compiled once for all blocks or norms that have it, so that a deep model takes no longer than a shallow one, which a
    step compiled as a whole does; and as blocks hand on sums that are not yet made, nothing is left between the parts
    to be fused. Drawing stays eager, for the same draws at every level: compiled cumulative sums round as they please.

    Products of the same input are joined. With ``flex``, attention that needs no mask is FlexAttention. In use
    OptimisationFailed is raised rather than a part run as it is.
    """
    norms = [model.backbone.norm, *([] if model.branch is None else [model.branch.norm])]
    stand_ins: list[StandIn] = [
        (model.backbone.embedding, "forward", partial(_embedded, _compile(_embed), model.backbone.embedding)),
        *((norm, "forward", partial(_normed, _compile(_norm_of_sum), norm)) for norm in norms),
        (model, "guided_logits", _compile(model.guided_logits)),
        *joined_products(model),
    ]
    for module in model.modules():
        if isinstance(module, Block):
            stand_ins.append((module, "forward", partial(_handed_on, _compile(module.without_last_sum))))
        if flex and isinstance(module, Attention):
            stand_ins.append((module, "backend", "flex_decoding"))
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
    """Room for the compiled variants of a part; running out of it is an error, as a part that silently runs as it is
    would falsify every measurement.
    """
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS, fail_on_recompile_limit_hit=True):
        try:
            yield
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise OptimisationFailed(
                f"torch.compile failed (a part of the step has {MAX_VARIANTS} compiled variants and needs more)"
            ) from error
        except Exception as error:
            if not type(error).__module__.startswith(COMPILER):
                raise
            give_up("torch.compile failed", error)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # dynamic: the number of cells and of stored keys changes from step to step.
    return torch.compile(function, dynamic=True)


def _embed(embedding: nn.Embedding, codes_RC: Tensor) -> tuple[Tensor, Tensor]:
    x_RCD = F.embedding(codes_RC, embedding.weight)
    return x_RCD, torch.zeros_like(x_RCD)


def _norm_of_sum(norm: RMSNorm, x_RCD: Tensor, update_RCD: Tensor) -> Tensor:
    return RMSNorm.forward(norm, x_RCD + update_RCD)


def _embedded(embed: Callable[..., Any], embedding: nn.Embedding, codes_RC: Tensor) -> Stream:
    return Stream(*embed(embedding, codes_RC))


def _handed_on(
    block: Callable[..., Any], x: Tensor | Stream, rope: Tensor, mask: Tensor | None, cache: LayerCache, start: int
) -> Stream:
    stream = x if isinstance(x, Stream) else Stream(x, torch.zeros_like(x))
    return Stream(*block(*stream, rope, mask, cache, start))


def _normed(norm_of_sum: Callable[..., Any], norm: RMSNorm, stream: Stream) -> Tensor:
    return norm_of_sum(norm, *stream)
