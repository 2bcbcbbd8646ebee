"""The transformer blocks through ``torch.compile``, for as long as a decode runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import Block


class CompiledBlocks:
    """Compiled forwards of every block of a model. The model itself stays as it is outside ``active``."""

    def __init__(self, model: FlasharModel) -> None:
        self._forwards: list[tuple[Block, Callable[..., Any]]] = [
            # dynamic: the number of cells and of stored keys changes from step to step.
            (block, torch.compile(block.forward, dynamic=True))
            for block in model.modules()
            if isinstance(block, Block)
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Blocks run compiled inside; hooks on them are called as ever."""
        for block, forward in self._forwards:
            block.__dict__["forward"] = forward
        try:
            yield
        finally:
            for block, _ in self._forwards:
                del block.__dict__["forward"]
