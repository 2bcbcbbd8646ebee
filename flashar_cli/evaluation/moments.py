"""Mean and covariance of features, of parts of the images or of all.

Letters: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flashar_cli.errors import FlasharError


@dataclass(frozen=True)
class Moments:
    """Number of rows, mean float64 [F], and sum of the outer products of the deviations from it, float64 [F, F]."""

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating], name: str = "features") -> Moments:
        """Of rows [N, F]. Raises FlasharError for another shape, no row, and values that are not finite."""
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or not len(values):
            raise FlasharError(f"{name} has shape {values.shape}; expected [num, dims] with at least one row")
        if not np.isfinite(values).all():
            raise FlasharError(f"{name} holds values that are not finite; expected finite features")
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    @classmethod
    def of_covariance(cls, count: int, mean: NDArray[np.floating], covariance: NDArray[np.floating]) -> Moments:
        """Of a mean [F] and an unbiased covariance [F, F] of so many rows."""
        return cls(count, mean.astype(np.float64), covariance.astype(np.float64) * (count - 1))

    @classmethod
    def merged(cls, parts: Sequence[Moments]) -> Moments:
        """Of the rows of all parts together (Chan, Golub and LeVeque 1983)."""
        count = sum(part.count for part in parts)
        mean = np.sum([part.count / count * part.mean for part in parts], axis=0)
        scatter = np.zeros((len(mean), len(mean)))
        for part in parts:
            shift = part.mean - mean
            scatter += part.scatter + part.count * np.outer(shift, shift)
        return cls(count, mean, scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The unbiased one, [F, F]."""
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """The positive semi-definite root of the covariance, [F, F]."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
