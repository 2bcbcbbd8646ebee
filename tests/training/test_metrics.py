"""Records on disk, complete and cut off."""

from __future__ import annotations

import json

from flashar_cli.training.metrics import MetricsFile


def test_metrics_are_json_lines(tmp_path):
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics("step", {"stage": "one", "step": 0, "lr": 0.1, "images_per_s": 2.0, "total": 1.0})
    metrics("validation", {"stage": "one", "step": 1, "raster": 2.0})
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert kinds == ["step", "validation"]
    metrics("step", {"stage": "one", "step": 1, "lr": 0.1, "images_per_s": 2.0, "total": 0.5})
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"kind": "st')
    resumed = MetricsFile(tmp_path / "m.jsonl", resume_at=1)
    assert resumed.validations == [{"stage": "one", "step": 1, "raster": 2.0}]
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1]
    MetricsFile(tmp_path / "m.jsonl")
    assert (tmp_path / "m.jsonl").read_text() == ""
