"""The GPU suite on a CPU: what it leaves when cases fail, stop or succeed, and how results are put together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu.cases import Case, Drawing
from benchmarks.profile_decode import make_parser
from flashar_cli.cli.main import app
from flashar_cli.reporting.figures import has_matplotlib

ROOT = Path(__file__).parents[3]


def entries(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((out / "results.json").read_text())["entries"]
    return found


# A report that is rewritten as more is measured, as a bench of several batch sizes does.
TWICE = "[open(FILE, 'w').write(text) for text in ('[1]', '[1, 2]')]"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose cases are lines of Python; ``FILE`` is where each may write its report."""
    cases = (
        Case("good", "bench", "print('hello'); open(FILE, 'w').write('[1]')"),
        Case("bad", "bench", "print('what went wrong'); raise SystemExit(3)"),
        Case("late", "train", f"{TWICE}; print('partly done', flush=True); time.sleep(60)"),
        Case("torn", "bench", "open(FILE, 'w').write('[3')"),
        Case("too-large", "bench", f"{TWICE}; raise SystemExit(2)"),
    )
    monkeypatch.setattr(gpu_suite, "PARTS", {"scripted": cases[:2], "slow": cases[2:]})
    monkeypatch.setattr(gpu_suite, "DRAWINGS", {})

    def command(case: Case, suite: gpu_suite.Suite, out: Path) -> list[str]:
        return [sys.executable, "-c", f"import time; FILE = {str(out)!r}; {case.arguments}"]

    monkeypatch.setattr(gpu_suite, "command_of", command)


def test_a_failing_case_is_on_record_and_the_others_run(
    scripted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_suite.main([str(tmp_path), "--only", "scripted"]) == 1
    found = entries(tmp_path)
    assert {name: (entry["status"], entry["report"]) for name, entry in found.items()} == {
        "scripted/good": ("ok", [1]),
        "scripted/bad": ("failed", None),
    }
    log = (tmp_path / "log.txt").read_text()
    assert "== scripted" in log and "hello" in log and "what went wrong" in log
    assert "failed with exit code 3: scripted/bad" in log
    assert "what went wrong" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "results.json"]


def test_the_time_limit_stops_a_case_and_leaves_out_the_rest(
    scripted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "RESERVE_S", 0.5)
    started = time.monotonic()
    assert gpu_suite.main([str(tmp_path), "--only", "slow", "--minutes", "0.025"]) == 1
    assert time.monotonic() - started < 20
    late = entries(tmp_path)["slow/late"]
    assert (late["status"], late["report"]) == ("stopped", [1, 2]), "what it had reported stays"
    log = (tmp_path / "log.txt").read_text()
    assert "partly done" in log and "stopped after 1 s" in log
    assert "left out: slow/torn, the part's time is up" in log
    assert "slow/torn" not in entries(tmp_path)


def test_a_case_that_fails_after_a_report_keeps_it(scripted: None, tmp_path: Path) -> None:
    assert gpu_suite.main([str(tmp_path), "--only", "slow/too-large"]) == 1
    entry = entries(tmp_path)["slow/too-large"]
    assert (entry["status"], entry["report"]) == ("failed", [1, 2])


