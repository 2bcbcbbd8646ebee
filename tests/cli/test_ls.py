"""`flashar ls` at a terminal of 80 columns."""

from __future__ import annotations

from flashar_cli import hub
from flashar_cli.config import BranchConfig
from flashar_cli.families import PRESETS
from flashar_cli.listing import list_models


def test_the_table_fits_80_columns(run_cli, monkeypatch, tmp_path):
    """With the longest that its columns can hold."""
    preset = PRESETS["nar-xxl"]
    longest = preset.config().model_copy(update={"branch": BranchConfig(layer=48, gate="hidden", gate_dim=64)})
    monkeypatch.setattr(type(preset), "config", lambda self: longest)
    shown = run_cli("ls").out.splitlines()
    assert len(shown) == 2 + len(hub.EMBEDDED) + len(PRESETS) and max(map(len, shown)) <= 80
    assert any("48/48, hidden" in line for line in shown)


def test_a_broken_checkpoint_is_listed_and_explained(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path))
    (tmp_path / "llamagen-b").mkdir()
    (tmp_path / "llamagen-b" / "config.json").write_text("{")
    result = run_cli("ls")
    assert result.code == 0 and "broken" in result.out and "is not valid JSON" in result.err
    record = next(each for each in list_models() if each["name"] == "llamagen-b")
    assert "is not valid JSON" in record["problem"] and record["place"] == "cache"
