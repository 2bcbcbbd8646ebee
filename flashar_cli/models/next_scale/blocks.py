"""The blocks of a next-scale transformer. Each is a few parts that add to a residual stream.

Letters: R rows, S tokens of the maps that are run, P features of a caption, D model dim, A heads, E head dim.
The residual stream and what modulates it are float32, products have the dtype of the weights.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import ScaleTransformerConfig
from flashar_cli.models.next_scale.layers import MLP, CrossAttention, SelfAttention
from flashar_cli.nn.kv_cache import LayerCache


class Given(NamedTuple):
    """What a block is given beside the residual stream.

    ``modulation`` float32 [R, 6, 1, D], and the keys and values [2, R, A, P, E] of a caption with their mask, are made
    once for an image; ``rope``, ``mask``, ``cache`` and ``start`` are as in ``SelfAttention``.
    """

    modulation: Tensor
    memory: Tensor | None
    memory_mask: Tensor | None
    rope: Tensor | None
    mask: Tensor | None = None
    cache: LayerCache | None = None
    start: int = 0


class Part(Protocol):
    """What is added to the residual stream [R, S, D] of some tokens, in its dtype."""

    __name__: str

    def __call__(self, x_RSD: Tensor, given: Given, /) -> Tensor: ...


class Block(nn.Module):
    """Modulated self-attention, cross-attention where there is a caption to ask, and a modulated feed-forward
    (FoundationVision/VAR models/basic_var.py AdaLNSelfAttn, FoundationVision/Infinity infinity/models/basic.py
    CrossAttnBlock).
    """

    def __init__(self, config: ScaleTransformerConfig, cross_attention: bool) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(config.dim, config.norm_eps) if cross_attention else None
        self.cross_attention = CrossAttention(config.dim, config.num_heads) if cross_attention else None
        self.feed_forward = MLP(config.dim, config.ffn_dim, config.dim)
        shared = config.shared_modulation
        self.modulation = None if shared else nn.Linear(config.dim, 6 * config.dim)
        self.offsets = nn.Parameter(torch.zeros(1, 1, 6, config.dim)) if shared else None

    @property
    def token_layers(self) -> list[nn.Linear]:
        """The linear layers that run on tokens."""
        cross = self.cross_attention
        own = [self.attention.wqkv, self.attention.wo, self.feed_forward.w1, self.feed_forward.w2]
        return own if cross is None else [*own, cross.wq, cross.wo]

    @torch.no_grad()
    def scale_start(self, share: float, closed: bool) -> None:
        """Scales fresh weights: of what parts add by ``share``, of modulation by 0.5, that of ``closed`` gates by 1e-5
        instead.
        """
        self.attention.wo.weight.mul_(share)
        self.feed_forward.w2.weight.mul_(share)
        if self.cross_attention is not None:
            self.cross_attention.wo.weight.mul_(share)
        gate, dim = 1e-5 if closed else 0.5, self.attention.wo.in_features
        if self.modulation is not None:
            self.modulation.weight[: 2 * dim].mul_(gate)
            self.modulation.weight[2 * dim :].mul_(0.5)
        if self.offsets is not None:
            self.offsets[:, :, :2].mul_(gate)
            self.offsets[:, :, 2:].mul_(0.5)

    def modulate(self, signal_RX: Tensor) -> Tensor:
        """Two gates, two gains and two shifts, float32 [R, 6, 1, D]: of the attention and of the feed-forward. The
        signal is the activated condition [R, D], or what the layer that all blocks share makes of it, [R, 6 * D].
        """
        six_RX = signal_RX if self.modulation is None else self.modulation(signal_RX)
        six_R61D = six_RX.float().unflatten(-1, (6, 1, -1))
        if self.offsets is not None:
            six_R61D = six_R61D + self.offsets.view(6, 1, -1)
        gates, scales, shifts = six_R61D.chunk(3, dim=1)
        return torch.cat([gates, 1 + scales, shifts], dim=1)

    def read(self, memory_RPD: Tensor) -> Tensor:
        """Keys and values of a caption, [2, R, A, P, E], for a block with cross-attention."""
        assert self.cross_attention is not None
        return torch.stack(self.cross_attention.read(memory_RPD))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in their order. The tokens that one is called for need not be a whole map."""
        return (self.attend, self.feed) if self.cross_attention is None else (self.attend, self.ask, self.feed)

    def forward(self, x_RSD: Tensor, given: Given) -> Tensor:
        """The residual stream float32 [R, S, D] after all parts."""
        for part in self.parts:
            x_RSD = x_RSD + part(x_RSD, given)
        return x_RSD

    def attend(self, x_RSD: Tensor, given: Given) -> Tensor:
        """The part of self-attention."""
        gate, _, gain, _, shift, _ = given.modulation.unbind(dim=1)
        normed_RSD = self._normed(x_RSD, gain, shift)
        return gate * self.attention(normed_RSD, given.rope, given.mask, given.cache, given.start)

    def ask(self, x_RSD: Tensor, given: Given) -> Tensor:
        """The part of cross-attention, which is neither modulated nor gated."""
        assert self.cross_norm is not None and self.cross_attention is not None and given.memory is not None
        weight, bias = self.cross_norm.weight, self.cross_norm.bias
        normed_RSD = F.layer_norm(x_RSD, x_RSD.shape[-1:], weight.float(), bias.float(), self.eps).to(weight.dtype)
        return self.cross_attention(normed_RSD, *given.memory.unbind(), given.memory_mask).type_as(x_RSD)

    def feed(self, x_RSD: Tensor, given: Given) -> Tensor:
        """The part of the feed-forward."""
        _, gate, _, gain, _, shift = given.modulation.unbind(dim=1)
        return gate * self.feed_forward(self._normed(x_RSD, gain, shift))

    def _normed(self, x_RSD: Tensor, gain_R1D: Tensor, shift_R1D: Tensor) -> Tensor:
        normed_RSD = F.layer_norm(x_RSD, x_RSD.shape[-1:], eps=self.eps)
        return torch.addcmul(shift_R1D, normed_RSD, gain_R1D).to(self.attention.q_bias.dtype)