def test_parts_and_runs_go_into_one_file(scripted: None, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for _ in range(2):
        gpu_suite.main([str(first), "--only", "scripted"])
    second.mkdir()
    gpu_suite.Results(second / "results.json").add({"slow/old": {"kind": "bench", "status": "ok", "report": None}})
    assert sorted(entries(first)) == ["scripted/bad", "scripted/good"]
    assert (first / "log.txt").read_text().count("== scripted") == 2, "the log is appended to"
    assert gpu_suite.main([str(first), "--merge", str(second / "results.json")]) == 0
    assert sorted(entries(first)) == ["scripted/bad", "scripted/good", "slow/old"]
    assert sorted(entries(second)) == ["slow/old"]


def test_one_case_alone_and_a_report_that_is_half_written(scripted: None, tmp_path: Path) -> None:
    assert gpu_suite.main([str(tmp_path), "--only", "slow/torn,scripted/good"]) == 0
    assert {name: entry["report"] for name, entry in entries(tmp_path).items()} == {
        "slow/torn": None,
        "scripted/good": [1],
    }


@pytest.mark.parametrize(
    ("text", "expected"), (("other", "expected scripted, slow"), ("slow/other", "expected late, torn, too-large"))
)
def test_what_there_is_not_is_one_line(
    scripted: None, tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_suite.main([str(tmp_path / "out"), "--only", text]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ("", "[]", '{"entries": 3}', "{"))
def test_a_file_that_is_no_results_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(text)
    assert gpu_suite.main([str(tmp_path), "--only", "tests"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "results.json").read_text() == text


def test_a_stopped_suite_stops_its_case(tmp_path: Path) -> None:
    """Otherwise a bench would go on using the device beside the next one. What it had reported stays."""
    pid_file = tmp_path / "pid"
    line = "import os, sys, time; FILE, PID = sys.argv[1:]; "
    line += f"{TWICE}; open(PID, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import runpy, signal, sys\n"
        "from benchmarks.gpu import suite\n"
        "from benchmarks.gpu.cases import Case\n"
        "signal.signal(signal.SIGTERM, suite._leave)\n"
        "suite.PARTS = {'only': (Case('case', 'bench', ''),)}\n"
        f"suite.command_of = lambda *words: [sys.executable, '-c', {line!r}, str(words[-1]), {str(pid_file)!r}]\n"
        f"suite.main([{str(tmp_path / 'out')!r}])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    suite = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(pid_file.read_text())
    suite.send_signal(signal.SIGTERM)
    suite.wait(20)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    entry = entries(tmp_path / "out")["only/case"]
    assert (entry["status"], entry["report"]) == ("stopped", [1, 2])


def test_cases_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real commands, with small cases: a bench of two grids as two cases, drawn as one."""
    model = "llamagen-tiny-flashar --random-weights --threads 1 --repeats 1"
    arms = "raster-eager,flashar-eager"
    cases = (
        Case("16", "bench", f"{model} --res 16 --arms {arms}"),
        Case("32-flashar", "bench", f"{model} --res 32 --arms flashar-eager"),
        Case("upstream", "bench", f"{model} --res 32 --arms upstream", of_upstream=True),
        Case("drawn", "pictures", "llamagen-tiny-flashar --num-images 2"),
    )
    drawings = (
        Drawing("cost.png", "cost", ("16", "32-flashar")),
        Drawing("speedup.png", "speedup", ("16",)),
        Drawing("nothing.png", "cost", ("upstream",)),
    )
    monkeypatch.setattr(gpu_suite, "PARTS", {"small": cases})
    monkeypatch.setattr(gpu_suite, "DRAWINGS", {"small": drawings})
    assert gpu_suite.main([str(tmp_path), "--device", "cpu"]) == 0
    found = entries(tmp_path)
    assert {name: entry["status"] for name, entry in found.items()} == {
        "small/16": "ok",
        "small/32-flashar": "ok",
        "small/drawn": "ok",
    }
    assert found["small/16"]["report"]["batches"][0]["speedup"] > 0
    assert "left out: small/upstream needs --upstream DIR" in (tmp_path / "log.txt").read_text()
    figures = ["cost.png", "speedup.png"] if has_matplotlib() else []
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted([*figures, "small-drawn.png"])


def test_every_part_leaves_at_most_eight_files() -> None:
    for part, cases in gpu_cases.PARTS.items():
        sheets = [case for case in cases if case.kind == "pictures"]
        assert len(sheets) + len(gpu_cases.DRAWINGS.get(part, ())) <= 6
        assert len({case.name for case in cases}) == len(cases)
    for part, drawings in gpu_cases.DRAWINGS.items():
        names = {case.name for case in gpu_cases.PARTS[part] if case.kind == "bench"}
        assert all(set(drawing.cases) <= names for drawing in drawings)


def test_cases_name_options_and_arms_that_exist() -> None:
    from flashar_cli.benchmarking.arms import DECODERS, LEVELS

    parameters = typer.main.get_command(app).commands["bench"].params  # type: ignore[attr-defined]
    options = {name for parameter in parameters for name in parameter.opts}
    arms = {f"{decoder}-{level}" for decoder in DECODERS for level in LEVELS} | {"upstream"}
    for case in (case for cases in gpu_cases.PARTS.values() for case in cases if case.kind == "bench"):
        words = case.arguments.split()
        assert {word for word in words if word.startswith("--")} <= options
        assert set(words[words.index("--arms") + 1].split(",")) <= arms
        assert case.of_upstream == ("upstream" in case.arguments)
    for case in (case for cases in gpu_cases.PARTS.values() for case in cases if case.kind == "profile"):
        assert make_parser().parse_args([*case.arguments.split(), "--out", "FILE"]).arm in arms


@pytest.mark.skipif(not (ROOT / "benchmarks" / "run_gpu.sh").exists(), reason="not a checkout")
def test_the_script_refuses_without_cuda(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "run_gpu.sh"), str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "sees no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()
