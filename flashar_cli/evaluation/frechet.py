"""Frechet distance between two sets of features, each summed up by its mean and covariance."""

from __future__ import annotations

import numpy as np

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.moments import Moments


def frechet_distance(samples: Moments, reference: Moments) -> float:
    """|mu_s - mu_r|^2 + tr(S_s + S_r - 2 (S_r^1/2 S_s S_r^1/2)^1/2), computed in float64; 0 for equal sets.

    The covariances S are the unbiased ones. The matrix inside the root is symmetric positive semi-definite, so its
    root's trace is a sum over eigenvalues. Raises FlasharError for fewer than two rows, and for other numbers of
    features. Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv 1706.08500).
    """
    if samples.mean.shape != reference.mean.shape:
        raise FlasharError(
            f"features have {samples.mean.size} and {reference.mean.size} dimensions; expected the same number"
        )
    if min(samples.count, reference.count) < 2:
        raise FlasharError(
            f"sets of {samples.count} and {reference.count} images have no distance; expected at least two in each"
        )
    covariance = samples.covariance
    inner = reference.root @ covariance @ reference.root
    root_trace = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    difference = samples.mean - reference.mean
    distance = difference @ difference + np.trace(covariance) + np.trace(reference.covariance) - 2 * root_trace
    return max(0.0, float(distance))  # rounding can leave a tiny negative number
