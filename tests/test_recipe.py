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


def test_a_recipe_extends_another(tmp_path):
    own, other = tmp_path / "own.toml", tmp_path / "other.toml"
    own.write_text(f'extends = "{other}"\nsteps = 7\n[stage2]\nlr = 1e-5\n')
    other.write_text("steps = 9\n[stage2]\nlr = 3e-5\nwarmup_steps = 4\n")
    recipe = load_recipe(str(own), ["stage2.warmup_steps=5"], AdaptRecipe)
    assert (recipe.steps, recipe.stage2.lr, recipe.stage2.warmup_steps) == (7, 1e-5, 5)
    assert recipe.stage2.backbone_lr_factor == 0.2
    other.write_text(f'extends = "{own}"\n')
    with pytest.raises(FlasharError, match="extends itself"):
        load_recipe(str(own), [], AdaptRecipe)


@pytest.mark.parametrize("size", ("b", "l", "xl", "xxl"))
def test_every_size_has_both_recipes(size):
    short, paper = (load_recipe(f"llamagen-{size}-{kind}", [], AdaptRecipe) for kind in ("80k", "paper"))
    assert short.data.subset == 80_000 and short.steps == 10_000
    epochs = paper.steps * paper.optim.batch_size / paper.data.subset
    assert epochs == pytest.approx(25, abs=1e-3) and paper.optim.batch_size == 512 and paper.stage2.lr == 2e-5


@pytest.mark.parametrize(
    "text", ('a "quoted" name', "back\\slash\\new", "single'quote", "1", "null", "a=b", "tab\there")
)
def test_values_are_taken_literally(text):
    recipe = load_recipe(None, ["data.source=other"], AdaptRecipe, {"data.source": text})
    assert recipe.data.source == text
