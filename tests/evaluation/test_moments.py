"""Moments against NumPy's, and of parts against those of all."""

import numpy as np
import pytest

from flashar_cli.evaluation.moments import Moments


def test_they_are_numpys() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32) * 3 + 100
    found = Moments.of(rows)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False))


def test_parts_of_any_size_together_are_the_whole() -> None:
    rows = np.random.default_rng(1).standard_normal((60, 5)) + np.arange(60)[:, None]
    merged = Moments.merged([Moments.of(part) for part in np.split(rows, [1, 4, 30])])
    whole = Moments.of(rows)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean)
    np.testing.assert_allclose(merged.covariance, whole.covariance)


def test_a_covariance_comes_back() -> None:
    rows = np.random.default_rng(2).standard_normal((30, 4))
    whole = Moments.of(rows)
    again = Moments.of_covariance(30, rows.mean(axis=0), np.cov(rows, rowvar=False))
    np.testing.assert_allclose(again.covariance, whole.covariance)
    assert again.mean == pytest.approx(whole.mean)
