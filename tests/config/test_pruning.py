"""Which tokens are not computed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flashar_cli.config import Pruning
from flashar_cli.errors import FlasharError


def test_kept_tokens_are_counted_as_published():
    pruning = Pruning(ratios=((9, 0.4), (10, 0.5)), cached_scale=8)
    assert [pruning.num_kept(scale, tokens) for scale, tokens in ((8, 576), (9, 1024), (10, 1600))] == [576, 615, 800]
    assert Pruning().num_kept(9, 1024) == 1024 and Pruning(ratios=((9, 0),)).num_kept(9, 1024) == 1024


def test_layers_end_with_the_model():
    assert Pruning(first_layer=3).layers(6) == range(3, 6)
    assert Pruning(first_layer=3, last_layer=27).layers(32) == range(3, 28)


@pytest.mark.parametrize(
    ("settings", "words"),
    (
        ({"ratios": ((3, 0.4), (3, 0.5))}, "expected each once"),
        ({"ratios": ((3, 0.4),), "cached_scale": 3}, "expected scales after cached_scale 3"),
        ({"ratios": ((3, 1.0),)}, "a number from"),
        ({"ratios": ((64, 0.5),)}, "a whole number from"),
        ({"first_layer": 4, "last_layer": 3}, "last_layer 3 is before first_layer 4"),
        ({"ratios": ((11, 0.4),), "num_scales": 11}, "scale 11 is pruned; scales 0 to 10 are decoded"),
        ({"num_scales": 0}, "a whole number from"),
        ({"order": "random"}, "'score' or 'raster'"),
    ),
)
def test_what_prunes_nothing_sensible_is_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        Pruning(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    (
        ({"first_layer": 6}, "layer 6 is to drop tokens; this model has layers 0 to 5"),
        ({"last_layer": 27}, "layer 27 is to drop tokens; this model has layers 0 to 5"),
        ({"ratios": ((13, 0.4),)}, "scale 13 is to be pruned; this model has scales 0 to 12"),
    ),
)
def test_what_a_model_or_an_image_does_not_have_is_refused(settings, words):
    with pytest.raises(FlasharError, match=words):
        Pruning(**settings).check(6, 13)
    Pruning(ratios=((10, 0.4),), last_layer=5, num_scales=11).check(6, 13)
