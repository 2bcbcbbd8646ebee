"""Sources of every target, from rows and columns alone."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.grid import Grid
from flashar_cli.models.targets import grid_targets, step_targets

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]
CPU = torch.device("cpu")


def sources(index: torch.Tensor | None, has: torch.Tensor) -> list[int | None]:
    places = list(range(len(has))) if index is None else index.tolist()
    return [place if there else None for place, there in zip(places, has.tolist(), strict=True)]


def neighbour(order, cell: int, down: int, right: int) -> int | None:
    """The place of the cell to the left or above among hidden states that the last prefix token begins."""
    row, col = divmod(cell, order.grid.width)
    if cell == 0:
        return 0
    if row < down or col < right:
        return None
    return 1 + order.cells.index((row - down) * order.grid.width + col - right)


@pytest.mark.parametrize("shape", GRIDS)
def test_diagonal_targets_read_the_left_and_the_upper_neighbour(shape):
    order = Grid(*shape).diagonal()
    targets = grid_targets(order, CPU)
    left = [neighbour(order, cell, 0, 1) for cell in order.cells]
    above = [neighbour(order, cell, 1, 0) for cell in order.cells]
    assert targets.uses_branch
    assert sources(targets.horizontal, targets.has_horizontal) == left
    assert sources(targets.vertical, targets.has_vertical) == above
    start = 0
    for step, cells in enumerate(order.steps):
        part = step_targets(order, step, CPU)
        base = 0 if step == 0 else start - len(order.steps[step - 1]) + 1
        for got, wanted in (
            (sources(part.horizontal, part.has_horizontal), left),
            (sources(part.vertical, part.has_vertical), above),
        ):
            assert got == [None if s is None else s - base for s in wanted[start : start + len(cells)]]
        start += len(cells)


@pytest.mark.parametrize("shape", GRIDS)
def test_raster_targets_read_the_token_before(shape):
    order = Grid(*shape).raster()
    targets = grid_targets(order, CPU)
    assert not targets.uses_branch and not targets.has_vertical.any()
    assert sources(targets.horizontal, targets.has_horizontal) == list(range(order.grid.num_cells))
