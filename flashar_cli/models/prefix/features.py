"""What readers of text-encoder features share.

Letters: B batch, P prefix positions, F text-feature dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashar_cli.config import CaptionMemory, CaptionPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix.base import ConditionReader, Conditions


class FeatureReader(ConditionReader):
    """Conditions: ``features`` [B, P, F] and ``mask`` [B, P], 1 where a feature is. ``uncond_embedding`` has the
    learned features of no caption.
    """

    config: CaptionPrefix | CaptionMemory
    uncond_embedding: nn.Parameter

    def tensors(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Features and mask. Raises FlasharError where the conditions are of another kind."""
        features, mask = (conditions.tensors.get(name) for name in ("features", "mask"))
        if features is None or mask is None:
            raise FlasharError("this model is caption-conditional; pass caption features with their mask, not labels")
        return features, mask

    def blank(self, batch: int, length: int) -> Conditions:
        weight = self.uncond_embedding
        features = torch.zeros(batch, length, self.config.feature_dim, device=weight.device, dtype=weight.dtype)
        return Conditions(features=features, mask=torch.ones(batch, length, device=weight.device))

    def example(self, batch: int, seed: int) -> Conditions:
        """Random features of full length."""
        generator = torch.Generator().manual_seed(seed)
        features_BPF = torch.randn(batch, self.config.length, self.config.feature_dim, generator=generator)
        return Conditions(features=features_BPF, mask=torch.ones(batch, self.config.length))
