"""What stands before the image tokens: a class embedding or caption features.

Letters: B batch, P prefix tokens, F text-feature dim, D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import CaptionPrefix, ClassPrefix
from flashar_cli.errors import FlasharError


@dataclass(frozen=True)
class Conditions:
    """What B pictures shall show: class ``labels`` int64 [B], or ``features`` [B, P, F] with ``mask`` [B, P]
    (1 where a caption token is, left-padded with 0).
    """

    labels: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        given = self.labels if self.labels is not None else self.features
        assert given is not None, "conditions hold labels or caption features"
        return len(given)

    def __getitem__(self, rows: slice | Tensor) -> Conditions:
        return Conditions(*(None if part is None else part[rows] for part in self.parts()))

    def to(self, device: torch.device) -> Conditions:
        return Conditions(*(None if part is None else part.to(device) for part in self.parts()))

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Labels, features and mask."""
        return self.labels, self.features, self.mask


class ClassEmbedder(nn.Module):
    """Upstream: LabelEmbedder. The last row of the table is the unconditional class."""

    def __init__(self, config: ClassPrefix, dim: int) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_classes + 1, dim)

    def check(self, conditions: Conditions) -> None:
        """Raises FlasharError unless the labels fit this model."""
        labels = conditions.labels
        if labels is None:
            raise FlasharError("this model is class-conditional; pass class labels, not captions")
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise FlasharError(f"label {int(outside[0])} is out of range; expected 0..{self.num_classes - 1}")

    def forward(self, conditions: Conditions, drop: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, 1, D], and None: all positions are valid. ``drop`` bool [B] marks unconditional rows."""
        assert conditions.labels is not None
        labels = conditions.labels.masked_fill(drop, self.num_classes)
        return self.embedding(labels)[:, None], None


class CaptionEmbedder(nn.Module):
    """Upstream: CaptionEmbedder, a two-layer projection of text-encoder features."""

    def __init__(self, config: CaptionPrefix, dim: int) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(config.feature_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.uncond_embedding = nn.Parameter(torch.empty(config.length, config.feature_dim))

    def check(self, conditions: Conditions) -> None:
        """Raises FlasharError unless features and mask fit this model."""
        features, mask = conditions.features, conditions.mask
        if features is None or mask is None:
            raise FlasharError("this model is caption-conditional; pass caption features with their mask, not labels")
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

    def forward(self, conditions: Conditions, drop: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, P, D] and the valid prefix positions, bool [B, P]."""
        assert conditions.features is not None and conditions.mask is not None
        # Kept for parity: FoundationVision/LlamaGen autoregressive/sample/sample_t2i.py multiplies features by the
        # mask; the unconditional row takes its embedding at all positions, under the caption's mask.
        features = conditions.features.to(self.fc1.weight.dtype) * conditions.mask[..., None].to(self.fc1.weight.dtype)
        features = torch.where(drop[:, None, None], self.uncond_embedding, features)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh")), conditions.mask > 0


def build_prefix(config: ClassPrefix | CaptionPrefix, dim: int) -> ClassEmbedder | CaptionEmbedder:
    """The embedder of a prefix kind."""
    return ClassEmbedder(config, dim) if isinstance(config, ClassPrefix) else CaptionEmbedder(config, dim)
