"""What a judge is: it says what samples are to show, looks at them, and puts what it sees into figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config import ModelConfig
from flashar_cli.data.conditions import Given
from flashar_cli.evaluation.frechet import frechet_distance
from flashar_cli.evaluation.moments import Moments
from flashar_cli.evaluation.spread import jackknife, rounds

Images = Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class Figure:
    """One figure of a set of samples. ``error`` is its standard error over other samples of the same number, None where
    it is not estimated. ``best`` says whether a higher or a lower one is better.
    """

    name: str
    value: float
    error: float | None
    best: str


class Judge(ABC):
    """``name`` says by what it judges; ``side`` is the height and width of the images that it takes, ``num_images`` how
    many it takes by default, ``data`` images that models of its kind were not trained on, None where it knows none.
    """

    name: str
    side: int
    num_images: int
    data: str | None = None

    @abstractmethod
    def obstacle(self, config: ModelConfig) -> str | None:
        """Why images of a model can't be judged so, in one line; None where they can. The model has a tokenizer."""

    @abstractmethod
    def asked(self, config: ModelConfig, num_images: int) -> Given:
        """What the samples are to show."""

    @abstractmethod
    def figures(self, images: Images, config: ModelConfig) -> list[Figure]:
        """Of the samples of ``asked`` of a model, uint8 [B, h, w, 3] at a time. Raises FlasharError for too few."""


def distance_figure(name: str, features: NDArray[np.floating], num_classes: int, reference: Moments) -> Figure:
    """The Frechet distance of features [N, F] of images whose classes come in turn, with its error, where there are
    rounds enough for one.
    """
    parts = rounds(len(features), num_classes)

    def distance(chosen: Sequence[Moments]) -> float:
        return frechet_distance(Moments.merged(chosen), reference)

    if parts is None:
        return Figure(name, distance([Moments.of(features)]), None, "lower")
    groups = [Moments.of(features[part]) for part in parts]
    return Figure(name, distance(groups), jackknife(groups, distance), "lower")
