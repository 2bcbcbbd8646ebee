"""Attention back-ends behind one function.

Letters: B batch, A query heads, G key/value heads, Q queries, K keys, E head dim.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.errors import FlasharError

AttentionBackend = Literal["sdpa", "eager"]
BACKENDS: tuple[AttentionBackend, ...] = ("sdpa", "eager")


def attend(q_BAQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, backend: AttentionBackend) -> Tensor:
    """Softmax attention with scale 1 / sqrt(E); returns [B, A, Q, E].

    ``mask`` is bool and broadcasts to [B, A, Q, K] (True: may attend), or None for no mask at all. ``sdpa`` is
    PyTorch's fused kernel, ``eager`` the written-out reference in float32.
    """
    if backend == "sdpa":
        grouped = q_BAQE.shape[1] != k_BGKE.shape[1]
        return F.scaled_dot_product_attention(q_BAQE, k_BGKE, v_BGKE, attn_mask=mask, enable_gqa=grouped)
    if backend == "eager":
        groups = q_BAQE.shape[1] // k_BGKE.shape[1]
        keys, values = k_BGKE.repeat_interleave(groups, dim=1), v_BGKE.repeat_interleave(groups, dim=1)
        scores = q_BAQE.float() @ keys.float().transpose(-1, -2) / math.sqrt(q_BAQE.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(dim=-1) @ values.float()).type_as(q_BAQE)
    raise FlasharError(f"unknown attention back-end '{backend}'; expected one of {', '.join(BACKENDS)}")
