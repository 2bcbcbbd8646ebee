"""One command with a time limit: how it ended, what it said, and that nothing of it goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.process import run_logged

STARTS_ANOTHER = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(child.pid, flush=True)\n"
)


def test_exit_code_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert run_logged([sys.executable, "-c", "print('said'); raise SystemExit(3)"], log, 20) == 3
    assert log.read_text() == "before\nsaid\n"
    assert capsys.readouterr().err == "said\n"


@pytest.mark.parametrize(("last", "limit_s"), (("time.sleep(60)", 1.0), ("", 20.0)))
def test_what_a_command_started_ends_with_it(tmp_path: Path, last: str, limit_s: float) -> None:
    """As compilers would; they hold the device, and the next case needs it."""
    log = tmp_path / "log.txt"
    assert run_logged([sys.executable, "-c", STARTS_ANOTHER + last], log, limit_s) == (None if last else 0)
    deadline = time.monotonic() + 5
    while is_running(int(log.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(log.read_text()))


def is_running(pid: int) -> bool:
    """Not where nobody has fetched its exit code yet, either."""
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
