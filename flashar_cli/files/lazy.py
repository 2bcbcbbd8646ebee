"""Tensors that are read when they are needed, so that a state of any size can be renamed, joined and checked at once,
and then worked through with one tensor in memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flashar_cli.errors import FlasharError


class Lazy(ABC):
    """A tensor of known ``shape`` and ``dtype``. It is read anew each time, and not kept."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """The tensor, or of one with axes the rows ``first`` .. ``last`` - 1. Raises FlasharError where that fails."""


class Held(Lazy):
    """A tensor that is in memory already."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.shape, tensor.dtype)
        self._tensor = tensor

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        return self._tensor if (first, last) == (0, None) else self._tensor[first:last]


class Made(Lazy):
    """A tensor that ``make`` makes when it is needed. It may be a collective: then every process reads it."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]) -> None:
        super().__init__(shape, dtype)
        self._make = make

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        tensor = self._make().to(self.dtype)
        return tensor if (first, last) == (0, None) else tensor[first:last]


class Stacked(Lazy):
    """Rows ``first`` .. ``last`` - 1 of each of several tensors, one below the other. All have one dtype, and one shape
    but for the rows.
    """

    def __init__(self, pieces: Sequence[tuple[Lazy, int, int]]) -> None:
        top = pieces[0][0]
        super().__init__((sum(last - first for _, first, last in pieces), *top.shape[1:]), top.dtype)
        self._pieces = pieces

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        first, last, _ = slice(first, last).indices(self.shape[0])
        if len(self._pieces) == 1:
            lazy, start, _ = self._pieces[0]
            return lazy.read(start + first, start + last)
        rows, top = torch.empty(last - first, *self.shape[1:], dtype=self.dtype), 0
        for lazy, start, end in self._pieces:
            bottom = top + end - start
            low, high = max(first, top), min(last, bottom)  # of all rows, those of this piece that are wanted
            if low < high:
                rows[low - first : high - first] = lazy.read(start + low - top, start + high - top)
            top = bottom
        return rows


class Finite(Lazy):
    """A tensor that, when it is read, is refused unless all its values are finite. ``where`` names it in messages."""

    def __init__(self, lazy: Lazy, where: str) -> None:
        super().__init__(lazy.shape, lazy.dtype)
        self._lazy, self._where = lazy, where

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        tensor = self._lazy.read(first, last)
        # Both bounds are NaN where any value is. Unlike isfinite they need no memory.
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise FlasharError(f"{self._where} has NaN or infinite values")
        return tensor


def lazily(state: Mapping[str, Lazy | Tensor]) -> dict[str, Lazy]:
    """The same tensors, of which those in memory are held."""
    return {name: Held(value) if isinstance(value, Tensor) else value for name, value in state.items()}
