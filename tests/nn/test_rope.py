"""Rotary positions by hand, and against rotations of complex numbers."""

from __future__ import annotations

import math

import pytest
import torch

from flashar_cli.grid import Grid
from flashar_cli.nn.rope import apply_rope, rope_table_1d, rope_table_2d, rope_table_scales, text_places

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("diagonal", (True, False))
def test_first_half_turns_with_the_row_second_with_the_column(shape, diagonal):
    grid = Grid(*shape)
    order = grid.diagonal() if diagonal else grid.raster()
    table = rope_table_2d(order, 2, 8, 100.0, torch.device("cpu"))
    assert table.shape == (2 + grid.num_cells, 4, 2) and not table[:2].any()
    for position, cell in enumerate(order.cells):
        row, col = divmod(cell, grid.width)
        angles = [row, row / 10, col, col / 10]  # frequencies 100^0 and 100^(-1/2)
        expected = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
        torch.testing.assert_close(table[2 + position], expected)


def test_maps_of_all_scales_are_measured_in_the_finest_ones_cells():
    scales, finest = (Grid(1, 1), Grid(2, 3), Grid(3, 4)), Grid(7, 12)
    table = rope_table_scales(scales, finest, 8, 100.0, torch.device("cpu"))
    # 7/2 and 2 * 7/3 are rounded to 4 and 5; a half goes to the even number.
    rows = ([0], [0, 4], [0, 2, 5])
    cols = ([0], [0, 4, 8], [0, 3, 6, 9])
    places = [(row, col) for row_s, col_s in zip(rows, cols, strict=True) for row in row_s for col in col_s]
    assert table.shape == (19, 4, 2)
    for (row, col), token in zip(places, table, strict=True):
        angles = [row, row / 10, col, col / 10]
        torch.testing.assert_close(token, torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles]))


def test_pairs_are_interleaved_and_turned_as_complex_numbers():
    table = rope_table_2d(Grid(3, 5).diagonal(), 1, 8, 10000.0, torch.device("cpu"))
    x = torch.randn(2, 16, 3, 8)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.view_as_complex(table)[:, None]
    torch.testing.assert_close(apply_rope(x, table), torch.view_as_real(turned).flatten(-2))
    assert not apply_rope(x, table)[:, 0].any()  # a prefix token
    assert apply_rope(x.bfloat16(), table).dtype == torch.bfloat16


def test_scores_depend_on_the_distance_alone():
    table = rope_table_2d(Grid(5, 3).raster(), 0, 8, 10000.0, torch.device("cpu"))
    q, k = torch.randn(2, 8)
    turned_q, turned_k = (apply_rope(x.expand(1, 15, 1, 8), table)[0, :, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for row, col in ((1, 0), (0, 1), (2, 1)):
        apart = [scores[3 * r + c, 3 * (r + row) + c + col] for r in range(5 - row) for c in range(3 - col)]
        torch.testing.assert_close(torch.stack(apart), apart[0].expand(len(apart)))


def one_by_one(x, table):
    """Each pair of numbers turned by its own two-by-two matrix, in float64."""
    turned = x.double().clone()
    for position in range(x.shape[1]):
        for pair in range(x.shape[-1] // 2):
            cos, sin = table[position, pair].double()
            matrix = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
            at = slice(2 * pair, 2 * pair + 2)
            turned[:, position, :, at] = x[:, position, :, at].double() @ matrix.T
    return turned


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("head_dim", (4, 16, 100))
@pytest.mark.parametrize("compiling", (False, True))
def test_pairs_turn_by_their_angles(monkeypatch, compiling, head_dim, dtype):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator = torch.Generator().manual_seed(0)
    # A view with gaps, as the queries of a product that makes keys and values too.
    x = torch.randn(2, 5, 3, 3 * head_dim, generator=generator).to(dtype)[..., :head_dim]
    angles = torch.randn(5, head_dim // 2, generator=generator)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    turned = apply_rope(x, table)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, one_by_one(x, table).to(dtype))


def test_angles_by_place():
    """Angle of pair k at place p: p / base ** (2k / E)."""
    base, head_dim = 100.0, 6
    table = rope_table_1d(torch.tensor([[0, 1, 13], [7, 0, 2]]), head_dim, base)
    for row, places in enumerate(((0, 1, 13), (7, 0, 2))):
        for index, place in enumerate(places):
            for pair in range(3):
                angle = place / base ** (2 * pair / head_dim)
                assert table[row, index, pair].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)


def test_places_of_texts_by_hand():
    """Prompts of 3 and of 1 token, padded on the left, before an image of 2x2 tokens."""
    valid, grid = torch.tensor([[True, True, True], [False, False, True]]), Grid(2, 2)
    raster = torch.tensor(grid.raster(line_ends=True).places)
    assert text_places(valid, raster, None).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 2, 3, 4, 5]]
    diagonal = torch.tensor(grid.diagonal().places)
    assert text_places(valid, diagonal, None).tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4]]
    both = text_places(valid, torch.tensor(Grid(1, 2).raster().places), torch.tensor([3, 3]))
    assert both.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 3, 4]]
    assert Grid(2, 3).diagonal().places == [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize("halves", (False, True))
def test_rows_with_tables_of_their_own_turn_apart(halves):
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 1, 5, 6]])
    tables = rope_table_1d(places, 8, 100.0)
    expected = torch.cat([apply_rope(x[row : row + 1], tables[row], halves) for row in range(2)])
    assert torch.equal(apply_rope(x, tables, halves), expected)
