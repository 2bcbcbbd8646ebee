"""Which hidden states predict which cells, as index tensors.

Letters: C target cells.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flashar_cli.grid import NO_SOURCE, Order


class Targets(NamedTuple):
    """Which hidden states predict C target cells, as indices into those of the tokens before them.

    ``horizontal`` and ``vertical`` are int64 [C] (0 where that head does not predict the cell), or None where source k
    predicts target k. ``has_horizontal`` and ``has_vertical`` bool [C] say which heads predict a cell; ``uses_branch``
    is False where the vertical head predicts none. ``gated`` bool [C, 1] is True where both predict the cell; elsewhere
    ``fixed_gate`` float32 [C, 1] replaces the gate's logit: +inf for the horizontal, -inf for the vertical head alone.
    """

    horizontal: Tensor | None
    vertical: Tensor | None
    has_horizontal: Tensor
    has_vertical: Tensor
    gated: Tensor
    fixed_gate: Tensor
    uses_branch: bool


def grid_targets(order: Order, device: torch.device) -> Targets:
    """All N cells, from the hidden states of the last prefix token and of the first N - 1 image tokens."""
    return _targets(order, 0, len(order.cells), 0, len(order.cells), device)


def step_targets(order: Order, step: int, device: torch.device) -> Targets:
    """The cells of one step, from the hidden states of the previous step (step 0: of the last prefix token)."""
    starts = order.step_starts
    if step == 0:
        return _targets(order, 0, starts[1], 0, 1, device)
    return _targets(order, starts[step], starts[step + 1], 1 + starts[step - 1], len(order.steps[step - 1]), device)


def aligned_targets(has_horizontal: Tensor, has_vertical: Tensor, uses_branch: bool) -> Targets:
    """Targets whose sources are already in the same order; bool [C] each say which heads predict a cell."""
    return Targets(
        horizontal=None,
        vertical=None,
        has_horizontal=has_horizontal,
        has_vertical=has_vertical,
        gated=(has_horizontal & has_vertical)[:, None],
        fixed_gate=torch.where(has_horizontal, math.inf, -math.inf)[:, None],
        uses_branch=uses_branch,
    )


@lru_cache(maxsize=4096)
@torch.inference_mode(False)  # shared with training, and autograd refuses inference tensors
def _targets(order: Order, first: int, last: int, base: int, num_sources: int, device: torch.device) -> Targets:
    horizontal = _relative(order.horizontal_source[first:last], base)
    vertical = _relative(order.vertical_source[first:last], base)
    identity = list(range(num_sources))

    def index(sources: list[int]) -> Tensor | None:
        return None if sources == identity else torch.tensor([max(source, 0) for source in sources], device=device)

    def takes_part(sources: list[int]) -> Tensor:
        return torch.tensor([source != NO_SOURCE for source in sources], device=device)

    uses_branch = any(source != NO_SOURCE for source in order.vertical_source)
    aligned = aligned_targets(takes_part(horizontal), takes_part(vertical), uses_branch)
    return aligned._replace(horizontal=index(horizontal), vertical=index(vertical))


def _relative(sources: tuple[int, ...], base: int) -> list[int]:
    return [source if source == NO_SOURCE else source - base for source in sources]
