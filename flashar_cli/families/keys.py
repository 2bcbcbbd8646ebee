"""Upstream's names of our tensors, as a table. Letters: A query heads, G key and value heads, E width of a head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashar_cli.config import ModelConfig
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """Several upstream tensors that, stacked along the rows, are one of ours; ``rows`` says how many rows each has."""

    names: tuple[str, ...]
    rows: Callable[[ModelConfig], tuple[int, ...]]


def qkv_rows(config: ModelConfig) -> tuple[int, ...]:
    """Rows of separate query, key and value projections: A * E, G * E, G * E."""
    backbone = config.backbone
    kv_rows = backbone.num_kv_heads * backbone.head_dim
    return backbone.num_heads * backbone.head_dim, kv_rows, kv_rows


class KeyTable:
    """Pairs of names, upstream's and ours; the first pair that matches one of our names is used.

    In our names ``{}`` stands for a number and ``*`` for the rest of the name; upstream's names repeat them in the same
    order. There ``{+}`` is the number of a branch's block, which upstream numbers after those of the backbone.
    """

    def __init__(self, *pairs: tuple[str | Joined, str]) -> None:
        self._pairs = [
            (Joined((theirs,), lambda config: ()) if isinstance(theirs, str) else theirs, _pattern(ours))
            for theirs, ours in pairs
        ]

    def to_upstream(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Our tensors under upstream's names, joined ones split. Raises FlasharError for a part without a name."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            names, rows = self._upstream(name, config)
            parts = tensor.split(list(rows)) if rows else (tensor,)
            found.update(zip(names, parts, strict=True))
        return found

    def to_ours(self, state: Mapping[str, Tensor], names: Iterable[str], config: ModelConfig) -> dict[str, Tensor]:
        """The tensors that we call ``names``, from a state that has them all. Raises FlasharError where tensors to join
        differ in dtype.
        """
        import torch

        found = {}
        for name in names:
            theirs, _ = self._upstream(name, config)
            parts = [state[each] for each in theirs]
            if len({part.dtype for part in parts}) > 1:
                raise FlasharError(f"{', '.join(theirs)} differ in dtype; expected one, as they become one tensor")
            found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found

    def _upstream(self, ours: str, config: ModelConfig) -> tuple[list[str], tuple[int, ...]]:
        for theirs, pattern in self._pairs:
            match = re.fullmatch(pattern, ours)
            if match is not None:
                names = [_filled(name, match.groups(), config.backbone.num_layers) for name in theirs.names]
                return names, theirs.rows(config)
        raise FlasharError(f"'{ours}' has no name in the upstream layout of family {config.family}")


def _pattern(ours: str) -> str:
    return re.escape(ours).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")


def _filled(name: str, values: Iterable[str], num_layers: int) -> str:
    rest = iter(values)

    def value(mark: re.Match[str]) -> str:
        text = next(rest)
        return str(int(text) + num_layers) if mark[0] == "{+}" else text

    return re.sub(r"\{\+?\}|\*", value, name)
