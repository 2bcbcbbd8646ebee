"""Precision and recall against brute force, and of sets where they are known."""

import numpy as np
import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation import manifold
from flashar_cli.evaluation.manifold import precision_recall


def two_sets(num: int = 80, other: int = 50, dims: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(num, dims, generator=generator)
    return reference, 0.8 * torch.randn(other, dims, generator=generator) + 0.5


def brute_force(reference: np.ndarray, samples: np.ndarray, neighbours: int) -> tuple[float, float]:
    def inside(points: np.ndarray, centres: np.ndarray) -> float:
        count = 0
        for point in points:
            for index, centre in enumerate(centres):
                others = sorted(np.linalg.norm(np.delete(centres, index, axis=0) - centre, axis=1))
                if np.linalg.norm(point - centre) <= others[neighbours - 1]:
                    count += 1
                    break
        return count / len(points)

    return inside(samples, reference), inside(reference, samples)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_brute_force(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "ROWS_AT_ONCE", 17)
    reference, samples = two_sets()
    expected = brute_force(reference.double().numpy(), samples.double().numpy(), neighbours)
    found = precision_recall(reference, samples, neighbours)
    assert found == pytest.approx(expected)
    assert found.precision != pytest.approx(found.recall)  # so that exchanged roles would show


def test_samples_of_one_mode_are_precise_and_miss_the_other() -> None:
    generator = torch.Generator().manual_seed(1)
    modes = torch.randn(2, 100, 4, generator=generator) + torch.tensor([0.0, 50.0])[:, None, None]
    found = precision_recall(modes.flatten(0, 1), torch.randn(100, 4, generator=generator))
    assert found.precision > 0.8 and found.recall < 0.5


def test_too_few_images_are_refused() -> None:
    with pytest.raises(FlasharError, match="more than 3 images of each kind; got 80 real ones and 3 samples"):
        precision_recall(two_sets()[0], two_sets()[1][:3])
