"""The parts of a decoding step through ``torch.compile``, and FlexAttention in SDPA's place inside them.

Letters: R rows, C cells of a step, D model dim; B, A, G, Q, K, E as in ``nn/attention.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashar_cli.decoding.failures import OptimisationFailed, give_up
from flashar_cli.decoding.forwards import Forwards, StandIn, joined_products
from flashar_cli.models.base import TokenModel
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.nn.attention import flex_takes
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.layers import Attention, Block, RMSNorm

# All blocks of a process share their compiled variants: prefix, one cell, several cells, each for one row and for more;
# with FlexAttention one for every batch size.
MAX_VARIANTS = 64
# Modules whose errors are about compiling. What compiled code itself raises, eager code would raise too.
COMPILER = ("torch._dynamo.", "torch._inductor.", "triton.")


class Stream(NamedTuple):
    """The residual stream between two compiled blocks: a sum that the next block makes as part of its norm."""

    x: Tensor
    update: Tensor


def compiled_parts(model: TokenModel) -> Forwards:
    """A step's parts through ``torch.compile``. Where compiling fails, using the parts raises OptimisationFailed;
    nothing falls back to eager code unnoticed. Sampling stays eager, because compiled cumulative sums round differently
    and the tokens must be the same at every level.
    """
    if isinstance(model, NextScaleModel):
        return Forwards(list(_parts_of_scales(model)), _compiling)
    assert isinstance(model, FlasharModel), "a model of a known kind"
    return _parts_of_steps(model)


def _parts_of_scales(model: NextScaleModel) -> Iterator[StandIn]:
    """Each part of a block with its norm and modulation: between them FastVAR may select tokens. Compiled once for all
    blocks.
    """
    for block in model.blocks:
        for part in block.parts:
            yield block, part.__name__, _compile(part)


def _parts_of_steps(model: FlasharModel, others: Sequence[StandIn] = ()) -> Forwards:
    """Embedding, one block, norm, and heads with gate and guidance.

    Each part is compiled once for all blocks or norms, so a deep model compiles as fast as a shallow one. A block hands
    on its last sum unmade and the next block makes it, so compiling a whole step would fuse no more than this. Products
    of the same input are joined. ``others`` stand in beside them.
    """
    norms = [model.backbone.norm, *([] if model.branch is None else [model.branch.norm])]
    stand_ins: list[StandIn] = [
        (model, "embed_step", partial(_embedded, _compile(_embed), model)),
        *((norm, "forward", partial(_normed, _compile(_norm_of_sum), norm)) for norm in norms),
        (model, "guided_logits", _compile(model.guided_logits)),
        *joined_products(model),
        *others,
    ]
    if model.branch is not None:
        stand_ins.append((model.branch, "unseen", _sum))
    for module in model.modules():
        if isinstance(module, Block):
            stand_ins.append((module, "forward", partial(_handed_on, _compile(module.without_last_sum))))
    return Forwards(stand_ins, _compiling)


def flex_obstacle(model: TokenModel) -> str | None:
    """Why FlexAttention cannot decode this model here, in one line; None where no reason is known."""
    if not isinstance(model, FlasharModel):
        return "FlexAttention stands in for the attention of a few tokens at a time; whole maps keep SDPA's"
    if model.prefix.masks_keys:
        return f"a {model.config.prefix.noun} needs a key mask at every step, which FlexAttention does not take here"
    if model.device.type != "cuda":
        return "FlexAttention needs a CUDA device: on a CPU PyTorch 2.13 compiles it to wrong numbers for one query"
    head_dim = model.config.backbone.head_dim
    if not flex_takes(head_dim):
        return f"FlexAttention takes head sizes 16, 32, 64, ... on CUDA, not {head_dim}"
    return None


def parts_with_flex(model: FlasharModel) -> Forwards:
    """``compiled_parts`` with FlexAttention in every attention that needs no mask."""
    modules = [module for module in model.modules() if isinstance(module, Attention)]
    return _parts_of_steps(model, [(module, "attend", partial(_flex_attend, module)) for module in modules])


def _flex_attend(module: Attention, q_BAQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return Attention.attend(module, q_BAQE, k_BGKE, v_BGKE, mask)
    from torch.nn.attention.flex_attention import flex_attention

    # CUDA's kernel for few queries, which divides the keys among its blocks, is chosen only where the batch size is
    # known at compile time (PyTorch 2.11 to 2.13: torch/_inductor/kernel/flex/flex_decoding.py, _use_flex_decoding).
    for tensor in (q_BAQE, k_BGKE, v_BGKE):
        torch._dynamo.mark_static(tensor, 0)
    # The C++ kernel reads the sizes of the tensor under a view of the queries, so they must be no view.
    grouped = module.num_heads != module.num_kv_heads
    return flex_attention(q_BAQE.contiguous(), k_BGKE, v_BGKE, enable_gqa=grouped)


@contextmanager
def _compiling() -> Iterator[None]:
    """Allows MAX_VARIANTS of a part. More is an error, because a part that silently ran eagerly would falsify every
    measurement.
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


def _embed(model: FlasharModel, tokens_RC: Tensor, line_end: bool, unknown_RC: Tensor | None) -> tuple[Tensor, Tensor]:
    x_RCD = FlasharModel.embed_step(model, tokens_RC, line_end, unknown_RC)
    return x_RCD, torch.zeros_like(x_RCD)


def _norm_of_sum(norm: RMSNorm, x_RCD: Tensor, update_RCD: Tensor) -> Tensor:
    return RMSNorm.forward(norm, x_RCD + update_RCD)


def _embedded(
    embed: Callable[..., Any], model: FlasharModel, tokens_RC: Tensor, line_end: bool, unknown_RC: Tensor | None = None
) -> Stream:
    return Stream(*embed(model, tokens_RC, line_end, unknown_RC))


def _sum(stream: Stream) -> Tensor:
    return stream.x + stream.update


def _handed_on(
    block: Callable[..., Any], x: Tensor | Stream, rope: Tensor, mask: Tensor | None, cache: LayerCache, start: int
) -> Stream:
    stream = x if isinstance(x, Stream) else Stream(x, torch.zeros_like(x))
    return Stream(*block(*stream, rope, mask, cache, start))


def _normed(norm_of_sum: Callable[..., Any], norm: RMSNorm, stream: Stream) -> Tensor:
    return norm_of_sum(norm, *stream)
