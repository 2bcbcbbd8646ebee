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
    ``corner`` bool [C, 1] is True for cell (0, 0), None where it is not among the targets.
    """

    horizontal: Tensor | None
    vertical: Tensor | None
    has_horizontal: Tensor
    has_vertical: Tensor
    gated: Tensor
    fixed_gate: Tensor
    corner: Tensor | None
    uses_branch: bool


def grid_targets(order: Order, device: torch.device) -> Targets:
    """All N cells, from the hidden states of the last prefix token and of all tokens of the image but the last."""
    return _targets(order, 0, len(order.cells), 0, order.num_slots, device)


def step_targets(order: Order, step: int, device: torch.device) -> Targets:
    """The cells of one step, from the hidden states of the previous step (step 0: of the last prefix token)."""
    starts, slots = order.step_starts, order.slot_starts
    if step == 0:
        return _targets(order, 0, starts[1], 0, 1, device)
    return _targets(order, starts[step], starts[step + 1], 1 + slots[step - 1], slots[step] - slots[step - 1], device)


def aligned_targets(
    has_horizontal: Tensor, has_vertical: Tensor, uses_branch: bool, corner: Tensor | None = None
) -> Targets:
    """Targets whose sources are already in the same order; bool [C] each say which heads predict a cell, and which is
    the cell (0, 0).
    """
    return Targets(
        horizontal=None,
        vertical=None,
        has_horizontal=has_horizontal,
        has_vertical=has_vertical,
        gated=(has_horizontal & has_vertical)[:, None],
        fixed_gate=torch.where(has_horizontal, math.inf, -math.inf)[:, None],
        corner=None if corner is None else corner[:, None],
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

    corner = torch.arange(last, device=device) == 0 if first == 0 else None
    aligned = aligned_targets(takes_part(horizontal), takes_part(vertical), order.uses_branch, corner)
    return aligned._replace(horizontal=index(horizontal), vertical=index(vertical))


def _relative(sources: tuple[int, ...], base: int) -> list[int]:
    return [source if source == NO_SOURCE else source - base for source in sources]
