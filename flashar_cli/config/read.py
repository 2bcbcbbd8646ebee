"""Reads ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashar_cli.config.base import validated
from flashar_cli.config.model import ModelConfig
from flashar_cli.config.next_scale import NextScaleConfig
from flashar_cli.config.raster import RasterConfig
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_json
from flashar_cli.inputs.text import shown

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
# A config.json without a kind is of a raster model.
KINDS: dict[str, type[ModelConfig]] = {"raster": RasterConfig, "next-scale": NextScaleConfig}


def read_config(directory: Path) -> ModelConfig:
    """Reads and validates ``config.json``. Raises FlasharError that says what is wrong with it."""
    path = directory / CONFIG_FILE
    if not path.exists():
        raise FlasharError(
            f"{directory} is not a flashar checkpoint: it has no {CONFIG_FILE}; "
            "import upstream weights with `flashar convert SRC --out DIR`"
        )
    document = read_json(path)
    if not isinstance(document, dict):
        raise FlasharError(f"{path} holds a {type(document).__name__}; expected a JSON object")
    return parse_config(document, str(path))


def raster_only(config: ModelConfig, what: str) -> RasterConfig:
    """The config of a raster model. Raises FlasharError for another, which ``what`` is not for."""
    if not isinstance(config, RasterConfig):
        raise FlasharError(
            f"{what} is for raster models, whose tokens follow one another; a {config.kind} model of family "
            f"{config.family} predicts whole maps of tokens already"
        )
    return config


def parse_config(document: dict[str, Any], where: str) -> ModelConfig:
    """Validates a decoded ``config.json``. Raises FlasharError that lists every problem in one line."""
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise FlasharError(
            f"{where} has format_version {shown(version)}; this flashar reads {FORMAT_VERSION}; convert the model again"
        )
    kind = document.get("kind", RasterConfig.model_fields["kind"].default)
    if not isinstance(kind, str) or kind not in KINDS:
        raise FlasharError(f"{where} has kind {shown(kind)}; expected one of {', '.join(KINDS)}")
    return validated(document, KINDS[kind], where, "a valid config")
