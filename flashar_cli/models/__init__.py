"""The networks that predict image tokens, by the kind of their config."""

from __future__ import annotations

from typing import Any

from flashar_cli.config import ModelConfig
from flashar_cli.models.base import TokenModel
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.next_scale.model import NextScaleModel

NETWORKS: dict[str, Any] = {"raster": FlasharModel, "next-scale": NextScaleModel}


def build_model(config: ModelConfig) -> TokenModel:
    """The network of a model."""
    network: TokenModel = NETWORKS[config.kind](config)
    return network
