"""The document, its published schema, and reports of the layout before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import BenchReport, headline_of, read_report, report_schema
from flashar_cli.benchmarking.reports.pages import as_html, as_markdown
from tests.benchmarking.reports.made_up import report
from tests.benchmarking.test_run import RATES, arm_of, plan, subject

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SCHEMA = BENCHMARKS / "bench.schema.json"
RECORDED = sorted(path for path in (BENCHMARKS / "results").glob("*.json") if '"report_version"' in path.read_text())


@pytest.fixture(scope="module")
def measured() -> BenchReport:
    return run.bench(subject(), plan((1, 2), repeats=1), RATES)


def test_published_schema_is_that_of_the_classes() -> None:
    assert json.loads(SCHEMA.read_text()) == report_schema(), "run: python benchmarks/write_schema.py"


def test_a_real_report_follows_the_schema(measured: BenchReport) -> None:
    document = json.loads(measured.model_dump_json())
    assert BenchReport.model_validate(document) == measured
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert list(validator.iter_errors(document)) == []
    del document["batches"][0]["arms"][0]["floor_s"]
    document["settings"]["surprise"] = 1
    found = [error.message for error in validator.iter_errors(document)]
    assert len(found) == 2 and "'floor_s' is a required property" in found and any("surprise" in line for line in found)


def test_an_old_report_is_read_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(report()))
    old = read_report(tmp_path / "old.json")
    assert old.report_version == 2
    assert old.settings.arms == ("raster-eager", "flashar-eager")
    batch = old.batches[0]
    assert (batch.speedup, batch.grid) == (4.0, "4x4")
    assert headline_of(batch.arms) == ("flashar-eager", "raster-eager")
    raster, flashar = arm_of(batch, "raster"), arm_of(batch, "flashar")
    assert (raster.forwards_per_image, flashar.forwards_per_image, raster.launches) == (16, 7, None)
    assert (old.settings.cfg_interval, old.settings.sdpa_backends) == ((0.0, 1.0), None)
    assert (old.software.torchao, old.software.triton, old.hardware.cpu_features) == (None, None, None)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_reports_are_readable(path: Path) -> None:
    assert read_report(path).batches


def test_what_reproduces_a_run_is_recorded(measured: BenchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = run.bench(subject(), replace(plan(repeats=1, cfg_scale=1.0), seed=5), RATES)
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
    from flashar_cli.benchmarking.reports.pages import write_plot

    write_plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
