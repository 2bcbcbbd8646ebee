"""What every image model offers, whatever it predicts at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from flashar_cli.config import ModelConfig


class TokenModel(nn.Module, ABC):
    """A network that predicts image tokens. ``config`` says what it is; a decoder makes images of it."""

    config: ModelConfig
    prefix: Any  # a ConditionReader

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which it computes."""

    @property
    @abstractmethod
    def every_forward(self) -> nn.Module:
        """A module that every forward runs once."""

    @property
    @abstractmethod
    def step_layers(self) -> list[nn.Linear]:
        """The linear layers of blocks, and of heads that compute in the model's dtype: what is quantised."""

    @abstractmethod
    def initialise(self, seed: int, zero_head: bool = True) -> None:
        """New weights, as the published model starts with. ``zero_head`` False: none of those that start near 0 does,
        so that the model is as different from others as a trained one.
        """
