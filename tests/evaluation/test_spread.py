"""The jackknife against textbook errors, and against what new samples show."""

import numpy as np
import pytest

from flashar_cli.evaluation.frechet import frechet_distance
from flashar_cli.evaluation.moments import Moments
from flashar_cli.evaluation.spread import GROUPS, jackknife


def test_of_a_mean_it_is_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).standard_normal(37)
    expected = values.std(ddof=1) / np.sqrt(len(values))
    assert jackknife(list(values), lambda rest: float(np.mean(rest))) == pytest.approx(expected)


def test_of_a_frechet_distance_it_is_about_the_spread_over_new_samples() -> None:
    rng, dims, num = np.random.default_rng(1), 12, 1000
    reference = Moments.of(rng.standard_normal((20_000, dims)))
    scales = np.linspace(0.7, 1.4, dims)

    def parts() -> list[Moments]:
        rows = rng.standard_normal((num, dims)) * scales + 0.2
        return [Moments.of(part) for part in np.array_split(rows, GROUPS)]

    def distance(groups) -> float:
        return frechet_distance(Moments.merged(groups), reference)

    runs = [parts() for _ in range(60)]
    spread = np.std([distance(groups) for groups in runs], ddof=1)
    estimates = np.mean([jackknife(groups, distance) for groups in runs[:20]])
    assert estimates == pytest.approx(spread, rel=0.3)
