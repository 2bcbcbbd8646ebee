"""The interface of every kind of condition: parsing options, reading data, naming images.

Letters: M images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.data.sources.base import Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.text import TextTokenizer

DEFAULT_PROMPTS_OPTION = "--prompt"
# Captions to the bytes of their feature file.
FeatureWriter = Callable[[Sequence[str]], bytes]


@dataclass(frozen=True)
class Given:
    """The conditions on the command line; None for options that were not passed. ``prompts_option`` is the one that the
    prompts came by; ``negative_prompts`` are what images must not show, one for all or one for each.
    """

    labels: str | None = None
    prompts: list[str] | None = None
    caption_features: Path | None = None
    prompt_tokens: Path | None = None
    negative_prompts: list[str] | None = None
    prompts_option: str = DEFAULT_PROMPTS_OPTION

    @property
    def options(self) -> list[str]:
        """The options that were passed and say what images show."""
        values = {
            "--labels": self.labels,
            self.prompts_option: self.prompts or None,
            "--caption-features": self.caption_features,
            "--prompt-tokens": self.prompt_tokens,
        }
        return [option for option, value in values.items() if value is not None]

    def require_one(self, model: str, known: tuple[str, str]) -> None:
        """Raises FlasharError unless exactly one of the ``known`` options was passed, and no other. ``model`` describes
        the model in messages.
        """
        for option in self.options:
            if option not in (*known, self.prompts_option):
                raise FlasharError(f"this model is {model}; pass {' or '.join(known)}, not {option}")
        if len(self.options) != 1:
            raise FlasharError(f"this model is {model}; expected either {' or '.join(known)} FILE")

    def refuse_negative(self, why: str) -> None:
        """Raises FlasharError for negative prompts, which ``why`` says nothing reads."""
        if self.negative_prompts:
            raise FlasharError(f"--negative-prompt: {why}; leave it out")


class Subjects(ABC):
    """What M images show."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Classes int64 [M]; None where images have none."""
        return None

    @abstractmethod
    def take(self, rows: NDArray[np.integer] | slice) -> Subjects:
        """The subjects of these rows, in this order."""

    def of_one_shape(self) -> Subjects:
        """The same subjects; however many of them are taken, their conditions have as many positions."""
        return self

    @abstractmethod
    def conditions(self) -> Conditions:
        """The conditions that a model reads."""

    @abstractmethod
    def names(self) -> list[str]:
        """Each subject in words."""

    @abstractmethod
    def content(self) -> bytes:
        """The bytes that a fingerprint of the data hashes."""


class Captions(Subjects):
    """Subjects in words, ``texts`` [M]."""

    texts: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.texts)

    def names(self) -> list[str]:
        return [str(text) for text in self.texts]

    def content(self) -> bytes:
        return "\n".join(self.texts.tolist()).encode()


@dataclass(frozen=True)
class ConditionKind(ABC):
    """The conditions of a model with this ``prefix`` in its config and this tokenizer in its checkpoint, for images of
    a ``grid``.
    """

    prefix: Any
    grid: Grid
    class_names: tuple[str, ...] | None = None
    text_tokenizer: TextTokenizer | None = None

    @property
    @abstractmethod
    def wanted(self) -> Wanted:
        """What a source of images must also have: labels or captions."""

    @abstractmethod
    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        """The conditions on the command line, and a name for each. Raises FlasharError for another kind. The model's
        prefix checks whether the conditions fit it.
        """

    @abstractmethod
    def read(self, values: list[Any], features: list[Path], where: Path) -> Subjects:
        """The subjects of the token shards at ``where``: ``values`` are their labels or captions [M], ``features`` the
        files of caption features. Raises FlasharError where these are missing or wrong.
        """

    def check_ready(self) -> None:  # noqa: B027 - most need nothing
        """Raises FlasharError where the checkpoint lacks what ``read`` needs."""

    def check_labels(self, labels: NDArray[np.int64] | None, data: str) -> None:  # noqa: B027 - most have none
        """Raises FlasharError for labels of ``data`` that the model does not know."""

    def features(self) -> dict[str, Any] | None:
        """What determines the text features that ``encode`` writes beside the tokens; None where it writes none."""
        return None

    def feature_writer(self, device: torch.device, batch_size: int) -> FeatureWriter | None:
        """Makes these features, ``batch_size`` captions at a time; None where there are none. Raises FlasharError where
        the text encoder can't be loaded.
        """
        return None

    def examples(self, subjects: Subjects, count: int) -> tuple[Conditions, list[str]]:
        """Conditions of ``count`` images of a sample sheet, and their names: of the first subjects, of all where there
        are fewer.
        """
        chosen = subjects.take(slice(0, count))
        return chosen.conditions(), chosen.names()
