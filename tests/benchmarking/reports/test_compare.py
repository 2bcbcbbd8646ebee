"""Comparing made-up reports."""

import pytest

from flashar_cli.benchmarking.reports.compare import Gate, compare, differences, hardware_changes, version_changes
from flashar_cli.benchmarking.reports.document import BenchReport
from flashar_cli.errors import FlasharError
from tests.benchmarking.reports.made_up import report


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


def test_faster_raster_is_no_regression() -> None:
    """The speed-up falls, FlashAR is as near to its floor as before."""
    found = verdicts(model(), model(raster_s=2.0), 0.05)
    assert (found["speedup"], found["raster tokens"]) == ("lower", "better")


def test_a_fallen_speedup_is_judged_by_floors_and_not_by_times() -> None:
    """A machine twice as fast, on which FlashAR gained nothing."""
    document = model(raster_s=2.0).model_dump(mode="json")
    for arm in document["batches"][0]["arms"]:
        arm["floor_s"] /= 2
        arm["times_floor"] *= 2
    new = BenchReport.model_validate(document)
    found = {change.what: change for change in compare(model(), new, 0.05, gate="ratios")}
    assert found["flashar tokens"].verdict == "same"
    assert found["speedup"].verdict == "worse" and found["speedup"].fails


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


def test_quantised_against_plain_is_refused() -> None:
    """Also where the old report is from before the setting: its weights were plain ones."""
    document = model().model_dump(mode="json")
    document["settings"]["quantize"] = "int8"
    quantised = BenchReport.model_validate(document)
    del document["settings"]["quantize"]
    before = BenchReport.model_validate(document)
    for old, new, line in (
        (model(), quantised, "quantize: None / int8"),
        (quantised, before, "quantize: int8 / None"),
    ):
        with pytest.raises(FlasharError, match=line):
            compare(old, new, 0.05)
    assert differences(before, model()) == differences(quantised, quantised) == []


@pytest.mark.parametrize(
    ("key", "value", "line"), [("cfg_interval", (0.0, 0.5), "(0.0, 1.0) / (0.0, 0.5)"), ("min_p", 0.1, "0.0 / 0.1")]
)
def test_another_setting_is_refused_against_a_report_without_it(key: str, value: object, line: str) -> None:
    document = model().model_dump(mode="json")
    document["settings"][key] = value
    assert differences(model(), BenchReport.model_validate(document)) == [f"{key}: {line}"]


def test_versions_and_weights_may_differ() -> None:
    other = report()
    other["software"]["torch"] = "2.14.0"
    other["model"]["weights"] = "sha256:00"
    new = BenchReport.model_validate(other)
    assert len(version_changes(model(), new)) == 2
    assert compare(model(), new, 0.05)


def test_only_common_batch_sizes_are_compared() -> None:
    changes = compare(model(batch_sizes=(1, 8)), model(batch_sizes=(8,)), 0.05, allow_different=True)
    assert {change.batch_size for change in changes if change.verdict != "missing"} == {8}
    with pytest.raises(FlasharError, match="no batch size in common"):
        compare(model(batch_sizes=(1,)), model(batch_sizes=(8,)), 0.05, allow_different=True)


def counted(launches: int = 1000, forwards: int = 7, **settings: object) -> BenchReport:
    """A report with launch counts, which layout 1 did not have."""
    document = model(**settings).model_dump(mode="json")
    for batch in document["batches"]:
        arm = batch["arms"][1]
        arm["launches"] = {"unit": "operators", "count": launches, "num_kernels": None}
        arm["forwards_per_image"] = forwards
    return BenchReport.model_validate(document)


def test_gate_on_ratios_judges_no_times() -> None:
    """A machine half as fast: every time is worse, no ratio is."""
    changes = compare(counted(), counted(raster_s=8.0, flashar_s=2.0), 0.05, gate="ratios")
    assert {change.what for change in changes if change.gates} == {
        "speedup",
        "raster forwards",
        "flashar forwards",
        "flashar operators",
    }
    assert not [change for change in changes if change.gates and change.verdict != "same"]
    assert [change.verdict for change in changes if change.what == "flashar tokens"] == ["worse"]


@pytest.mark.parametrize(("settings", "what"), [({"flashar_s": 1.5}, "speedup"), ({"forwards": 8}, "flashar forwards")])
def test_gate_on_ratios_finds_what_is_worse(settings: dict[str, float], what: str) -> None:
    changes = compare(counted(), counted(**settings), 0.2, gate="ratios")  # type: ignore[arg-type]
    assert [change.what for change in changes if change.gates and change.verdict == "worse"] == [what]


def test_launches_have_a_tolerance_of_their_own() -> None:
    assert verdicts(counted(), counted(launches=1005), 0.0)["flashar operators"] == "same"
    assert verdicts(counted(), counted(launches=1020), 0.5)["flashar operators"] == "worse"
    assert verdicts(counted(), counted(launches=800), 0.5)["flashar operators"] == "better"


