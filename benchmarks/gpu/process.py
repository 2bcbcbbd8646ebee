"""One command with a time limit, its output in a log, and nothing left running behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOWN_LINES = 20
# How long a command may take to end after SIGTERM, before it is killed.
GRACE_S = 5.0


def run_logged(command: Sequence[str], log: Path, limit_s: float) -> int | None:
    """Runs a command, its output in the log and its last lines on stderr. Returns its exit code, or None where it was
    stopped after ``limit_s``.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as output:
        start = output.tell()
        # A group of its own, so that compilers that it started end with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    with open(log, "rb") as written:
        written.seek(start)
        lines = written.read().decode(errors="replace").splitlines()
    print("\n".join(lines[-SHOWN_LINES:]), file=sys.stderr, flush=True)
    return code


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and what it left running: first by SIGTERM, so that it can release the device, then by SIGKILL."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
