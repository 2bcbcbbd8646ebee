"""What a next-scale model is, and how many weights it has."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashar_cli.config import NextScaleConfig, Pruning, SchedulesConfig, parse_config
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs.text import one_line
from flashar_cli.models.next_scale.model import NextScaleModel
from tests.config.test_model import places
from tests.input.values import DOCUMENTS, FLOATS, INTEGERS, TEXT
from tests.tiny_models import infinity_like_config, var_like_config

CONFIGS = {
    "var": var_like_config(),
    "var, shared modulation": var_like_config(shared=True),
    "var, scaled products": var_like_config(cosine=False),
    "infinity": infinity_like_config(),
    "infinity, patches": infinity_like_config(patch=2),
}
VALID = {name: json.loads(config.model_dump_json()) for name, config in CONFIGS.items()}
PLACES = [(name, place) for name, document in VALID.items() for place in places(document)]


def count(config: NextScaleConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in NextScaleModel(config).parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_counted(name):
    assert CONFIGS[name].num_weights == count(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_are_those_of_levels_and_positions(name):
    with torch.device("meta"):
        model = NextScaleModel(CONFIGS[name])
    learned = 0 if model.positions is None else model.positions.numel()
    assert CONFIGS[name].table_weights == model.levels.weight.numel() + learned


def changed(name: str, place: tuple, value: object) -> dict[str, Any]:
    document = copy.deepcopy(VALID[name])
    table = document
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return document


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES), INTEGERS | FLOATS | TEXT | DOCUMENTS)
def test_every_field_under_hostile_values(where, value):
    """Either it is a model that can be built, or an error of one line says what is wrong."""
    try:
        config = parse_config(changed(*where, value), "config.json")
    except FlasharError as error:
        assert len(one_line(str(error))) <= 500
        return
    if isinstance(config, NextScaleConfig) and config.transformer.num_layers < 100:
        assert config.num_weights == count(config)


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    (
        ("var", ("transformer", "num_heads"), 5, "dim 32 is not divisible by num_heads 5"),
        ("infinity", ("transformer", "num_heads"), 16, "head_dim 2 is not a multiple of 4"),
        ("infinity", ("prefix", "pool_heads"), 3, "dim 32 is not divisible by pool_heads 3"),
        ("var", ("transformer", "num_levels"), 4, "4 num_levels for 5 scales"),
        ("infinity", ("transformer", "positions"), "learned", "learned positions and 6 schedules"),
        ("var", ("patch",), 2, "only bits are laid side by side"),
        ("var", ("grid",), {"height": 5, "width": 3}, "grid 5x3 is the end of no schedule"),
        ("var", ("schedules", "lengths"), [4], "a schedule has 5 scales; expected 4"),
        ("var", ("schedules", "longest"), [[[1, 2], [2, 2], [2, 3], [3, 4], [3, 5]]], "expected one, then more"),
        ("var", ("schedules", "longest"), [[[1, 1], [2, 2], [1, 4], [3, 4], [3, 5]]], "expected one, then more"),
        ("infinity", ("schedules", "lengths"), [1, 5], "two schedules end with the same map"),
    ),
)
def test_what_fits_no_model_is_refused(name, place, value, words):
    with pytest.raises(FlasharError, match=words):
        parse_config(changed(name, place, value), "config.json")


def test_what_a_token_is():
    var, patches = CONFIGS["var"], CONFIGS["infinity, patches"]
    assert (var.token_shape, var.num_choices, var.num_options, var.head_outputs, var.token_dim) == ((), 1, 32, 32, 4)
    assert (patches.token_shape, patches.num_choices, patches.num_options) == ((12,), 12, 2)
    assert (patches.head_outputs, patches.token_dim, patches.pixels_per_token) == (24, 12, 4)


@pytest.mark.parametrize(
    ("grid", "sides"),
    (
        (Grid(6, 6), (1, 2, 3, 4, 6)),
        (Grid(5, 5), (1, 2, 3, 4, 5)),  # a published one, cut
        (Grid(8, 8), (1, 2, 3, 4, 6, 8)),
        (Grid(11, 11), (1, 2, 3, 4, 6, 7, 9, 11)),  # 6 * (11 / 6) ** (1 / 3) = 7.3
    ),
)
def test_a_schedule_for_any_square(grid, sides):
    config = infinity_like_config().with_grids([grid])
    assert config.scales(config.order_grid) == tuple(Grid(side, side) for side in sides)
    assert config.transformer.num_levels >= len(sides)
    parse_config(json.loads(config.model_dump_json()), "config.json")


def test_a_schedule_of_the_nearest_shape():
    scales = infinity_like_config().with_grids([Grid(4, 10)]).scales(Grid(4, 10))
    assert scales == (Grid(1, 1), Grid(1, 3), Grid(2, 4), Grid(2, 6), Grid(3, 8), Grid(4, 10))


@pytest.mark.parametrize(
    ("grid", "expected"),
    (
        # From 7x4 on, 16 / 7 = 2.3 times as high in three steps: 7 * (16 / 7) ** (1 / 3) = 9.2.
        (Grid(16, 5), ((1, 1), (2, 1), (4, 2), (5, 3), (7, 4), (9, 4), (12, 5), (16, 5))),
        # Larger in one direction alone: from 5x3 on, four times as high in five steps, and no wider than 4.
        (Grid(20, 4), ((1, 1), (2, 1), (4, 2), (5, 3), (7, 3), (9, 3), (11, 4), (15, 4), (20, 4))),
        (Grid(1, 5), ((1, 1), (1, 5))),
        (Grid(1, 1), ((1, 1),)),
    ),
)
def test_a_schedule_for_any_shape(grid, expected):
    config = infinity_like_config().with_grids([grid])
    assert config.scales(grid) == tuple(Grid(*scale) for scale in expected)


def test_maps_that_rounding_repeats_are_left_out():
    small = SchedulesConfig(longest=(((1, 1), (2, 2)),), lengths=(2,))
    assert small.to(Grid(3, 3)) == ((1, 1), (2, 2), (3, 3))  # 2 * 1.5 ** (1 / 2) is 2 again


def test_settings_stay_as_far_from_the_end_of_a_longer_schedule():
    config = infinity_like_config().with_fastvar(Pruning(ratios=((3, 0.5),), num_scales=4))
    assert config.with_grids([Grid(8, 8)]).fastvar == Pruning(ratios=((4, 0.5),), num_scales=5)
    assert config.with_grids([Grid(5, 3)]).fastvar == config.fastvar
    assert config.with_grids([Grid(3, 3)]).fastvar == Pruning(ratios=((1, 0.5),), num_scales=2), "and of a shorter one"
    assert config.with_grids([Grid(5, 3)]).with_grids([Grid(8, 8)]) == config.with_grids([Grid(8, 8)])
    with pytest.raises(FlasharError, match="no schedule for 8x8; make images of that grid alone"):
        config.with_grids([Grid(7, 4), Grid(8, 8)])
    both = config.with_grids([Grid(5, 3), Grid(7, 4)])
    assert both.order_grid == Grid(5, 3) and both.schedules == config.schedules


def test_fewer_layers():
    config = infinity_like_config().with_fastvar(Pruning(ratios=((3, 0.5),), first_layer=1, last_layer=2))
    fewer = config.with_layers(1)
    assert fewer.num_layers == 1 and fewer.fastvar.layers(1) == range(1)
    assert count(fewer) == fewer.num_weights
    with pytest.raises(FlasharError, match="layer 27 is to drop tokens; this model has layers 0 to 2"):
        config.with_fastvar(Pruning(last_layer=27))
