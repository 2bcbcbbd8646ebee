"""How far a figure of these images would be from one of as many others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

GROUPS = 20  # into which the images of a run are divided, or nearly so many
FEWEST, MOST = 10, 50
T = TypeVar("T")


def jackknife(groups: Sequence[T], statistic: Callable[[Sequence[T]], float]) -> float:
    """Standard error of ``statistic(groups)``, from leaving out one group after the other; the groups are of equal size
    and independent. Source: Efron and Stein 1981, equation 1.4.
    """
    count = len(groups)
    values = np.array([statistic([*groups[:index], *groups[index + 1 :]]) for index in range(count)])
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))


def rounds(num_images: int, num_classes: int) -> list[slice] | None:
    """Groups of images whose classes come in turn. Each is of whole rounds, so that all have the same classes, as other
    samples would: how classes differ is no chance. All have as many rounds where that can be; what is left of a last
    round is in the last group. None where there are too few rounds.
    """
    num_rounds = num_images // num_classes
    if num_rounds < FEWEST:
        return None
    even = [count for count in range(FEWEST, MOST + 1) if num_rounds % count == 0]
    count = min(even, key=lambda each: abs(each - GROUPS)) if even else min(GROUPS, num_rounds)
    starts = [index * num_rounds // count * num_classes for index in range(count)]
    return [slice(first, last) for first, last in zip(starts, [*starts[1:], num_images], strict=True)]
