"""Conditions of images: one module for each kind of prefix, as in ``models/prefix``."""

from __future__ import annotations

from flashar_cli.config import ModelConfig
from flashar_cli.data.conditions.base import ConditionKind, Given, Subjects
from flashar_cli.data.conditions.by_class import ClassConditions
from flashar_cli.data.conditions.caption import CaptionConditions
from flashar_cli.data.conditions.memory import MemoryConditions
from flashar_cli.data.conditions.text import TextConditions
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.text import TextTokenizer

__all__ = ["ConditionKind", "Given", "Subjects", "conditions_of", "parse"]

KINDS: dict[str, type[ConditionKind]] = {
    "class": ClassConditions,
    "caption": CaptionConditions,
    "caption-memory": MemoryConditions,
    "text": TextConditions,
}


def conditions_of(
    config: ModelConfig, text_tokenizer: TextTokenizer | None = None, grid: Grid | None = None
) -> ConditionKind:
    """The conditions that a model reads, for images of a grid; None: the model's own."""
    return KINDS[config.prefix.kind](config.prefix, grid or config.order_grid, config.class_names, text_tokenizer)


def parse(
    given: Given, model: TokenModel, text_tokenizer: TextTokenizer | None = None, grid: Grid | None = None
) -> tuple[Conditions, list[str]]:
    """The conditions on the command line, and a name for each. Raises FlasharError where the model has another kind."""
    return conditions_of(model.config, text_tokenizer, grid).parse(given, model.device)
