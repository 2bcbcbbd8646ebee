"""The ablation, with two rows and a few steps: what a cell measures, and that a second call makes nothing new."""

from __future__ import annotations

import json
import statistics

import pytest

from benchmarks import cells, run_ablation
from flashar_cli.config import read_config

pytestmark = pytest.mark.slow
SMALL = ("--steps", "4", "--batch-size", "4", "--num-train", "560", "--num-images", "20", "--seeds", "2")


def test_rows_and_seeds(tmp_path, monkeypatch, capsys):
    arguments = (str(tmp_path / "out"), *SMALL, "--rows", "default", "gate mean", "one stage")
    run_ablation.main(arguments)
    document = json.loads((tmp_path / "out" / "ablation.json").read_text())
    base, default, mean, one_stage = document["rows"]
    assert [row["row"] for row in document["rows"]] == ["base", "default", "gate mean", "one stage"]
    assert read_config(tmp_path / "out" / "gate-mean-1" / "adapted").branch.gate == "mean"
    recipe = read_config(tmp_path / "out" / "one-stage-0" / "adapted").provenance.recipe
    assert recipe["stage1_fraction"] == 0 and recipe["seed"] == 0 and recipe["optim"]["batch_size"] == 4
    for row in (base, default, mean, one_stage):
        first, second = (cell["loss"] for cell in row["cells"])
        assert row["over_seeds"]["loss"] == {"mean": (first + second) / 2, "deviation": abs(first - second) / 2**0.5}
    assert base["cells"][0]["loss"] == pytest.approx(0.268, abs=0.02)
    first, second = (other["loss"] - own["loss"] for own, other in zip(default["cells"], mean["cells"], strict=True))
    over = mean["over_seeds"]["loss_over_default"]
    assert over == pytest.approx({"mean": (first + second) / 2, "deviation": abs(first - second) / 2**0.5})
    assert "loss_over_default" not in default["over_seeds"] and "loss_over_default" not in base["over_seeds"]
    assert "vertical" in mean["cells"][0] and "vertical" not in base["cells"][0]
    lines = (tmp_path / "out" / "ablation.md").read_text().splitlines()
    assert len(lines) == 6 and f"{statistics.mean(c['loss'] for c in mean['cells']):.4f}" in lines[4]
    assert f"{over['mean']:+.4f}" in lines[4] and lines[3].count("+") == 0
    capsys.readouterr()
    monkeypatch.setattr(cells, "FLASHAR", ("false",))  # no cell is made again
    run_ablation.main(arguments)
    with pytest.raises(SystemExit, match="cells of other settings"):
        run_ablation.main((*arguments, "--num-images", "30"))


@pytest.mark.parametrize("arguments", (["inspect", "nowhere"], ["ls"]))
def test_a_command_that_does_not_make_it_is_named(tmp_path, arguments):
    with pytest.raises(SystemExit, match=f"flashar {' '.join(arguments)} failed or was stopped; .*log says why"):
        cells.make(tmp_path / "made", arguments, tmp_path, 1)
    assert (tmp_path / "log").read_text().count("\n") > 1
