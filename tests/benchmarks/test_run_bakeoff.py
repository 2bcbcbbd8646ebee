"""The bake-off with a few steps and samples: what its rows hold, and what training costs."""

from __future__ import annotations

import json

import pytest

from benchmarks import cells, run_bakeoff
from benchmarks.run_bakeoff import Way


@pytest.mark.slow
def test_rows_of_quality_and_speed(tmp_path, monkeypatch):
    ways = (Way("raster", "base", ("raster",)), Way("block diffusion", "blocks", ("block-diffusion:1",)))
    monkeypatch.setattr(run_bakeoff, "WAYS", ways)
    monkeypatch.setattr(run_bakeoff, "CHANGES", {"blocks": run_bakeoff.CHANGES["blocks"]})
    recipe = tmp_path / "small.toml"
    recipe.write_text('extends = "llamagen-tiny-demo"\n[data]\nsource = "shapes:200"\n')
    asked = ("--recipe", str(recipe), "--steps", "2", "--num-images", "20", "--guidance", "1.0")
    run_bakeoff.main((str(tmp_path / "out"), *asked))
    document = json.loads((tmp_path / "out" / "bakeoff.json").read_text())
    raster, blocks = document["rows"]
    assert (raster["forwards"], blocks["forwards"]) == (256, 17) and raster["speedup"] == {"1": 1.0, "8": 1.0}
    assert blocks["speedup"]["1"] > 1 and raster["right"]["value"] > 0.7 > blocks["right"]["value"]
    assert document["training"]["base"] is None and document["training"]["blocks"]["images"] == 2 * 32
    text = (tmp_path / "out" / "bakeoff.md").read_text()
    assert text.count("\n") == 4 and "`block-diffusion:1`" in text and "none" in text
    assert (tmp_path / "out" / "bakeoff.svg").read_text().startswith("<?xml")
    monkeypatch.setattr(cells, "run", lambda *given: pytest.fail("all cells are there"))
    run_bakeoff.main((str(tmp_path / "out"), *asked))


def test_the_cost_of_a_training_is_that_of_its_recipe():
    """llamagen-tiny-flashar as its config says; of a base there is none."""
    cost = run_bakeoff._cost("llamagen-tiny-flashar")
    assert cost is not None and cost["images"] == 32 * cost["steps"]
    # A step of stage 2 takes about six operations for each weight and token: 1.5 M weights, 256 tokens.
    assert cost["flops"] / cost["images"] == pytest.approx(6 * 1.6e6 * 256, rel=0.4)
    assert run_bakeoff._cost("llamagen-tiny") is None
