"""The bake-off with a few steps and samples: what its rows hold, and what training costs."""

from __future__ import annotations

import json

import pytest

from benchmarks import cells, run_bakeoff
from benchmarks.run_bakeoff import Way


@pytest.mark.slow
def test_rows_of_quality_and_speed(tmp_path, monkeypatch):
    ways = (Way("raster", "base", ("raster",), "red"), Way("block diffusion", "blocks", ("block-diffusion:1",), "blue"))
    monkeypatch.setattr(run_bakeoff, "WAYS", ways)
    (tmp_path / "out" / "benches").mkdir(parents=True)
    (tmp_path / "out" / "benches" / "base-1.unfinished").write_text('{"batches": []}')  # of a call that was killed
    monkeypatch.setattr(run_bakeoff, "CHANGES", {"blocks": run_bakeoff.CHANGES["blocks"]})
    recipe = tmp_path / "small.toml"
    recipe.write_text('extends = "llamagen-tiny-demo"\n[data]\nsource = "shapes:200"\n')
    asked = ("--recipe", str(recipe), "--steps", "2", "--num-images", "100", "--guidance", "1.0", "--repeats", "2")
    run_bakeoff.main((str(tmp_path / "out"), *asked))
    document = json.loads((tmp_path / "out" / "bakeoff.json").read_text())
    raster, blocks = document["rows"]
    assert (raster["forwards"]["1"], blocks["forwards"]["8"]) == (256, 17) and raster["speedup"] == {"1": 1.0, "8": 1.0}
    assert blocks["speedup"]["1"] > 1 and raster["right"]["value"] > 0.7 > blocks["right"]["value"]
    assert document["training"]["base"] is None and document["training"]["blocks"]["images"] == 2 * 32
    text = (tmp_path / "out" / "bakeoff.md").read_text()
    assert text.count("\n") == 4 and "`block-diffusion:1`" in text and "none" in text
    assert (tmp_path / "out" / "bakeoff.svg").read_text().startswith("<?xml")
    monkeypatch.setattr(cells, "FLASHAR", ("false",))  # no cell is made again
    run_bakeoff.main((str(tmp_path / "out"), *asked))
    settings = tmp_path / "out" / "settings.json"
    settings.write_text(settings.read_text().replace('"steps": 2', '"steps": 3'))
    with pytest.raises(SystemExit, match="by another recipe"):
        run_bakeoff.main((str(tmp_path / "out"), *asked, "--steps", "3"))


def test_too_few_samples_for_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_bakeoff.main((str(tmp_path / "out"), "--num-images", "99"))
    assert "got 99, expected at least 100" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_every_way_is_in_table_and_plot():
    """Two guidances, as the bake-off has them; every way has a colour of its own."""
    figure, speed = {"value": 0.9, "error": 0.01}, {"1": 2.0, "8": 3.0}
    rows = [
        {"way": way.name, "decoder": decoder, "guidance": guidance, "trained": way.trained, "right": figure}
        | {"distance": figure, "forwards": speed, "images_per_s": speed, "speedup": speed}
        for guidance in (1.1, 1.0)
        for way in run_bakeoff.WAYS
        for decoder in way.decoders
    ]
    costs = dict.fromkeys(("base",)) | {
        name: {"steps": 1, "images": 32, "flops": 1e12} for name in ("shipped", *run_bakeoff.CHANGES)
    }
    text = run_bakeoff.table(rows, costs)
    assert text.count("\n") == 2 + len(rows) / 2 and "FlashAR as shipped" in text and "`jacobi:16`" in text
    axes = run_bakeoff.draw(rows).axes[0]
    assert [entry.get_text() for entry in axes.get_legend().get_texts()] == [way.name for way in run_bakeoff.WAYS]
    assert len({way.colour for way in run_bakeoff.WAYS}) == len(run_bakeoff.WAYS)


def test_the_cost_of_a_training_is_that_of_its_recipe():
    """llamagen-tiny-flashar as its config says; of a base there is none."""
    cost = run_bakeoff._cost("llamagen-tiny-flashar")
    assert cost is not None and cost["images"] == 32 * cost["steps"]
    # A step of stage 2 takes about six operations for each weight and token: 1.5 M weights, 256 tokens.
    assert cost["flops"] / cost["images"] == pytest.approx(6 * 1.6e6 * 256, rel=0.4)
    assert run_bakeoff._cost("llamagen-tiny") is None
