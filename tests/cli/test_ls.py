"""`flashar ls` at a terminal of 80 columns."""

from __future__ import annotations

import json

import torch

from flashar_cli.checkpoints import hub
from flashar_cli.config import BranchConfig, read_config
from flashar_cli.families import PRESETS
from flashar_cli.models import build_model
from flashar_cli.reporting.listing import list_models


def test_the_table_fits_80_columns(run_cli, monkeypatch, tmp_path):
    """With the longest that its columns can hold."""
    preset = PRESETS["nar-xxl"]
    longest = preset.config().model_copy(update={"branch": BranchConfig(layer=48, gate="hidden", gate_dim=64)})
    monkeypatch.setattr(type(preset), "config", lambda self: longest)
    shown = run_cli("ls").out.splitlines()
    assert len(shown) == 2 + len(hub.EMBEDDED) + len(PRESETS) and max(map(len, shown)) <= 80
    assert any("branch 48/48" in line for line in shown)


def test_a_broken_checkpoint_is_listed_and_explained(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path))
    (tmp_path / "llamagen-b").mkdir()
    (tmp_path / "llamagen-b" / "config.json").write_text("{")
    result = run_cli("ls")
    assert result.code == 0 and "broken" in result.out and "is not valid JSON" in result.err
    record = next(each for each in list_models() if each["name"] == "llamagen-b")
    assert "is not valid JSON" in record["problem"] and record["place"] == "cache"


def test_every_model_is_listed_with_the_parameters_of_the_built_one(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path))
    models = json.loads(run_cli("ls", "--json").out)["models"]
    embedded = {path.parent.name for path in hub.ASSETS.glob("*/config.json")}
    assert {"llamagen-tiny", "llamagen-tiny-flashar"} <= embedded and {"llamagen-b", "nar-xxl"} <= PRESETS.keys()
    assert sorted(model["name"] for model in models) == sorted({*embedded, *PRESETS})
    for model in models:
        name = model["name"]
        config = read_config(hub.ASSETS / name) if name in embedded else PRESETS[name].config()
        with torch.device("meta"):
            built = build_model(config)
        assert model["parameters"] == sum(parameter.numel() for parameter in built.parameters()), name
        assert model["place"] == ("embedded" if name in embedded else "Hub")
        assert model["structure"] == config.structure
