"""A class is a vector."""

from __future__ import annotations

from torch import Tensor

from flashar_cli.models.next_scale.condition.base import Condition, ConditionEncoder
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.by_class import ClassTable


class ClassCondition(ClassTable, ConditionEncoder):
    """The embedding of a class (FoundationVision/VAR models/var.py class_emb)."""

    def forward(self, conditions: Conditions, drop: Tensor, padded: bool) -> Condition:
        return Condition(self.vectors(conditions, drop))
