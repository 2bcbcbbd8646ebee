"""Runs the command line as the `flashar` script does, without a process of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Result:
    """What a user sees: the exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``run_cli("bench", path, "--repeats", 1)``; arguments are turned into strings."""

    def run(*args: object) -> Result:
        from flashar_cli.cli.main import main

        monkeypatch.setattr(sys, "argv", ["flashar", *map(str, args)])
        capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)  # the command sets its own, and pytest must still be stoppable
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
