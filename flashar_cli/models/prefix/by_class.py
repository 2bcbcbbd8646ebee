"""One prefix token: a class embedding.

Letters: B batch, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashar_cli.config import ClassPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix.base import ConditionReader, Conditions, Prefix


class ClassTable(ConditionReader):
    """A vector for each class; the last row of the table is the unconditional class.

    Conditions: ``labels`` int64 [B].
    """

    def __init__(self, config: ClassPrefix, dim: int) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_classes + 1, dim)

    def check(self, conditions: Conditions) -> None:
        labels = conditions.tensors.get("labels")
        if labels is None:
            raise FlasharError("this model is class-conditional; pass class labels, not captions")
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise FlasharError(f"label {int(outside[0])} is out of range; expected 0..{self.num_classes - 1}")

    def length(self, conditions: Conditions) -> int:
        return 1

    def blank(self, batch: int, length: int) -> Conditions:
        return Conditions(labels=torch.zeros(batch, dtype=torch.int64, device=self.embedding.weight.device))

    def example(self, batch: int, seed: int) -> Conditions:
        """Classes in turn."""
        return Conditions(labels=torch.arange(batch) % self.num_classes)

    def vectors(self, conditions: Conditions, drop: Tensor) -> Tensor:
        """[B, D]; ``drop`` bool [B] marks the rows to make unconditional."""
        return self.embedding(conditions.tensors["labels"].masked_fill(drop, self.num_classes))


class ClassEmbedder(ClassTable, Prefix):
    """Upstream: LabelEmbedder."""

    def forward(self, conditions: Conditions, drop: Tensor) -> Tensor:
        return self.vectors(conditions, drop)[:, None]
