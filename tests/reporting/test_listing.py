"""What is told of a model from its config alone, without PyTorch."""

from __future__ import annotations

import pytest

from flashar_cli.reporting.listing import list_models


@pytest.mark.parametrize(("folder", "place"), ((None, "Hub"), ("home", "cache"), (".", "here")))
def test_where_a_preset_is(folder, place, monkeypatch, tmp_path, write_tiny_checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    if folder is not None:
        write_tiny_checkpoint(f"{folder}/nar-b")
    record = next(each for each in list_models() if each["name"] == "nar-b")
    assert record["place"] == place
