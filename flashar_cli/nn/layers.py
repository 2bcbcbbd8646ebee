"""The blocks of a Llama-like decoder.

Letters: B batch, S sequence, D model dim, A query heads, G key/value heads, E head dim.
Parameter names follow upstream LlamaGen (FoundationVision/LlamaGen autoregressive/models/gpt.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashar_cli.config import BackboneConfig
from flashar_cli.nn.attention import AttentionBackend, attend
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.rope import apply_rope

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class RMSNorm(nn.Module):
    """Root-mean-square norm, gain included computed in float32; the output has the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.type_as(x), self.eps).type_as(x)


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``. Decoding may set ``w13``, ``w1`` above ``w3``: one product for two."""

    w13: Tensor | None = None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.w1(x), self.w3(x)) if self.w13 is None else F.linear(x, self.w13).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class Attention(nn.Module):
    """Multi-head or grouped-query self-attention with rotary positions and an optional cache."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.wqkv = nn.Linear(config.dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.backend: AttentionBackend = "sdpa"

    def forward(
        self,
        x_BSD: Tensor,
        rope: Tensor,
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """``rope`` [S, E // 2, 2] are the rows of the queries; with a cache the S positions are stored at ``start``."""
        # Queries and keys, X heads together, are turned at once: half the operations of a decoding step's rotation.
        turned = (self.num_heads + self.num_kv_heads, self.num_kv_heads)
        x_BSXE, v_BSGE = self.wqkv(x_BSD).unflatten(-1, (-1, self.head_dim)).split(turned, dim=2)
        q_BASE, k_BGSE = apply_rope(x_BSXE, rope).transpose(1, 2).split((self.num_heads, self.num_kv_heads), dim=1)
        v_BGSE = v_BSGE.transpose(1, 2)
        if cache is not None:
            k_BGSE, v_BGSE = cache.update(start, k_BGSE, v_BGSE)
        out_BASE = attend(q_BASE, k_BGSE, v_BGSE, mask, self.backend)
        return self.wo(out_BASE.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block. ``dropout`` acts on both residual branches while training; with ``recompute`` the
    backward pass computes activations again instead of keeping them.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = 0.0
        self.recompute = False

    def forward(
        self,
        x_BSD: Tensor,
        rope: Tensor,
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x_BSD, rope, mask, cache, start, use_reentrant=False)
        return self._forward(x_BSD, rope, mask, cache, start)

    def _forward(
        self, x_BSD: Tensor, rope: Tensor, mask: Tensor | BlockMask | None, cache: LayerCache | None, start: int
    ) -> Tensor:
        x_BSD = x_BSD + self._drop(self.attention(self.attention_norm(x_BSD), rope, mask, cache, start))
        return x_BSD + self._drop(self.feed_forward(self.ffn_norm(x_BSD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
