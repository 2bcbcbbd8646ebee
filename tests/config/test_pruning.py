"""Which tokens are not computed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flashar_cli.config import Pruning
from flashar_cli.config.pruning_presets import PRUNING_PRESETS, choose_pruning, pruned_layers
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS


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


def test_the_cached_scale_is_the_last_before_pruned_ones():
    assert Pruning(ratios=((9, 0.4), (7, 0.5))).source_scale == 6
    assert Pruning(ratios=((9, 0.4),), cached_scale=3).source_scale == 3 and Pruning().source_scale == 0
    with pytest.raises(ValidationError, match="scale 0 is pruned; expected scales after cached_scale"):
        Pruning(ratios=((0, 0.4),))


def test_smaller_images_need_not_have_all_scales():
    pruning = Pruning(ratios=((9, 0.4), (10, 0.5)), num_scales=11)
    assert [pruning.num_decoded(scales) for scales in (10, 11, 13)] == [10, 11, 11]
    assert Pruning().num_decoded(13) == 13


def test_settings_move_to_longer_and_shorter_schedules():
    released = PRUNING_PRESETS["infinity-released"]
    later = released.later(3)
    assert later == Pruning(ratios=((12, 0.4), (13, 0.5)), first_layer=3, last_layer=27, cached_scale=11, num_scales=14)
    assert later.later(-3) == released
    assert released.later(-10).ratios == ()
    assert Pruning(num_scales=3).later(-3) == Pruning(num_scales=1), "one scale is decoded at least"


def test_settings_move_to_fewer_layers():
    released = PRUNING_PRESETS["infinity-released"]
    found = [released.of_fewer_layers(layers, 32) for layers in (32, 12, 8, 1)]
    assert [each.layers(32) for each in found] == [range(3, 28), range(1, 10), range(7), range(1)]


def test_presets_fit_their_models():
    """The released setting, and ours in the same share of the layers: of 16 the last two are left out and the first
    two.
    """
    assert pruned_layers(32) == {"first_layer": 3, "last_layer": 27}
    for name, pruning in PRUNING_PRESETS.items():
        config = PRESETS[{"infinity-released": "infinity-2b"}.get(name, name)].config()
        assert config.fastvar == pruning
    assert PRUNING_PRESETS["var-d16"].layers(16) == range(2, 14)
    assert PRUNING_PRESETS["var-d16"].ratios == ((8, 0.4), (9, 0.5))
    assert pruned_layers(30) == {"first_layer": 3, "last_layer": 25}


def test_what_is_asked_for_changes_what_the_model_says(tmp_path):
    own = Pruning(ratios=((3, 0.4),), num_scales=5)
    assert choose_pruning(own, None, {"ratios": None}) is None
    assert choose_pruning(own, None, {"num_scales": 4}) == Pruning(ratios=((3, 0.4),), num_scales=4)
    assert choose_pruning(own, None, {"num_scales": 3}) == Pruning(num_scales=3)
    assert choose_pruning(None, None, {"num_scales": 4}) == Pruning(num_scales=4)
    assert choose_pruning(own, "infinity-released", {"first_layer": 5}).first_layer == 5
    (tmp_path / "mine.toml").write_text("ratios = [[4, 0.25]]\ncached_scale = 2\n")
    assert choose_pruning(own, str(tmp_path / "mine.toml"), {}) == Pruning(ratios=((4, 0.25),), cached_scale=2)
    for name, changes, words in (
        ("nothing", {}, "--fastvar is nothing; expected a file FILE.toml, or one of infinity-released, var-d16"),
        (str(tmp_path / "other.toml"), {}, "other.toml"),
        (None, {"num_scales": 3, "ratios": ((3, 0.5),)}, "scale 3 is pruned; scales 0 to 2 are decoded"),
        (None, {"cached_scale": 3}, "scale 3 is pruned; expected scales after cached_scale 3"),
        (None, {"ratios": ((3, 1.5),)}, "what is asked of FastVAR is not possible: ratios"),
    ):
        with pytest.raises(FlasharError, match=words):
            choose_pruning(own, name, changes)
