"""A caption is a memory of its features, and a vector that is pooled from them.

Letters: B batch, P features of the longest caption, F feature dim, D model dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flashar_cli.config import CaptionMemory, ScaleTransformerConfig
from flashar_cli.errors import FlasharError
from flashar_cli.models.next_scale.condition.base import Condition, ConditionEncoder
from flashar_cli.models.next_scale.layers import MLP, AttentionPool
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.features import FeatureReader
from flashar_cli.nn.layers import RMSNorm


class CaptionCondition(FeatureReader, ConditionEncoder):
    """Text-encoder features of captions (FoundationVision/Infinity infinity/models/infinity.py). Conditions:
    ``features`` [B, P, F] and ``mask`` [B, P], 1 where a feature is, right-padded with 0.

    A caption and no caption have the same length: of the learned features of no caption as many are read.
    """

    def __init__(self, config: CaptionMemory, transformer: ScaleTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.uncond_embedding = nn.Parameter(torch.empty(config.length, config.feature_dim))
        self.norm = RMSNorm(config.feature_dim, transformer.norm_eps)
        self.pool = AttentionPool(config.feature_dim, transformer.dim, config.pool_heads)
        self.memory = MLP(config.feature_dim, transformer.dim, transformer.dim)

    def check(self, conditions: Conditions) -> None:
        features, mask = self.tensors(conditions)
        length, feature_dim = self.config.length, self.config.feature_dim
        fits = features.ndim == 3 and features.shape[2] == feature_dim and 1 <= features.shape[1] <= length
        if not fits or mask.shape != features.shape[:2]:
            raise FlasharError(
                f"caption features {tuple(features.shape)} with mask {tuple(mask.shape)} do not fit; "
                f"expected [B, P, {feature_dim}] and [B, P] with 1 <= P <= {length}"
            )
        valid = mask > 0
        if not bool(valid[:, 0].all()) or bool((valid[:, 1:] > valid[:, :-1]).any()):
            raise FlasharError("a caption mask is not right-padded; expected 1s, one at least, then 0s")

    def length(self, conditions: Conditions) -> int:
        return conditions.tensors["features"].shape[1]

    def padded(self, conditions: Conditions) -> bool:
        return not bool((conditions.tensors["mask"] > 0).all())

    def forward(self, conditions: Conditions, drop: Tensor, padded: bool) -> Condition:
        dtype, features_BPF = self.norm.weight.dtype, conditions.tensors["features"]
        uncond_PF = self.uncond_embedding[: features_BPF.shape[1]]
        features_BPF = self.norm(torch.where(drop[:, None, None], uncond_PF, features_BPF.to(dtype)))
        mask = None
        if padded:
            mask = torch.where(conditions.tensors["mask"] > 0, 0.0, -math.inf).to(dtype)[:, None, None]
        return Condition(self.pool(features_BPF, mask), self.memory(features_BPF), mask)
