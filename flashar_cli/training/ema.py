"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of the parameters that require gradients now. Each has the device, dtype and sharding of its parameter.

    The decay of update k is ``min(decay, (1 + k) / (10 + k))``, so that the first averages follow the weights closely.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Adds the weights after an optimizer step; ``num_updates`` is the number of steps before it."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for name, parameter in self._averaged():
            self.averages[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the context, the averages are the model's weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages."""
        for name, parameter in self._averaged():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def _averaged(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, each) for name, each in self.model.named_parameters() if name in self.averages)
