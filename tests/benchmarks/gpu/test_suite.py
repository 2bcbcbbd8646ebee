"""The GPU suite with made-up cases: what it leaves when cases fail, hang, don't fit, or the whole call is killed."""

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

from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu.cases import Case
from benchmarks.gpu.results import read_entries

ROOT = Path(__file__).parents[3]
# A report that is rewritten as more is measured, as a bench of several batch sizes does.
TWICE = "[open(FILE, 'w').write(text) for text in ('[1]', '[1, 2]')]"
HANGS = f"{TWICE}; print('partly done', flush=True); time.sleep(60)"
CASES = (
    Case("good", "bench", 1, "print('hello'); open(FILE, 'w').write('[1]')"),
    Case("bad", "bench", 1, f"{TWICE}; print('what went wrong'); raise SystemExit(3)"),
    Case("torn", "bench", 1, "open(FILE, 'w').write('[3')"),
    Case("drawn", "images", 1, "import os; os.mkdir(FILE); open(FILE + '/contact-sheet.png', 'w').write('a sheet')"),
    Case("clone", "bench", 1, "raise SystemExit(3)", "upstream"),
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases that are lines of Python; ``FILE`` is where each may write its report."""
    monkeypatch.setattr(gpu_suite, "CASES", CASES)
    monkeypatch.setattr(gpu_suite, "refuse_bare_machine", lambda needs_cuda: None)
    monkeypatch.setattr(gpu_suite, "command_of", python_line)


def python_line(case: Case, suite: gpu_suite.Suite, out: Path) -> list[str]:
    return [sys.executable, "-c", f"import time; FILE = {str(out)!r}; {case.arguments}"]


def entries(out: Path) -> dict[str, dict[str, Any]]:
    return read_entries(out / "results.json")


def outcomes(out: Path) -> dict[str, tuple[str, Any]]:
    return {name: (entry["status"], entry.get("report")) for name, entry in entries(out).items()}


def test_a_failing_case_is_on_record_and_the_others_run(
    scripted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_suite.main([str(tmp_path)]) == 1
    assert outcomes(tmp_path) == {
        "good": ("ok", [1]),
        "bad": ("failed", [1, 2]),
        "torn": ("ok", None),
        "drawn": ("ok", None),
        "clone": ("skipped", None),
    }
    log = (tmp_path / "log.txt").read_text()
    assert "hello" in log and "what went wrong" in log and "failed with exit code 3: bad" in log
    assert "skipped: clone, it needs --upstream DIR" in log
    assert "what went wrong" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn.png", "log.txt", "results.json"]


def test_a_call_ends_in_time_and_names_what_it_skips(
    scripted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (Case("late", "bench", 1, HANGS), Case("long", "bench", 100, ""), Case("short", "bench", 1, ""))
    monkeypatch.setattr(gpu_suite, "CASES", cases)
    monkeypatch.setattr(gpu_suite, "RESERVE_S", 0.2)
    started = time.monotonic()
    assert gpu_suite.main([str(tmp_path), "--minutes", "0.03"]) == 1
    assert time.monotonic() - started < 6
    assert outcomes(tmp_path) == {"late": ("stopped", [1, 2]), "long": ("skipped", None), "short": ("skipped", None)}
    text = capsys.readouterr().err
    assert "partly done" in text and "skipped: long, it takes 100 s and 0 s are left" in text


def test_a_case_that_hangs_leaves_time_to_the_others(
    scripted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "CASES", (Case("late", "bench", 1, HANGS), *CASES[:1]))
    monkeypatch.setattr(gpu_suite, "PATIENCE", 1.0)
    assert gpu_suite.main([str(tmp_path)]) == 1
    assert entries(tmp_path)["late"]["why"] == "after 1 s"
    assert outcomes(tmp_path) == {"late": ("stopped", [1, 2]), "good": ("ok", [1])}


def test_the_next_call_goes_on_behind_what_is_done(scripted: None, tmp_path: Path, capfd: Any) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    gpu_suite.main([str(first), "--only", "good,bad"])
    gpu_suite.main([str(first), "--dry-run"])
    assert [line.split()[3] for line in capfd.readouterr().out.splitlines()] == ["torn", "drawn", "clone"]
    results = gpu_suite.Results(first)
    results.put("torn", {**results.entries["good"], "status": "stopped"})
    gpu_suite.main([str(second), "--after", str(first / "results.json")])
    assert outcomes(second) == {
        "good": ("ok", [1]),
        "bad": ("failed", [1, 2]),
        "drawn": ("ok", None),
        "clone": ("skipped", None),
        "torn": ("ok", None),
    }, "what was stopped is tried again, last; what went well or failed is not"
    assert "hello" not in (second / "log.txt").read_text()
    assert gpu_suite.main([str(second), "--only", "g*"]) == 0
    assert "hello" in (second / "log.txt").read_text(), "--only repeats"


@pytest.mark.parametrize("how", (signal.SIGKILL, signal.SIGTERM))
def test_a_killed_call_keeps_everything_and_the_next_one_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    """After SIGTERM the running case is ended too: it would go on using the device beside the next one."""
    out, pid_file = tmp_path / "out", tmp_path / "pid"
    hangs = f"{TWICE}; import os; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    cases = (CASES[0], Case("late", "bench", 50, hangs))
    program = (
        "import signal, sys\n"
        "from benchmarks.gpu import suite\n"
        "from benchmarks.gpu.cases import Case\n"
        "signal.signal(signal.SIGTERM, suite._leave)\n"
        f"suite.CASES = {cases!r}\n"
        "suite.refuse_bare_machine = lambda needs_cuda: None\n"
        "line = lambda case, out: f'import time; FILE = {str(out)!r}; {case.arguments}'\n"
        "suite.command_of = lambda case, _, out: [sys.executable, '-c', line(case, out)]\n"
        f"suite.main([{str(out)!r}])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    suite = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    suite.send_signal(how)
    suite.wait(20)
    pid = int(pid_file.read_text())
    if how == signal.SIGKILL:
        os.kill(pid, signal.SIGKILL)  # whoever kills a call by force kills all of it
        assert json.loads((out / "results.json").read_text())["entries"]["late"]["status"] == "running"
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert outcomes(out) == {"good": ("ok", [1]), "late": ("stopped", [1, 2])}
    assert [case.name for case in gpu_suite.to_do(cases, entries(out))] == ["late"]


@pytest.mark.parametrize(
    ("options", "expected"), ((["--only", "other"], "expected good, bad"), (["--minutes", "nan"], "a number from 0"))
)
def test_what_there_is_not_is_one_line(
    scripted: None, tmp_path: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_suite.main([str(tmp_path / "out"), *options]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bare_machine_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any case: failures are not repeated."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_suite.main([str(tmp_path / "out")]) == 2
    assert "sees no CUDA device; nothing was run" in capsys.readouterr().err
    monkeypatch.setattr(gpu_suite, "NEEDED", ["torch", "no_such_package"])
    assert gpu_suite.main([str(tmp_path / "out"), "--rehearse"]) == 2
    assert "has no no_such_package; nothing was run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_commands_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        "llamagen-tiny-flashar --random-weights --res 16 --arms flashar-eager --repeats 1 --no-pixels --threads 1"
    )
    monkeypatch.setattr(gpu_suite, "REHEARSAL", (Case("16", "bench", 60, arguments),))
    assert gpu_suite.main([str(tmp_path), "--rehearse"]) == 0
    settings = entries(tmp_path)["16"]["report"]["settings"]
    assert settings["with_pixels"] is False and settings["device"] == "cpu"
