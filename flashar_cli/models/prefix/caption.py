"""Prefix tokens from the features of a text encoder.

Letters: B batch, P prefix tokens, F text-feature dim, D model dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import CaptionPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix.base import Conditions, Prefix
from flashar_cli.models.prefix.features import FeatureReader


class CaptionEmbedder(FeatureReader, Prefix):
    """Upstream: CaptionEmbedder, a two-layer projection of text-encoder features. Conditions: ``features`` [B, P, F]
    and ``mask`` [B, P], 1 where a caption token is, left-padded with 0.
    """

    masks_keys = True

    def __init__(self, config: CaptionPrefix, dim: int) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(config.feature_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.uncond_embedding = nn.Parameter(torch.empty(config.length, config.feature_dim))

    def check(self, conditions: Conditions) -> None:
        features, mask = self.tensors(conditions)
        expected = (self.config.length, self.config.feature_dim)
        if tuple(features.shape[1:]) != expected or tuple(mask.shape) != tuple(features.shape[:2]):
            raise FlasharError(
                f"caption features {tuple(features.shape)} with mask {tuple(mask.shape)} do not fit; "
                f"expected [B, {expected[0]}, {expected[1]}] and [B, {expected[0]}]"
            )
        if not bool((mask[:, -1] > 0).all()):
            raise FlasharError(
                "a caption mask ends in 0; expected left-padded captions, whose last position is a token"
            )

    def length(self, conditions: Conditions) -> int:
        return self.config.length

    def valid(self, conditions: Conditions, drop: Tensor) -> Tensor:
        return conditions.tensors["mask"] > 0

    def forward(self, conditions: Conditions, drop: Tensor) -> Tensor:
        # Kept for parity: FoundationVision/LlamaGen autoregressive/sample/sample_t2i.py multiplies features by the
        # mask; an unconditional row has the unconditional embedding at all positions, under the caption's mask.
        dtype, mask = self.fc1.weight.dtype, conditions.tensors["mask"]
        features = conditions.tensors["features"].to(dtype) * mask[..., None].to(dtype)
        features = torch.where(drop[:, None, None], self.uncond_embedding, features)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
