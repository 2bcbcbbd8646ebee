"""Precision and recall: whose neighbourhoods hold the features of the others?

Letters: N, M rows, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashar_cli.errors import FlasharError

NEIGHBOURS = 3
ROWS_AT_ONCE = 1000


class PrecisionRecall(NamedTuple):
    """Shares, 0 to 1."""

    precision: float
    recall: float


def precision_recall(reference: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Of features of real images [N, F] and of samples [M, F]. Precision is the share of samples that lie no further
    from some real image than its ``neighbours``-th nearest real image does; recall the same with roles changed.

    Raises FlasharError for fewer rows than neighbours. Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), as in
    openai/guided-diffusion evaluations/evaluator.py, which rounds distances to float16; here they are float32.
    """
    if min(len(reference), len(samples)) <= neighbours:
        raise FlasharError(
            f"precision and recall take more than {neighbours} images of each kind; got {len(reference)} real ones and "
            f"{len(samples)} samples"
        )
    return PrecisionRecall(
        precision=_share_inside(samples, reference, _radii(reference, neighbours)),
        recall=_share_inside(reference, samples, _radii(samples, neighbours)),
    )


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """[N] distances of each row of [N, F] to its k-th nearest other row."""
    # The nearest row of all is the row itself.
    found = [torch.cdist(rows, features).kthvalue(neighbours + 1).values for rows in features.split(ROWS_AT_ONCE)]
    return torch.cat(found)


def _share_inside(features: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of rows [M, F] that lie within the radius [N] of some centre [N, F]."""
    inside = [(torch.cdist(rows, centres) <= radii).any(dim=1) for rows in features.split(ROWS_AT_ONCE)]
    return float(torch.cat(inside).double().mean())
