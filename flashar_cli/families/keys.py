"""Upstream's names of our tensors, as a table. Letters: A query heads, G key and value heads, E width of a head, P text
tokens, V visual tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flashar_cli.config import ModelConfig, RasterConfig, TextPrefix
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy


@dataclass(frozen=True)
class Part:
    """The rows ``first`` .. ``last`` - 1 of an upstream tensor of ``total`` rows; all of it where these are None."""

    name: str
    first: int = 0
    last: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Joined:
    """Several upstream tensors that, stacked along the rows, are one of ours; ``rows`` says how many rows each has."""

    names: tuple[str, ...]
    rows: Callable[[Any], tuple[int, ...]]

    def parts(self, config: ModelConfig) -> list[Part]:
        """What our tensor is stacked from."""
        return [Part(name, 0, rows, rows) for name, rows in zip(self.names, self.rows(config), strict=True)]


@dataclass(frozen=True)
class Rows:
    """Some rows of an upstream tensor that are one of ours; ``rows`` says the first of them, the one after the last,
    and how many rows there are in all.
    """

    name: str
    rows: Callable[[Any], tuple[int, int, int]]

    def parts(self, config: ModelConfig) -> list[Part]:
        """What our tensor is stacked from."""
        return [Part(self.name, *self.rows(config))]


@dataclass(frozen=True)
class _Whole:
    name: str

    def parts(self, config: ModelConfig) -> list[Part]:
        return [Part(self.name)]


def qkv_rows(config: RasterConfig) -> tuple[int, ...]:
    """Rows of separate query, key and value projections: A * E, G * E, G * E."""
    backbone = config.backbone
    kv_rows = backbone.num_kv_heads * backbone.head_dim
    return backbone.num_heads * backbone.head_dim, kv_rows, kv_rows


def text_rows(config: RasterConfig) -> tuple[int, int, int]:
    """The rows of text tokens in a table of text tokens, then visual ones: 0, P, P + V."""
    first_visual, _, total = visual_rows(config)
    return 0, first_visual, total


def visual_rows(config: RasterConfig) -> tuple[int, int, int]:
    """The rows of visual tokens in a table of text tokens, then visual ones: P, P + V, P + V. Raises FlasharError for a
    model that reads no text.
    """
    if not isinstance(config.prefix, TextPrefix):
        raise FlasharError(f"family {config.family} has a prefix of kind text, got {config.prefix.kind}")
    total = config.prefix.vocab_size + config.backbone.vocab_size
    return config.prefix.vocab_size, total, total


class KeyTable:
    """Pairs of names, upstream's and ours; the first pair that matches one of our names is used.

    In our names ``{}`` stands for a number and ``*`` for the rest of the name; upstream's names repeat them in the same
    order. There ``{+}`` is the number of a branch's block, which upstream numbers after those of the backbone.
    """

    def __init__(self, *pairs: tuple[str | Joined | Rows, str]) -> None:
        self._pairs = [
            (_Whole(theirs) if isinstance(theirs, str) else theirs, _pattern(ours)) for theirs, ours in pairs
        ]

    def parts(self, ours: str, config: ModelConfig) -> list[Part]:
        """The upstream tensors, or rows of them, that are ours when stacked. Raises FlasharError for a name
        that upstream does not have.
        """
        for theirs, pattern in self._pairs:
            match = re.fullmatch(pattern, ours)
            if match is not None:
                groups, num_layers = match.groups(), config.num_layers
                return [replace(part, name=_filled(part.name, groups, num_layers)) for part in theirs.parts(config)]
        raise FlasharError(f"'{ours}' has no name in the upstream layout of family {config.family}")

    def to_upstream(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Our tensors under upstream's names: joined ones split, rows of one tensor stacked.

        Raises FlasharError for a tensor without a name, and for one of which rows are missing. Tensors on the meta
        device, which have shapes alone, become whole without these rows.
        """
        found: dict[str, dict[Part, Tensor]] = {}
        for name, tensor in state.items():
            parts = self.parts(name, config)
            rows = [part.last - part.first for part in parts if part.last is not None]
            for part, piece in zip(parts, tensor.split(rows) if rows else [tensor], strict=True):
                found.setdefault(part.name, {})[part] = piece
        return {name: _whole(name, pieces) for name, pieces in found.items()}

    def to_ours(self, state: Mapping[str, Lazy], names: Iterable[str], config: ModelConfig) -> dict[str, Lazy]:
        """The tensors that we call ``names``, from a state that has them all; nothing is read. Raises FlasharError
        where tensors to join differ in dtype.
        """
        from flashar_cli.files.lazy import Stacked

        found = {}
        for name in names:
            parts = self.parts(name, config)
            _require_one_dtype([state[part.name].dtype for part in parts], parts)
            pieces = [(state[part.name], part.first, part.last) for part in parts if part.last is not None]
            found[name] = Stacked(pieces) if pieces else state[parts[0].name]
        return found


def _whole(name: str, pieces: Mapping[Part, Tensor]) -> Tensor:
    """An upstream tensor from all parts of it that there are."""
    import torch

    parts = sorted(pieces, key=lambda part: part.first)
    tensors, total = [pieces[part] for part in parts], parts[0].total
    if total is None or [part.first for part in parts] + [total] == [0] + [part.last for part in parts]:
        _require_one_dtype([tensor.dtype for tensor in tensors], parts)
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    if tensors[0].is_meta:
        return tensors[0].new_empty((total, *tensors[0].shape[1:]))
    there = ", ".join(f"{part.first} to {part.last}" for part in parts)
    raise FlasharError(
        f"upstream's {name} has {total} rows, of which a checkpoint keeps {there} alone; the upstream layout can't be "
        "written"
    )


def _require_one_dtype(dtypes: Iterable[torch.dtype], parts: Iterable[Part]) -> None:
    if len(set(dtypes)) > 1:
        names = ", ".join(dict.fromkeys(part.name for part in parts))
        raise FlasharError(f"parts of {names} differ in dtype; expected one, as they become one tensor")


def _pattern(ours: str) -> str:
    return re.escape(ours).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")


def _filled(name: str, values: Iterable[str], num_layers: int) -> str:
    rest = iter(values)

    def value(mark: re.Match[str]) -> str:
        text = next(rest)
        return str(int(text) + num_layers) if mark[0] == "{+}" else text

    return re.sub(r"\{\+?\}|\*", value, name)
