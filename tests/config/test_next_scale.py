"""What a next-scale model is, and how many weights it has."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashar_cli.config import NextScaleConfig, parse_config
from flashar_cli.errors import FlasharError
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
