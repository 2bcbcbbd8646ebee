"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flashar_cli import checkpoint
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import build_model, random_config


@pytest.fixture
def write_tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of ``random_config(**settings)`` and returns its directory."""

    def write(name: str = "tiny", **settings: Any) -> Path:
        config = random_config(**settings)
        torch.manual_seed(0)
        tokenizer = None if config.tokenizer is None else VQTokenizer(config.tokenizer).state_dict()
        checkpoint.save(tmp_path / name, config, build_model(config).state_dict(), tokenizer)
        return tmp_path / name

    return write
