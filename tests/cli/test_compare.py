"""`flashar compare` as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashar_cli.cli.compare import parse_tolerance
from flashar_cli.errors import FlasharError
from tests.benchmarking.reports.made_up import report


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    def write_document(name: str, document: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write_document


def test_unchanged(run_cli: Callable, write: Callable) -> None:
    done = run_cli("compare", write("old.json", report()), write("new.json", report()))
    assert done.code == 0, done.err
    assert "0 of" in done.out


def test_regression_is_exit_code_1(run_cli: Callable, write: Callable) -> None:
    old, new = write("old.json", report()), write("new.json", report(flashar_s=1.1))
    done = run_cli("compare", old, new, "--tolerance", "5%")
    assert done.code == 1
    assert "worse" in done.out
    assert run_cli("compare", old, new, "--tolerance", "15%").code == 0
    assert run_cli("compare", new, old).code == 0, "faster is no regression"


def test_markdown(run_cli: Callable, write: Callable) -> None:
    done = run_cli("compare", write("old.json", report()), write("new.json", report(flashar_s=2.0)), "--markdown")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0].startswith("| batch | what |")
    assert "| 1 | speedup | 4.00 x | 2.00 x | -50.0% | worse |" in lines


def test_other_hardware_needs_permission(run_cli: Callable, write: Callable) -> None:
    other = report()
    other["hardware"]["cpu"] = "another"
    old, new = write("old.json", report()), write("new.json", other)
    refused = run_cli("compare", old, new)
    assert refused.code == 2
    assert "--allow-different" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    allowed = run_cli("compare", old, new, "--allow-different")
    assert allowed.code == 0
    assert "another" in allowed.out


@pytest.mark.parametrize("kind", ["missing", "broken", "list", "version", "key", "type", "directory", "nan"])
def test_bad_reports_are_one_line(run_cli: Callable, write: Callable, tmp_path: Path, kind: str) -> None:
    good = write("good.json", report())
    document = report()
    bad = tmp_path / "bad.json"
    if kind == "broken":
        bad.write_text("{")
    elif kind == "directory":
        bad = tmp_path
    elif kind != "missing":
        if kind == "list":
            document = []
        elif kind == "version":
            document["report_version"] = 2
        elif kind == "key":
            del document["batches"][0]["speedup"]
        elif kind == "type":
            document["settings"]["repeats"] = "many"
        elif kind == "nan":
            document["batches"][0]["speedup"] = float("nan")
        write("bad.json", document)
    done = run_cli("compare", good, bad)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_tolerance() -> None:
    assert [parse_tolerance(text) for text in ("5%", "0.05", "0", "2.5 %")] == pytest.approx([0.05, 0.05, 0, 0.025])
    for text in ("5", "-1%", "", "%", "100%", "five", "nan"):
        with pytest.raises(FlasharError, match="--tolerance"):
            parse_tolerance(text)


def test_gate_on_ratios(run_cli: Callable, write: Callable) -> None:
    old, slower = write("old.json", report()), write("new.json", report(raster_s=8.0, flashar_s=2.0))
    assert run_cli("compare", old, slower).code == 1
    done = run_cli("compare", old, slower, "--gate", "ratios", "--markdown")
    assert done.code == 0, done.err
    assert "worse, not judged" in done.out
    worse = write("worse.json", report(flashar_s=2.0))
    assert run_cli("compare", old, worse, "--gate", "ratios").code == 1


def test_faster_raster_passes(run_cli: Callable, write: Callable) -> None:
    old, new = write("old.json", report()), write("new.json", report(raster_s=2.8))
    done = run_cli("compare", old, new, "--gate", "ratios", "--tolerance", "20%", "--markdown")
    assert done.code == 0, done.out
    assert "| 1 | speedup | 4.00 x | 2.80 x | -30.0% | lower |" in done.out
    assert "near to its own floor" in done.out


def test_an_arm_that_is_gone_fails(run_cli: Callable, write: Callable) -> None:
    new = report()
    del new["batches"][0]["flashar"]
    new["batches"][0]["speedup"] = None
    done = run_cli("compare", write("old.json", report()), write("new.json", new), "--gate", "ratios", "--markdown")
    assert done.code == 1, done.err
    assert "| 1 | flashar forwards | 7 | - | - | missing |" in done.out
    assert "4 are missing from" in done.out