def test_truncated_counts_are_not_compared() -> None:
    document = counted().model_dump(mode="json")
    document["batches"][0]["arms"][1]["launches"]["truncated"] = True
    assert "flashar operators" not in verdicts(BenchReport.model_validate(document), counted(), 0.0)


def test_with_and_without_pixels_are_different_settings() -> None:
    """Only where both reports say which: an older one does not."""
    reports = []
    for with_pixels in (True, False, None):
        document = counted().model_dump(mode="json")
        document["settings"]["with_pixels"] = with_pixels
        if with_pixels is None:
            del document["settings"]["with_pixels"]
        reports.append(BenchReport.model_validate(document))
    with_them, without, old = reports
    assert differences(with_them, without) == ["with_pixels: True / False"]
    assert not differences(old, without)


def test_gate_on_ratios_takes_other_hardware() -> None:
    other = report()
    other["hardware"]["cpu"] = "another"
    assert compare(model(), BenchReport.model_validate(other), 0.05, gate="ratios")
    other["settings"]["cfg_scale"] = 1.0
    with pytest.raises(FlasharError, match="cfg_scale"):
        compare(model(), BenchReport.model_validate(other), 0.05, gate="ratios")


@pytest.mark.parametrize("key", ["num_threads", "num_interop_threads"])
def test_threads_follow_the_machine(key: str) -> None:
    old, new = (BenchReport.model_validate(report() | {"settings": {**report()["settings"], key: n}}) for n in (2, 4))
    assert hardware_changes(old, new) == differences(old, new) == [f"{key}: 2 / 4"]
    assert differences(old, new, "ratios") == []
    with pytest.raises(FlasharError, match=key):
        compare(old, new, 0.05)


def without(report: BenchReport, decoder: str) -> BenchReport:
    """The report as a bench without that decoder writes it."""
    document = report.model_dump(mode="json")
    arms = document["settings"]["arms"]
    document["settings"]["arms"] = [name for name in arms if not name.startswith(decoder)]
    for batch in document["batches"]:
        batch["arms"] = [arm for arm in batch["arms"] if arm["decoder"] != decoder]
        batch.update(speedup=None, speedups=[])
    return BenchReport.model_validate(document)


@pytest.mark.parametrize("gate", ["all", "ratios"])
def test_what_is_gone_fails(gate: Gate) -> None:
    gone = [change for change in compare(counted(), without(counted(), "flashar"), 0.5, gate=gate) if change.fails]
    assert {change.verdict for change in gone} == {"missing"}
    assert [(change.what, change.new) for change in gone] == [
        ("speedup", None),
        ("flashar tokens", None),
        ("flashar token decode", None),
        ("flashar forwards", None),
        ("flashar operators", None),
    ]


def test_a_batch_size_and_a_launch_count_that_are_gone_fail() -> None:
    old, document = counted(batch_sizes=(1, 8)), counted(batch_sizes=(1, 8)).model_dump(mode="json")
    del document["batches"][1]
    document["batches"][0]["arms"][1]["launches"] = None
    changes = compare(old, BenchReport.model_validate(document), 0.5, gate="ratios")
    gone = {(change.batch_size, change.what) for change in changes if change.fails}
    assert gone == {(1, "flashar operators")} | {(8, change.what) for change in changes if change.batch_size == 8}


def test_an_arm_at_another_level_is_gone() -> None:
    """Its times are not compared with those of another level, even where upstream is in common."""
    batches = []
    for level in ("eager", "compile"):
        document = model().model_dump(mode="json")
        first, second = document["batches"][0]["arms"]
        first.update(name="upstream", decoder="upstream", level=None)
        second.update(name=f"flashar-{level}", level=level)
        document["batches"][0].update(speedups=[], speedup=None)
        document["settings"]["arms"] = ["upstream", second["name"]]
        batches.append(BenchReport.model_validate(document))
    found = verdicts(batches[0], batches[1], 0.05)
    assert (found["flashar-eager tokens"], found["upstream tokens"]) == ("missing", "same")


def test_reports_without_a_common_arm_are_refused() -> None:
    text = model().model_dump_json().replace("-eager", "-other").replace('"eager"', '"other"')
    with pytest.raises(FlasharError, match="arms: raster-eager, flashar-eager / raster-other"):
        compare(model(), BenchReport.model_validate_json(text), 0.05)


def test_an_old_report_against_a_new_one_with_more_arms() -> None:
    document = model().model_dump(mode="json")
    document["settings"]["arms"].insert(0, "upstream")
    batch = document["batches"][0]
    batch["arms"].insert(0, {**batch["arms"][0], "name": "upstream", "decoder": "upstream", "level": None})
    assert set(verdicts(model(), BenchReport.model_validate(document), 0.0).values()) == {"same"}
