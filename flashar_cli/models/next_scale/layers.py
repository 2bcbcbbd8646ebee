"""The layers of a next-scale transformer.

Letters: R rows, S tokens of the maps that are run, P features of a caption, D model dim, F feature dim, A heads,
E head dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import ScaleTransformerConfig
from flashar_cli.nn.attention import attend
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.rope import apply_rope

LARGEST_SCALE = 100.0  # of cosine attention
FIRST_LOG_SCALE = math.log(4.0)


class MLP(nn.Module):
    """``Linear -> GELU -> Linear`` with biases; GELU by its tanh formula."""

    def __init__(self, dim: int, inner_dim: int, out_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, inner_dim)
        self.w2 = nn.Linear(inner_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    """Self-attention among the tokens of a map and all that are cached (VAR, arXiv 2404.02905: section 3.2). Queries
    and values have biases, keys have none (FoundationVision/VAR models/basic_var.py SelfAttention).
    """

    def __init__(self, config: ScaleTransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.wo = nn.Linear(config.dim, config.dim)
        # Where scores are cosines, each head scales them.
        scales = torch.full((1, config.num_heads, 1, 1), FIRST_LOG_SCALE) if config.cosine_attention else None
        self.log_scale = None if scales is None else nn.Parameter(scales)

    def forward(
        self,
        x_RSD: Tensor,
        rope: Tensor | None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """``rope`` float32 [S, E // 2, 2], or [R, S, E // 2, 2] where rows have other tokens, are the rotations of the
        tokens; None: positions are no matter of attention. A cache stores their keys and values from ``start`` on.
        """
        q_RSD, k_RSD, v_RSD = self.wqkv(x_RSD).chunk(3, dim=-1)
        q_RSD, v_RSD = q_RSD + self.q_bias, v_RSD + self.v_bias
        q_RSAE, k_RSAE, v_RSAE = (each.unflatten(-1, (-1, self.head_dim)) for each in (q_RSD, k_RSD, v_RSD))
        scale = 0.25 / math.sqrt(self.head_dim)
        if self.log_scale is not None:
            scales_A1 = self.log_scale.float().clamp(max=math.log(LARGEST_SCALE)).exp().view(-1, 1)
            q_RSAE = F.normalize(q_RSAE.float(), dim=-1) * scales_A1
            k_RSAE = F.normalize(k_RSAE.float(), dim=-1)
            scale = 1.0
        if rope is not None:
            q_RSAE, k_RSAE = apply_rope(q_RSAE, rope), apply_rope(k_RSAE, rope)
        q_RASE, k_RASE, v_RASE = (each.transpose(1, 2).type_as(v_RSD) for each in (q_RSAE, k_RSAE, v_RSAE))
        if cache is not None:
            k_RASE, v_RASE = cache.update(start, k_RASE, v_RASE)
        return self.wo(attend(q_RASE, k_RASE, v_RASE, mask, "sdpa", scale).transpose(1, 2).flatten(2))


class MemoryAttention(nn.Module):
    """What attention to the features of a caption has, whatever asks: keys without a bias and values with one
    (FoundationVision/Infinity infinity/models/basic.py CrossAttention).
    """

    def __init__(self, feature_dim: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.wkv = nn.Linear(feature_dim, 2 * dim, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.wo = nn.Linear(dim, dim)

    def read(self, features_RPF: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of features [R, P, F], [R, A, P, E] each."""
        k_RPD, v_RPD = self.wkv(features_RPF).chunk(2, dim=-1)
        return self.heads(k_RPD), self.heads(v_RPD + self.v_bias)

    def heads(self, x_RSD: Tensor) -> Tensor:
        """[R, S, D] -> [R, A, S, E]."""
        return x_RSD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def ask(self, q_RASE: Tensor, k_RAPE: Tensor, v_RAPE: Tensor, mask: Tensor | None) -> Tensor:
        """What S queries of each row find, [R, S, D]. ``mask`` as in ``attend``."""
        return self.wo(attend(q_RASE, k_RAPE, v_RAPE, mask, "sdpa").transpose(1, 2).flatten(2))


class CrossAttention(MemoryAttention):
    """Tokens ask a caption, whose keys and values are made once for an image."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, dim, num_heads)
        self.wq = nn.Linear(dim, dim)

    def forward(self, x_RSD: Tensor, k_RAPE: Tensor, v_RAPE: Tensor, mask: Tensor | None) -> Tensor:
        """[R, S, D] -> [R, S, D]."""
        return self.ask(self.heads(self.wq(x_RSD)), k_RAPE, v_RAPE, mask)


class AttentionPool(MemoryAttention):
    """One learned query asks a caption (Infinity: TextAttentivePool)."""

    def __init__(self, feature_dim: int, dim: int, num_heads: int) -> None:
        super().__init__(feature_dim, dim, num_heads)
        self.query = nn.Parameter(torch.empty(1, num_heads, self.head_dim))

    def forward(self, features_RPF: Tensor, mask: Tensor | None) -> Tensor:
        """[R, P, F] -> [R, D]."""
        query_RA1E = self.query[:, :, None].expand(len(features_RPF), -1, -1, -1)
        return self.ask(query_RA1E, *self.read(features_RPF), mask)[:, 0]
