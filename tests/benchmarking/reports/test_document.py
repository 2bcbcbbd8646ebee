"""The document, its published schema, and reports of the layout before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import BenchReport, read_report, report_schema
from flashar_cli.benchmarking.reports.pages import as_html, as_markdown
from flashar_cli.nn.sampling import SamplingParams
from tests.benchmarking.reports.made_up import report
from tests.benchmarking.test_run import RATES, subject

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SCHEMA = BENCHMARKS / "bench.schema.json"
RECORDED = sorted(path for path in (BENCHMARKS / "results").glob("*.json") if '"report_version"' in path.read_text())


@pytest.fixture(scope="module")
def measured() -> BenchReport:
    plan = run.Plan((1, 2), 1, 1, SamplingParams(cfg_scale=1.5), 0)
    return run.bench(subject(), plan, RATES)


def test_published_schema_is_that_of_the_classes() -> None:
    assert json.loads(SCHEMA.read_text()) == report_schema(), "run: python benchmarks/write_schema.py"


def test_a_real_report_follows_the_schema(measured: BenchReport) -> None:
    document = json.loads(measured.model_dump_json())
    assert BenchReport.model_validate(document) == measured
    assert follows(document, json.loads(SCHEMA.read_text())) == []
    del document["batches"][0]["arms"][0]["floor_s"]
    document["settings"]["surprise"] = 1
    assert len(follows(document, json.loads(SCHEMA.read_text()))) == 2


def test_jsonschema_agrees(measured: BenchReport) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(measured.model_dump_json()), json.loads(SCHEMA.read_text()))


def follows(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, place: str = "") -> list[str]:
    """What of a value breaks the schema, for the few words that ours uses."""
    root = schema if root is None else root
    if "$ref" in schema:
        return follows(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, place)
    if "anyOf" in schema:
        tries = [follows(value, option, root, place) for option in schema["anyOf"]]
        return min(tries, key=len)
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{place} is no {schema['type']}"]
    if value != schema.get("const", value) or value not in schema.get("enum", [value]):
        return [f"{place} is {value}"]
    found = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{place}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, part in value.items():
            if key in properties:
                found += follows(part, properties[key], root, f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}.{key} is unknown")
            elif isinstance(schema.get("additionalProperties"), dict):
                found += follows(part, schema["additionalProperties"], root, f"{place}.{key}")
    if isinstance(value, list):
        for index, part in enumerate(value):
            found += follows(part, schema.get("items", {}), root, f"{place}[{index}]")
    return found


def test_an_old_report_is_read_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(report()))
    old = read_report(tmp_path / "old.json")
    assert old.report_version == 2
    assert old.settings.arms == ("raster-eager", "flashar-eager")
    batch = old.batches[0]
    assert (batch.speedup, batch.grid, batch.best_level) == (4.0, "4x4", "eager")
    assert (batch.raster.forwards_per_image, batch.flashar.forwards_per_image) == (16, 7)
    assert batch.raster.launches is None
    assert (old.settings.cfg_interval, old.settings.sdpa_backends) == ((0.0, 1.0), None)
    assert (old.software.torchao, old.software.triton, old.hardware.cpu_features) == (None, None, None)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_reports_are_readable(path: Path) -> None:
    assert read_report(path).batches


def test_what_reproduces_a_run_is_recorded(measured: BenchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    plan = run.Plan((1,), 1, 1, SamplingParams(cfg_scale=1.0), 5)
    found = run.bench(subject(), plan, RATES)
    assert found.variables is not None and found.variables["OMP_NUM_THREADS"] == "3"
    assert found.command is not None and found.command[0] == "flashar"
    assert found.settings.seed == 5
    assert found.hardware.cpu_capability and found.hardware.memory_bytes


def test_pages_hold_every_arm_and_no_network(measured: BenchReport) -> None:
    text, page = as_markdown(measured), as_html(measured)
    for arm in measured.settings.arms:
        assert arm in text and arm in page
    assert "Published" not in text, "a made-up model has no published numbers"
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_every_ratio_stands_beside_both_times_floor() -> None:
    header, rows = tables.speedups(with_upstream())
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["over"] for row in found] == ["upstream (eager, uncompiled)"]
    assert (found[0]["tokens"], found[0]["floors"]) == ("4.00", "2.29")
    assert (found[0]["arm x floor"], found[0]["over x floor"]) == ("2.9", "5.0")


def test_pages_say_how_upstream_ran_and_how_to_read_floors() -> None:
    ours, text = BenchReport.model_validate(report()), as_markdown(with_upstream())
    assert tables.SPEEDUP_REMARK in text and tables.SPEEDUP_REMARK in as_html(ours)
    assert tables.UPSTREAM_REMARK in text and tables.UPSTREAM_REMARK not in as_html(ours)
    assert any("eager, uncompiled" in line for line in tables.remarks(with_upstream()))


def with_upstream() -> BenchReport:
    """FlashAR over a published sampler that decodes in raster order."""
    document = BenchReport.model_validate(report()).model_dump(mode="json")
    batch = document["batches"][0]
    batch["arms"][0].update(name="upstream", decoder="upstream", level=None)
    batch["speedups"][0]["over"] = "upstream"
    document["settings"]["arms"][0] = "upstream"
    document["upstream"] = {"commit": None, "files_sha256": {}, "num_tokens": 16, "num_equal_tokens": 16}
    return BenchReport.model_validate(document)


def test_published_rows_are_marked_as_copied(measured: BenchReport) -> None:
    named = measured.model_copy(update={"model": measured.model.model_copy(update={"name": "llamagen-b"})})
    text = as_markdown(named)
    assert "(copied)" in text and "not measured here" in text
    assert "| FlashAR | B | 4.68 | 447.2 | not stated | FlashAR, arXiv 2605.09430 |" in text


def test_plot_is_a_png(measured: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flashar_cli.benchmarking.reports.plots import write_plot

    write_plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
