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
# What a compiled decode may put in a module's back-end's place.
DecodingBackend = Literal["flex_decoding"]
# SDPA's kernels while decoding, the first that can run. Not cuDNN's, PyTorch's first choice on Hopper: it builds a plan
# for every new pair of numbers of queries and keys, and each step of a decode has another pair.
DECODING_KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def attention_kernels(kernels: Sequence[SDPBackend] = DECODING_KERNELS) -> AbstractContextManager[None]:
    """A context in which SDPA runs the first of these kernels that can. Code compiled in it keeps them."""
    return sdpa_kernel(list(kernels), set_priority=True)


def attend(
    q_BAQE: Tensor,
    k_BGKE: Tensor,
    v_BGKE: Tensor,
    mask: Tensor | BlockMask | None,
    backend: AttentionBackend | DecodingBackend,
) -> Tensor:
    """Softmax attention with scale 1 / sqrt(E); returns [B, A, Q, E].

    ``mask`` broadcasts to [B, A, Q, K] and is bool (True: may attend) or of the queries' dtype (added to the scores);
    or it is None for no mask at all, or a BlockMask.
    ``sdpa`` is PyTorch's fused kernel, ``eager`` the written-out reference in float32. ``flex`` is FlexAttention where
    there is a BlockMask, as in training, and ``sdpa`` elsewhere. ``flex_decoding``, for code that ``torch.compile``
    runs, is FlexAttention where there is no mask, and ``sdpa`` elsewhere.
    """
    grouped = q_BAQE.shape[1] != k_BGKE.shape[1]
    if mask is not None and not isinstance(mask, Tensor):
        return _flex_attention(q_BAQE.is_cuda)(q_BAQE, k_BGKE, v_BGKE, block_mask=mask, enable_gqa=grouped)
    if backend == "flex_decoding" and mask is None:
        return _flex_decoding(q_BAQE, k_BGKE, v_BGKE, grouped)
    if backend in ("sdpa", "flex", "flex_decoding"):
        return F.scaled_dot_product_attention(q_BAQE, k_BGKE, v_BGKE, attn_mask=mask, enable_gqa=grouped)
    if backend == "eager":
        groups = q_BAQE.shape[1] // k_BGKE.shape[1]
        keys, values = k_BGKE.repeat_interleave(groups, dim=1), v_BGKE.repeat_interleave(groups, dim=1)
        scores = q_BAQE.float() @ keys.float().transpose(-1, -2) / math.sqrt(q_BAQE.shape[-1])
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


def _flex_decoding(q_BAQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, grouped: bool) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # On CUDA the kernel that shares out the keys of few queries is chosen only where the batch size is known at compile
    # time (PyTorch 2.11 to 2.13: torch/_inductor/kernel/flex/flex_decoding.py, _use_flex_decoding).
    for tensor in (q_BAQE, k_BGKE, v_BGKE):
        torch._dynamo.mark_static(tensor, 0)
    # The C++ kernel reads the sizes of what lies under a view of the queries, so they must be no view.
    return flex_attention(q_BAQE.contiguous(), k_BGKE, v_BGKE, enable_gqa=grouped)


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
