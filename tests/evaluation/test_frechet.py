"""Frechet distance against closed forms and against another implementation."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation import frechet
from flashar_cli.evaluation.moments import Moments


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet.frechet_distance(Moments.of(a), Moments.of(b))


def with_moments(mean: np.ndarray, covariance: np.ndarray, num: int = 400) -> np.ndarray:
    """[num, F] whose sample mean and unbiased covariance are exactly the given ones."""
    noise = np.random.default_rng(3).standard_normal((num, len(mean)))
    noise -= noise.mean(axis=0)
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(noise, rowvar=False)))).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


def random_covariance(dims: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((dims, 2 * dims))
    return factor @ factor.T / dims


def test_equal_sets_are_at_distance_zero() -> None:
    features = with_moments(np.zeros(5), random_covariance(5, 0))
    assert frechet_distance(features, features.astype(np.float64)[::-1]) == pytest.approx(0, abs=1e-9)


def test_a_shift_alone_costs_its_squared_length() -> None:
    features = with_moments(np.zeros(4), random_covariance(4, 1))
    shift = np.array([1.0, -2.0, 0.5, 3.0])
    assert frechet_distance(features, features + shift) == pytest.approx(shift @ shift)


def test_commuting_covariances_cost_the_squared_difference_of_deviations() -> None:
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    deviations_a, deviations_b = np.linspace(0.5, 3, 6), np.linspace(2, 1, 6)
    a = with_moments(np.zeros(6), (basis * deviations_a**2) @ basis.T)
    b = with_moments(np.ones(6), (basis * deviations_b**2) @ basis.T)
    assert frechet_distance(a, b) == pytest.approx(6 + ((deviations_a - deviations_b) ** 2).sum())


def test_two_dimensions_against_the_trace_formula() -> None:
    # For 2x2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    cov_a, cov_b = random_covariance(2, 4), random_covariance(2, 5)
    product = cov_a @ cov_b
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace
    got = frechet_distance(with_moments(np.zeros(2), cov_a), with_moments(np.zeros(2), cov_b, num=350))
    assert got == pytest.approx(expected)


def test_it_is_symmetric_and_takes_singular_covariances_and_one_dimension() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((3, 8)), rng.standard_normal((5, 8)).astype(np.float32)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(
        with_moments(np.zeros(1), np.eye(1)), with_moments(np.ones(1), 9 * np.eye(1))
    ) == pytest.approx(5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "1 and 4 images"),
        (np.zeros((0, 3)), np.zeros((4, 3)), "at least one row"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 and 2 dimensions"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "not finite"),
        (np.zeros(4), np.zeros((4, 3)), r"\[num, dims\]"),
    ],
)
def test_bad_features_are_refused(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(FlasharError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize(("num_a", "num_b", "dims"), [(300, 500, 24), (2000, 1500, 192), (40, 60, 64)])
def test_it_is_what_torchmetrics_finds(num_a: int, num_b: int, dims: int) -> None:
    """Random features, correlated, of different scales; the last ones with singular covariances."""
    rng = np.random.default_rng(dims)
    mix = rng.standard_normal((dims, dims)) * np.geomspace(0.01, 3, dims)
    a, b = rng.standard_normal((num_a, dims)) @ mix, rng.standard_normal((num_b, dims)) @ mix.T + 0.1
    metric = FrechetInceptionDistance(feature=torch.nn.Flatten(), input_img_size=(dims, 1, 1)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a)[:, :, None, None], real=False)
    metric.update(torch.from_numpy(b)[:, :, None, None], real=True)
    assert frechet_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)
