"""What every kind of prefix offers, and the conditions that it reads.

Letters: B batch, P prefix tokens, D model dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Conditions:
    """What B images shall show: tensors by name, [B, ..] each. Every kind of prefix has its own names."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Conditions:
        return Conditions(**{name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Conditions:
        return Conditions(**{name: tensor.to(device) for name, tensor in self.tensors.items()})


class ConditionReader(nn.Module, ABC):
    """What reads conditions, in a model of any kind."""

    @abstractmethod
    def check(self, conditions: Conditions) -> None:
        """Raises FlasharError unless the conditions fit this model."""

    @abstractmethod
    def length(self, conditions: Conditions) -> int:
        """P, the prefix positions of this batch."""

    @abstractmethod
    def blank(self, batch: int, length: int) -> Conditions:
        """Conditions of B images and P positions, on this module's device, to copy others into."""

    @abstractmethod
    def example(self, batch: int, seed: int) -> Conditions:
        """Conditions to measure with, the same for the same seed."""


class Prefix(ConditionReader):
    """What stands before the image tokens. ``masks_keys``: a batch may have positions that no token may attend to, so
    every step needs a key mask.
    """

    masks_keys = False

    @property
    def line_end(self) -> Tensor | None:
        """Embedding [D] of the token that ends a row in raster order; None where the model knows none."""
        return None

    def common_starts(self, conditions: Conditions) -> Tensor | None:
        """Where in the text an image starts for its prompt and its unconditional one alike, int64 [B]: after the longer
        of both. None where each starts after its own prefix.
        """
        return None

    def valid(self, conditions: Conditions, drop: Tensor) -> Tensor | None:
        """Which positions hold tokens, bool [B, P]; None: all. ``drop`` as in ``forward``."""
        return None

    @abstractmethod
    def forward(self, conditions: Conditions, drop: Tensor) -> Tensor:
        """Embeddings [B, P, D]. ``drop`` bool [B] marks the rows to make unconditional."""
