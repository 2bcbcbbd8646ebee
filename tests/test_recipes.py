"""Every shipped recipe loads, and builds a branch on the meta device."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.recipe import AdaptRecipe, load_recipe, recipes_dir, shipped_recipes


def test_every_file_is_a_recipe():
    assert {path.stem for path in recipes_dir().rglob("*.toml")} == set(shipped_recipes())
    assert len(shipped_recipes()) >= 3


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_loads_and_builds(name):
    from flashar_cli.config import BranchConfig, default_gate_dim
    from flashar_cli.models.branch import VerticalBranch

    recipe = load_recipe(name, [], AdaptRecipe)
    assert sum(recipe.stage_steps.values()) == recipe.steps
    assert recipe.stage1.backbone_lr_factor == 0 and recipe.stage2.backbone_lr_factor > 0
    backbone = PRESETS["llamagen-b"].backbone
    gate_dim = default_gate_dim(recipe.branch.gate, backbone.dim, backbone.vocab_size)
    config = BranchConfig(layer=11, depth=recipe.branch.depth, gate=recipe.branch.gate, gate_dim=gate_dim)
    with torch.device("meta"):
        VerticalBranch(config, backbone)
    header = (recipes_dir() / f"{name}.toml").read_text().split("\n\n")[0]
    assert all(word in header for word in ("# weights", "# command", "# hardware", "# metric"))


def test_overrides_change_one_value_and_keep_the_rest():
    plain = load_recipe(None, [], AdaptRecipe)
    changed = load_recipe(None, ["stage1.lr=1e-3", "branch.gate=mean", "optim.batch_size=8"], AdaptRecipe)
    assert changed.stage1.lr == 1e-3 and changed.stage1.distill_weight == plain.stage1.distill_weight
    assert changed.branch.gate == "mean" and changed.optim.batch_size == 8


def test_a_recipe_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("steps = 7\n[stage2]\nlr = 1e-5\n")
    assert load_recipe(str(path), [], AdaptRecipe).steps == 7
    path.write_text("steps = 7\n[stage2]\nlrr = 1e-5\n")
    with pytest.raises(FlasharError, match="did you mean lr"):
        load_recipe(str(path), [], AdaptRecipe)
    path.write_text("steps = = 7")
    with pytest.raises(FlasharError, match="not valid TOML"):
        load_recipe(str(path), [], AdaptRecipe)
