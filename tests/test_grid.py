from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashar_cli.errors import FlasharError
from flashar_cli.grid import NO_SOURCE, Grid

SIDES = st.integers(1, 9)


@given(SIDES, SIDES)
def test_orders_are_permutations_and_conversions_invert(height, width):
    grid = Grid(height, width)
    raster = np.arange(2 * grid.num_cells).reshape(2, height, width)
    for order in (grid.raster(), grid.diagonal()):
        assert sorted(order.cells) == list(range(grid.num_cells))
        assert np.array_equal(order.to_raster(order.from_raster(raster)), raster)


@given(SIDES, SIDES)
def test_diagonal_steps_by_the_definition(height, width):
    order = Grid(height, width).diagonal()
    assert order.num_steps == height + width - 1
    expected = [
        [row * width + col for row in range(height) for col in range(width) if row + col == step]
        for step in range(height + width - 1)
    ]
    assert [list(step) for step in order.steps] == expected


@given(SIDES, SIDES)
def test_sources_are_the_left_and_the_upper_neighbour_of_the_step_before(height, width):
    order = Grid(height, width).diagonal()
    for position, cell in enumerate(order.cells):
        row, col = divmod(cell, width)
        for source, neighbour in (
            (order.horizontal_source[position], (row, col - 1)),
            (order.vertical_source[position], (row - 1, col)),
        ):
            if cell == 0:
                assert source == 0
            elif min(neighbour) < 0:
                assert source == NO_SOURCE
            else:
                assert divmod(order.cells[source - 1], width) == neighbour
                assert order.ranks[source - 1] == order.ranks[position] - 2


def test_raster_is_predicted_by_the_token_before():
    order = Grid(2, 3).raster()
    assert order.horizontal_source == (0, 1, 2, 3, 4, 5)
    assert set(order.vertical_source) == {NO_SOURCE}


@given(SIDES, SIDES)
def test_line_ends_have_slots_after_every_row_but_the_last(height, width):
    order = Grid(height, width).raster(line_ends=True)
    text = [(row, col) for row in range(height) for col in range(width + 1)][:-1]  # col == width ends the row
    assert order.num_slots == len(text) and order.places == list(range(len(text)))
    assert [text[slot] for slot in order.slots] == [divmod(cell, width) for cell in order.cells]
    assert order.cells == list(range(height * width)) and order.num_steps == height * width
    for cell, source in enumerate(order.horizontal_source):  # the token before it in the text, or the prefix
        assert source == text.index(divmod(cell, width))
    assert order.slot_starts == [text.index(divmod(cell, width)) for cell in order.cells] + [len(text)]
    assert order.ranks == sorted(order.ranks) and len(set(order.ranks)) == len(text)  # causal


def test_orders_with_and_without_line_ends_differ():
    assert Grid(2, 3).raster() != Grid(2, 3).raster(line_ends=True)
    assert Grid(2, 3).raster().num_slots == 6 and Grid(2, 3).diagonal().slots == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ("", "0x4", "4x", "axb", "4x4x4", "-1x3"))
def test_bad_grids_are_refused(text):
    with pytest.raises(FlasharError):
        Grid.parse(text)


def test_parse():
    assert Grid.parse("16x24") == Grid(16, 24)
    assert Grid.parse("8") == Grid(8, 8)
    with pytest.raises(FlasharError, match=r"expected \[\.\., 2, 3\]"):
        Grid(2, 3).diagonal().from_raster(np.zeros((1, 3, 2)))
