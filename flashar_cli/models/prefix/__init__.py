"""What stands before the image tokens: one module for each kind in ``config/prefix.py``."""

from __future__ import annotations

from typing import Any

from flashar_cli.config import PrefixConfig
from flashar_cli.models.prefix.base import Conditions, Prefix
from flashar_cli.models.prefix.by_class import ClassEmbedder
from flashar_cli.models.prefix.caption import CaptionEmbedder
from flashar_cli.models.prefix.text import TextEmbedder

__all__ = ["Conditions", "Prefix", "build_prefix"]

MODULES: dict[str, Any] = {"class": ClassEmbedder, "caption": CaptionEmbedder, "text": TextEmbedder}


def build_prefix(config: PrefixConfig, dim: int) -> Prefix:
    """The module of a prefix, in a model of width D."""
    module: Prefix = MODULES[config.kind](config, dim)
    return module
