"""Comparing made-up reports."""

import pytest

from flashar_cli.benchmarking.compare import compare, differences, version_changes
from flashar_cli.benchmarking.report import BenchReport
from flashar_cli.errors import FlasharError
from tests.benchmarking.reports import report


def model(**settings: object) -> BenchReport:
    return BenchReport.model_validate(report(**settings))  # type: ignore[arg-type]


def verdicts(old: BenchReport, new: BenchReport, tolerance: float) -> dict[str, str]:
    return {change.what: change.verdict for change in compare(old, new, tolerance)}


def test_same_report_moves_nothing() -> None:
    assert set(verdicts(model(), model(), 0.0).values()) == {"same"}


def test_slower_flashar_is_worse_in_time_and_speedup() -> None:
    found = verdicts(model(), model(flashar_s=1.2), 0.05)
    assert found["speedup"] == found["flashar tokens"] == "worse"
    assert found["raster tokens"] == "same"


def test_tolerance_is_relative() -> None:
    assert verdicts(model(), model(flashar_s=1.2), 0.25)["flashar tokens"] == "same"


def test_faster_is_better() -> None:
    found = verdicts(model(), model(flashar_s=0.5), 0.05)
    assert found["speedup"] == found["flashar tokens"] == "better"


def test_faster_raster_alone_lowers_the_speedup() -> None:
    found = verdicts(model(), model(raster_s=2.0), 0.05)
    assert (found["speedup"], found["raster tokens"]) == ("worse", "better")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("hardware", "cpu", "another"), ("settings", "cfg_scale", 1.0), ("model", "grid", "8x8")],
)
def test_different_runs_are_refused(section: str, key: str, value: object) -> None:
    other = report()
    other[section][key] = value
    new = BenchReport.model_validate(other)
    with pytest.raises(FlasharError, match="--allow-different"):
        compare(model(), new, 0.05)
    assert len(differences(model(), new)) == 1
    assert compare(model(), new, 0.05, allow_different=True)


def test_versions_and_weights_may_differ() -> None:
    other = report()
    other["software"]["torch"] = "2.14.0"
    other["model"]["weights"] = "sha256:00"
    new = BenchReport.model_validate(other)
    assert len(version_changes(model(), new)) == 2
    assert compare(model(), new, 0.05)


def test_only_common_batch_sizes_are_compared() -> None:
    changes = compare(model(batch_sizes=(1, 8)), model(batch_sizes=(8,)), 0.05, allow_different=True)
    assert {change.batch_size for change in changes} == {8}
    with pytest.raises(FlasharError, match="no batch size in common"):
        compare(model(batch_sizes=(1,)), model(batch_sizes=(8,)), 0.05, allow_different=True)
