"""How far a figure of these images would be from one of as many others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

GROUPS = 20  # into which the images of a run are divided
T = TypeVar("T")


def jackknife(groups: Sequence[T], statistic: Callable[[Sequence[T]], float]) -> float:
    """Standard error of ``statistic(groups)``, from leaving out one group after the other; the groups are of equal size
    and independent. Source: Efron and Stein 1981, equation 1.4.
    """
    count = len(groups)
    values = np.array([statistic([*groups[:index], *groups[index + 1 :]]) for index in range(count)])
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))
