"""What a next-scale model reads of conditions, whatever their kind.

Letters: B batch, P features, D model dim.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.base import ConditionReader


class Condition(NamedTuple):
    """What images shall show: a vector [B, D], from which the first token starts and which modulates the blocks; and
    where blocks ask a sequence, this memory [B, P, D] and a mask [B, 1, 1, P], which is added to scores (None: all of
    it may be read).
    """

    vector: Tensor
    memory: Tensor | None = None
    mask: Tensor | None = None


class ConditionEncoder(ConditionReader):
    """Makes a :class:`Condition` of conditions."""

    def padded(self, conditions: Conditions) -> bool:
        """Whether some positions of these conditions hold nothing. Waits for the device."""
        return False

    @abstractmethod
    def forward(self, conditions: Conditions, drop: Tensor, padded: bool) -> Condition:
        """``drop`` bool [B] marks the rows to make unconditional; ``padded``: whether positions may hold nothing."""
