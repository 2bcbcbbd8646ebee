"""Frechet distance between two sets of features, each summed up by its mean and covariance."""

from __future__ import annotations

import numpy as np

from flashar_cli.errors import FlasharError


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), computed in float64; 0 for equal sets.

    ``features_a`` [num_a, F] and ``features_b`` [num_b, F]; the covariances S are the unbiased ones. The matrix
    inside the root is symmetric positive semi-definite, so its root's trace is a sum over eigenvalues.
    Raises FlasharError for fewer than two rows, other shapes, or values that are not finite.
    Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv 1706.08500).
    """
    mean_a, covariance_a = _moments(features_a, "features_a")
    mean_b, covariance_b = _moments(features_b, "features_b")
    if mean_a.shape != mean_b.shape:
        raise FlasharError(f"features have {mean_a.size} and {mean_b.size} dimensions; expected the same number")
    root_a = _symmetric_root(covariance_a)
    inner = root_a @ covariance_b @ root_a
    root_trace = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    difference = mean_a - mean_b
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * root_trace
    return max(0.0, float(distance))  # rounding can leave a tiny negative number


def _moments(features: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and covariance [F, F] in float64."""
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2:
        raise FlasharError(f"{name} has shape {values.shape}; expected [num, dims] with at least two rows")
    if not np.isfinite(values).all():
        raise FlasharError(f"{name} holds values that are not finite; expected finite features")
    return values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False))


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Positive semi-definite [F, F] -> its positive semi-definite root."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
