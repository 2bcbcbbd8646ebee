"""Every shipped recipe loads, and builds a branch on the meta device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashar_cli.config.recipe import load_recipe, recipes_dir, shipped_recipes
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.inputs.text import one_line
from tests.input.values import DOCUMENTS, FLOATS, INTEGERS, TEXT


def test_every_file_is_a_recipe():
    assert {path.stem for path in recipes_dir().rglob("*.toml")} == set(shipped_recipes())
    assert len(shipped_recipes()) >= 3


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_loads_and_builds(name):
    from flashar_cli.config import BranchConfig, default_gate_dim
    from flashar_cli.models.branch import VerticalBranch

    recipe = load_recipe(name)
    assert sum(stage.steps for stage in recipe.stages) == recipe.steps
    assert recipe.stage1.backbone_lr_factor == 0 and recipe.stage2.backbone_lr_factor > 0
    backbone = PRESETS["llamagen-b"].facts.backbone
    gate_dim = default_gate_dim(recipe.branch.gate, backbone.dim, backbone.vocab_size)
    config = BranchConfig(layer=11, depth=recipe.branch.depth, gate=recipe.branch.gate, gate_dim=gate_dim)
    with torch.device("meta"):
        VerticalBranch(config, backbone)
    header = (recipes_dir() / f"{name}.toml").read_text().split("\n\n")[0]
    assert all(word in header for word in ("# weights", "# command", "# hardware", "# metric"))


def test_overrides_change_one_value_and_keep_the_rest():
    plain = load_recipe(None)
    changed = load_recipe(None, ["stage1.lr=1e-3", "branch.gate=mean", "optim.batch_size=8"])
    assert changed.stage1.lr == 1e-3 and changed.stage1.distill_weight == plain.stage1.distill_weight
    assert changed.branch.gate == "mean" and changed.optim.batch_size == 8


def test_a_recipe_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("steps = 7\n[stage2]\nlr = 1e-5\n")
    assert load_recipe(str(path)).steps == 7
    path.write_text("steps = 7\n[stage2]\nlrr = 1e-5\n")
    with pytest.raises(FlasharError, match="did you mean lr"):
        load_recipe(str(path))
    path.write_text("steps = = 7")
    with pytest.raises(FlasharError, match="not valid TOML"):
        load_recipe(str(path))


def test_a_recipe_extends_another(tmp_path):
    own, other = tmp_path / "own.toml", tmp_path / "other.toml"
    own.write_text(f'extends = "{other}"\nsteps = 7\n[stage2]\nlr = 1e-5\n')
    other.write_text("steps = 9\n[stage2]\nlr = 3e-5\nwarmup_steps = 4\n")
    recipe = load_recipe(str(own), ["stage2.warmup_steps=5"])
    assert (recipe.steps, recipe.stage2.lr, recipe.stage2.warmup_steps) == (7, 1e-5, 5)
    assert recipe.stage2.backbone_lr_factor == 0.2
    other.write_text(f'extends = "{own}"\n')
    with pytest.raises(FlasharError, match="extends itself"):
        load_recipe(str(own))


@pytest.mark.parametrize("size", ("b", "l", "xl", "xxl"))
def test_every_size_has_both_recipes(size):
    short, paper = (load_recipe(f"llamagen-{size}-{kind}") for kind in ("80k", "paper"))
    assert short.data.subset == 80_000 and short.steps == 10_000
    epochs = paper.steps * paper.optim.batch_size / paper.data.subset
    assert epochs == pytest.approx(25, abs=1e-3) and paper.optim.batch_size == 512 and paper.stage2.lr == 2e-5


@pytest.mark.parametrize(
    "text", ('a "quoted" name', "back\\slash\\new", "single'quote", "1", "null", "a=b", "tab\there")
)
def test_values_are_taken_literally(text):
    recipe = load_recipe(None, ["data.source=other"], {"data.source": text})
    assert recipe.data.source == text


KEYS = (
    *("steps", "stage1.lr", "stage2.distill_temperature", "stage1.warmup_steps", "stage2.cosine_steps"),
    *("stage1_fraction", "branch.layer", "branch.depth", "branch.gate", "data.source", "data.subset", "data.max_bad"),
    *("data.crop_ratio", "optim.batch_size", "optim.beta1", "optim.ema_decay", "engine.micro_batch_size", "save_every"),
    *("generation.cfg_scale", "engine.compile", "stage1", "optim", "stage1.lr.deeper", "nothing"),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(KEYS), TEXT | DOCUMENTS.map(repr) | INTEGERS.map(hex) | FLOATS.map(str))
def test_every_key_under_hostile_values(key, text):
    try:
        recipe = load_recipe(None, [f"{key}={text}"])
    except FlasharError as error:
        assert len(one_line(str(error))) <= 500
    else:
        recipe.model_dump_json().encode("utf-8")


@pytest.mark.parametrize(
    ("item", "words"),
    (
        ("steps=" + "9" * 5000, "--set steps='999"),
        ("steps=0x" + "f" * 5000, "a number of about 6021 digits"),
        ("steps=" + "[" * 100_000, "expected one TOML value"),
        ("stage1.lr=1e-320", "stage1.lr: expected a number from 1e-12 to 1000"),
        ('data.source="a\\u0000b"', "holds the character \\x00"),
        ("branch.layer=3\nbranch.depth=2", "valid integer"),
    ),
)
def test_values_that_no_run_has(item, words):
    with pytest.raises(FlasharError) as error:
        load_recipe(None, [item])
    assert words in one_line(str(error.value))
