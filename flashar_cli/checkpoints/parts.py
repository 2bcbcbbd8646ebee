"""What the files of a checkpoint must hold, and what they do: by our names, or by upstream's where they are linked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from flashar_cli.config import CONFIG_FILE, AnyTokenizerConfig, ModelConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.families.base import TOKENIZER, Family
from flashar_cli.files.lazy import Finite, Lazy
from flashar_cli.files.shards import open_tensors, open_weights
from flashar_cli.files.tensors import WEIGHT_DTYPES, describe_problems
from flashar_cli.models import build_model
from flashar_cli.tokenizers import build_tokenizer

TOKENIZER_FILE = "tokenizer.safetensors"
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Part:
    """Files with some of a checkpoint's tensors. ``expected`` are tensors on the meta device by the names in the files.
    ``ours`` gives the complete tensors our names; those of the image tokenizer begin with ``TOKENIZER``.
    """

    place: Path
    expected: Mapping[str, Tensor]
    open: Callable[[], Mapping[str, Lazy]]
    ours: Callable[[Mapping[str, Lazy]], Mapping[str, Lazy]]

    def problems(self) -> list[str]:
        """Every reason why the files do not fit, but for values that are not finite. Raises FlasharError where they
        can't be opened.
        """
        return state_problems(self.expected, self.open())

    def read(self, what: str) -> dict[str, Lazy]:
        """The tensors by our names; values that are not finite are refused when they are read. Raises FlasharError that
        lists all problems, and says that the files are not ``what``.
        """
        state = self.open()
        problems = state_problems(self.expected, state)
        if problems:
            raise FlasharError(f"{self.place} {what}: {describe_problems(problems)}")
        return dict(self.ours({name: Finite(lazy, f"{self.place}: {name}") for name, lazy in state.items()}))


def open_checkpoint(directory: Path, config: ModelConfig) -> tuple[dict[str, Lazy], dict[str, Lazy]]:
    """The tensors of a checkpoint's model and of its image tokenizer, complete. Raises FlasharError that lists every
    missing, unexpected and mis-shaped tensor; nothing is read but headers.
    """
    state: dict[str, Lazy] = {}
    for part in checkpoint_parts(directory, config):
        state |= part.read(f"does not match its {CONFIG_FILE}")
    return split_tokenizer(state)


def checkpoint_parts(directory: Path, config: ModelConfig) -> Iterator[Part]:
    """The model's part of a checkpoint, and the image tokenizer's where it has a file of its own."""
    tokenizer, path = config.tokenizer, directory / TOKENIZER_FILE
    if config.weights == "upstream":
        family = get_family(config.family)
        yield upstream_part(directory, lambda: open_weights(directory), family, config)
        tokenizer = None if family.tokenizer_title is None else tokenizer
    else:
        yield Part(directory, model_on_meta(config).state_dict(), lambda: open_weights(directory), dict)
    if tokenizer is not None:
        yield tokenizer_part(path, lambda: open_tensors(path), tokenizer)


def upstream_part(place: Path, open: Callable[[], Mapping[str, Lazy]], family: Family, config: ModelConfig) -> Part:
    """Upstream files of a model, with its image tokenizer where the family keeps both together."""
    names = dict(model_on_meta(config).state_dict())
    if config.tokenizer is not None and family.tokenizer_title is None:
        names |= _named(tokenizer_on_meta(config.tokenizer).state_dict())
    return Part(
        place,
        family.to_upstream(names, config),
        lambda: family.kept(open(), config),
        lambda state: family.to_ours(state, names, config),
    )


def tokenizer_part(place: Path, open: Callable[[], Mapping[str, Lazy]], config: AnyTokenizerConfig) -> Part:
    """A file of an image tokenizer."""
    return Part(place, tokenizer_on_meta(config).state_dict(), open, _named)


def split_tokenizer(state: Mapping[str, Lazy]) -> tuple[dict[str, Lazy], dict[str, Lazy]]:
    """The tensors of the model, and those of the image tokenizer without ``TOKENIZER``."""
    model = {name: lazy for name, lazy in state.items() if not name.startswith(TOKENIZER)}
    return model, {name.removeprefix(TOKENIZER): lazy for name, lazy in state.items() if name not in model}


def state_problems(expected: Mapping[str, Tensor], state: Mapping[str, Lazy]) -> list[str]:
    """Every reason why a state can't be loaded, but for its values: missing, unexpected and mis-shaped tensors."""
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        shape, dtype = state[name].shape, state[name].dtype
        if expected[name].shape != shape:
            problems.append(f"{name} is {list(shape)}, expected {list(expected[name].shape)}")
        elif dtype not in WEIGHT_DTYPES:
            kinds = ", ".join(map(_dtype_name, WEIGHT_DTYPES))
            problems.append(f"{name} is {_dtype_name(dtype)}, expected one of {kinds}")
    return sorted(problems)


def model_on_meta(config: ModelConfig) -> Any:
    """A model of any kind, without data."""
    with torch.device("meta"):
        return build_model(config)


def tokenizer_on_meta(config: AnyTokenizerConfig) -> Any:
    """An image tokenizer of any kind, without data."""
    with torch.device("meta"):
        return build_tokenizer(config)


def _named(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    return {TOKENIZER + name: each for name, each in state.items()}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
