"""The networks that predict image tokens, by the kind of their config."""

from __future__ import annotations

from flashar_cli.config import ModelConfig, RasterConfig
from flashar_cli.models.base import TokenModel
from flashar_cli.models.flashar import FlasharModel


def build_model(config: ModelConfig) -> TokenModel:
    """The network of a model."""
    assert isinstance(config, RasterConfig)
    return FlasharModel(config)
