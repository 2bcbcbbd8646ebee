"""Recorded benches as pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.pages import main
from tests.benchmarks.gpu.test_targets import bench


def test_pages_of_recorded_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = bench("llamagen-b", "16x16", 1, {"raster-graph": 0.2, "flashar-graph": 0.1}, {"raster-graph": 4.0})
    results, pages = tmp_path / "results.json", tmp_path / "pages"
    results.write_text(json.dumps({"entries": {"b": entry, "t": {"kind": "tests", "status": "ok", "report": None}}}))
    assert main([str(results), str(pages)]) == 0
    assert [path.name for path in pages.iterdir()] == ["b.html"]
    assert "raster-graph" in (pages / "b.html").read_text()
    assert main([str(tmp_path / "absent.json"), str(pages)]) == 2
    assert "absent.json could not be read" in capsys.readouterr().err
