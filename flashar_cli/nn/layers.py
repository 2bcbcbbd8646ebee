"""The blocks of a Llama-like decoder.

Letters: B batch, S sequence, D model dim, A query heads, G key/value heads, E head dim.
Parameter names follow upstream LlamaGen (FoundationVision/LlamaGen autoregressive/models/gpt.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """Root-mean-square norm with a gain, computed in float32; the output has the input's dtype."""

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
        self.wqkv = nn.Linear(config.dim, config.qkv_dim, bias=config.attention_bias)
        self.wo = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.halves = config.rope == "1d"
        self.backend: AttentionBackend = "sdpa"

    def forward(
        self,
        x_BSD: Tensor,
        rope: Tensor,
        mask: Tensor | BlockMask | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """``rope`` [S, E // 2, 2] are the table's rows of these positions; a cache stores them from ``start`` on."""
        # Queries and keys, X heads together, are rotated at once, which halves a decoding step's operations for it.
        rotated = self.num_heads + self.num_kv_heads
        x_BSXE, v_BSGE = self.wqkv(x_BSD).unflatten(-1, (-1, self.head_dim)).split((rotated, self.num_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BSAE, k_BSGE = x_BSXE.split((self.num_heads, self.num_kv_heads), dim=2)
            x_BSXE = torch.cat([self.q_norm(q_BSAE), self.k_norm(k_BSGE)], dim=2)
        x_BXSE = apply_rope(x_BSXE, rope, self.halves).transpose(1, 2)
        q_BASE, k_BGSE = x_BXSE.split((self.num_heads, self.num_kv_heads), dim=1)
        v_BGSE = v_BSGE.transpose(1, 2)
        if cache is not None:
            k_BGSE, v_BGSE = cache.update(start, k_BGSE, v_BGSE)
        return self.wo(self.attend(q_BASE, k_BGSE, v_BGSE, mask).transpose(1, 2).flatten(2))

    def attend(self, q_BASE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """Softmax attention by the module's back-end; decoding may put another function in its place."""
        return attend(q_BASE, k_BGSE, v_BGSE, mask, self.backend)


class Block(nn.Module):
    """Pre-norm transformer block. ``dropout`` acts on both residual branches while training. With ``recompute`` the
    backward pass computes the activations again, so they are not kept.
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
        inputs = (x_BSD, None, rope, mask, cache, start)
        if self.recompute and torch.is_grad_enabled():
            x_BSD, update_BSD = checkpoint(self.without_last_sum, *inputs, use_reentrant=False)
        else:
            x_BSD, update_BSD = self.without_last_sum(*inputs)
        return x_BSD + update_BSD

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the block inside the checkpoint that recomputes it: PyTorch 2.13 refuses attention the other way
        round.
        """
        self.__dict__["without_last_sum"] = torch.compile(self.without_last_sum, *args, **kwargs)

    def without_last_sum(
        self,
        x_BSD: Tensor,
        update_BSD: Tensor | None,
        rope: Tensor,
        mask: Tensor | BlockMask | None,
        cache: LayerCache | None,
        start: int,
    ) -> tuple[Tensor, Tensor]:
        """Runs the block on ``x + update`` and returns two tensors whose sum is its output. When compiled, the next
        block makes that sum as part of its norm, so it needs no kernel of its own.
        """
        if update_BSD is not None:
            x_BSD = x_BSD + update_BSD
        x_BSD = x_BSD + self._drop(self.attention(self.attention_norm(x_BSD), rope, mask, cache, start))
        return x_BSD, self._drop(self.feed_forward(self.ffn_norm(x_BSD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
