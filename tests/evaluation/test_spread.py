"""The jackknife against textbook errors, and against what new samples show."""

import numpy as np
import pytest

from flashar_cli.evaluation.frechet import frechet_distance
from flashar_cli.evaluation.judges.base import Figure, distance_figure
from flashar_cli.evaluation.moments import Moments
from flashar_cli.evaluation.spread import jackknife, rounds


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
        return [Moments.of(part) for part in np.array_split(rows, 20)]

    def distance(groups) -> float:
        return frechet_distance(Moments.merged(groups), reference)

    runs = [parts() for _ in range(60)]
    spread = np.std([distance(groups) for groups in runs], ddof=1)
    estimates = np.mean([jackknife(groups, distance) for groups in runs[:20]])
    assert estimates == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize(("num_images", "num_classes"), ((500, 10), (10_000, 10), (230, 10), (2050, 100), (64, 1)))
def test_groups_are_whole_rounds(num_images, num_classes):
    parts = rounds(num_images, num_classes)
    assert parts is not None and 10 <= len(parts) <= 50
    images = np.arange(num_images)
    assert np.array_equal(np.concatenate([images[part] for part in parts]), images)
    sizes = [len(images[part]) for part in parts]
    left = num_images % num_classes
    assert all(size % num_classes == 0 for size in [*sizes[:-1], sizes[-1] - left])
    if (num_images // num_classes) % 23:  # there are as many rounds in each
        assert len({*sizes[:-1], sizes[-1] - left}) == 1


def test_too_few_rounds_have_no_error():
    assert rounds(99, 10) is None and rounds(5000, 1000) is None and rounds(100, 10) is not None


@pytest.mark.parametrize(("num_images", "num_classes"), ((500, 10), (2000, 100)))
def test_classes_that_come_in_turn_are_no_chance(num_images, num_classes):
    """The error is about the spread over new samples with the same classes, though classes differ more than that."""
    rng, dims = np.random.default_rng(2), 6
    centres = 2 * rng.standard_normal((num_classes, dims))
    reference = Moments.of(centres[np.arange(20_000) % num_classes] + rng.standard_normal((20_000, dims)))

    def figure() -> Figure:
        rows = centres[np.arange(num_images) % num_classes] + 1.2 * rng.standard_normal((num_images, dims))
        return distance_figure("distance", rows, num_classes, reference)

    found = [figure() for _ in range(60)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.3)
