"""Attention back-ends behind one function.

Letters: B batch, A query heads, G key/value heads, Q queries, K keys, E head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionBackend = Literal["sdpa", "flex", "eager"]
BACKENDS: tuple[AttentionBackend, ...] = ("sdpa", "flex", "eager")
# SDPA's kernels while decoding, in order of preference. cuDNN's, PyTorch's first choice on Hopper, is left out: it
# builds a plan for every new pair of numbers of queries and keys, and each step of a decode has another pair.
DECODING_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def attention_kernels(kernels: Sequence[SDPBackend] = DECODING_KERNELS) -> AbstractContextManager[None]:
    """A context in which SDPA runs the first of these kernels that can. Code compiled in it keeps them."""
    return sdpa_kernel(list(kernels), set_priority=True)


def attend(
    q_BAQE: Tensor,
    k_BGKE: Tensor,
    v_BGKE: Tensor,
    mask: Tensor | BlockMask | None,
    backend: AttentionBackend,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention whose scores are multiplied by ``scale`` (None: 1 / sqrt(E)); returns [B, A, Q, E].

    ``mask`` broadcasts to [B, A, Q, K] and is bool (True: may attend) or of the queries' dtype (added to the scores);
    or it is a BlockMask, or None for no mask.
    ``sdpa`` is PyTorch's fused kernel, ``eager`` a plain reference in float32. ``flex`` is FlexAttention for a
    BlockMask, as in training, and ``sdpa`` otherwise.
    """
    grouped = q_BAQE.shape[1] != k_BGKE.shape[1]
    if mask is not None and not isinstance(mask, Tensor):
        return _flex_attention(q_BAQE.is_cuda)(q_BAQE, k_BGKE, v_BGKE, block_mask=mask, scale=scale, enable_gqa=grouped)
    if backend in ("sdpa", "flex"):
        return F.scaled_dot_product_attention(q_BAQE, k_BGKE, v_BGKE, attn_mask=mask, scale=scale, enable_gqa=grouped)
    if backend == "eager":
        groups = q_BAQE.shape[1] // k_BGKE.shape[1]
        keys, values = k_BGKE.repeat_interleave(groups, dim=1), v_BGKE.repeat_interleave(groups, dim=1)
        scores = q_BAQE.float() @ keys.float().transpose(-1, -2)
        scores = scores / math.sqrt(q_BAQE.shape[-1]) if scale is None else scores * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(dim=-1) @ values.float()).type_as(q_BAQE)
    raise FlasharError(f"unknown attention back-end '{backend}'; expected one of {', '.join(BACKENDS)}")


def check_backend(backend: AttentionBackend, device: torch.device, head_dim: int) -> None:
    """Raises FlasharError where a back-end can't train a model of this head size on this device."""
    if backend != "flex":
        return
    if device.type != "cuda":
        raise FlasharError("engine.attention is flex, which trains on CUDA only; use sdpa")
    if not flex_takes(head_dim):
        raise FlasharError(
            f"engine.attention is flex, which takes head sizes 16, 32, 64, ..., not {head_dim}; use sdpa"
        )


def flex_takes(head_dim: int) -> bool:
    """Whether FlexAttention's CUDA kernels take heads of this size."""
    return head_dim >= 16 and not head_dim & (head_dim - 1)


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
