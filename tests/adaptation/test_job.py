"""The branch that an adaptation adds, from the recipe, the probe and the backbone."""

from __future__ import annotations

import pytest

from flashar_cli.adaptation.job import adapted_config, choose_branch
from flashar_cli.config import Sampling
from flashar_cli.config.recipe import AdaptRecipe, BranchSettings
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS

XL = PRESETS["llamagen-xl"].config()  # 36 blocks of width 1280, 16384 tokens


@pytest.mark.parametrize(
    ("wanted", "recommended", "layer"),
    (
        (BranchSettings(), None, 35),
        (BranchSettings(depth=4), None, 32),
        (BranchSettings(depth=40), None, 0),
        (BranchSettings(), 21, 21),
        (BranchSettings(layer=36), 21, 36),
        (BranchSettings(layer=0), 21, 0),
        (BranchSettings(), 0, 0),
    ),
)
def test_layer_of_the_recipe_then_of_the_probe_then_the_last(wanted, recommended, layer):
    branch = choose_branch(wanted, recommended, XL)
    assert (branch.layer, branch.depth, branch.gate, branch.gate_dim) == (layer, wanted.depth, "hidden", 160)


@pytest.mark.parametrize(("gate", "gate_dim"), (("logits", 32), ("scalar", None), ("mean", None)))
def test_other_gates(gate, gate_dim):
    branch = choose_branch(BranchSettings(gate=gate), None, XL)
    assert (branch.gate, branch.gate_dim) == (gate, gate_dim)


def test_a_layer_beyond_the_last_is_refused():
    with pytest.raises(FlasharError, match="--branch-layer is 37; expected 0..36"):
        choose_branch(BranchSettings(layer=37), None, XL)


def test_sampling_defaults_are_the_base_s_but_for_those_of_the_recipe():
    base = XL.model_copy(update={"generation": Sampling(cfg_scale=1.75, top_k=900)})
    own = AdaptRecipe.model_validate({"generation": {"cfg_scale": 1.0, "temperature": 0.9}})
    assert adapted_config(base, AdaptRecipe()).generation == base.generation
    assert adapted_config(base, own).generation == Sampling(cfg_scale=1.0, temperature=0.9, top_k=900)
