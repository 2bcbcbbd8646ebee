"""What every image model offers, whatever it predicts at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from flashar_cli.config import ModelConfig


class TokenModel(nn.Module, ABC):
    """A network that predicts image tokens. ``config`` says what it is; a decoder makes images of it."""

    config: ModelConfig

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which it computes."""
