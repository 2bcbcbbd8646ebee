"""What a next-scale model reads of conditions: one module for each kind of prefix that it may have."""

from __future__ import annotations

from typing import Any

from flashar_cli.config import NextScaleConfig
from flashar_cli.models.next_scale.condition.base import Condition, ConditionEncoder
from flashar_cli.models.next_scale.condition.by_class import ClassCondition
from flashar_cli.models.next_scale.condition.caption import CaptionCondition

__all__ = ["Condition", "ConditionEncoder", "build_condition"]

MODULES: dict[str, Any] = {
    "class": lambda config: ClassCondition(config.prefix, config.transformer.dim),
    "caption-memory": lambda config: CaptionCondition(config.prefix, config.transformer),
}


def build_condition(config: NextScaleConfig) -> ConditionEncoder:
    """The module for the prefix of a model."""
    module: ConditionEncoder = MODULES[config.prefix.kind](config)
    return module
