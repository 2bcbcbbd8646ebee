"""What happens where nobody knew what to do: one line, an exit code, and a traceback for those who ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flashar_cli.cli import output
from flashar_cli.inputs.text import MOST_CHARACTERS


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes `flashar ls` do something else."""

    def make(act: Callable[[], object]) -> None:
        monkeypatch.delenv("FLASHAR_TRACEBACK")
        monkeypatch.setattr("flashar_cli.cli.main.app", lambda standalone_mode: act())

    return make


def raiser(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "error", (KeyError("x"), RecursionError(), AssertionError("\x1b[31m" + "long " * 10**5), RuntimeError("two\nlines"))
)
def test_a_bug_is_one_line_and_70(run_cli, failing, error) -> None:
    failing(raiser(error))
    done = run_cli("ls")
    assert done.code == 70 and done.err.count("\n") == 1 and len(done.err) <= MOST_CHARACTERS + 1
    assert type(error).__name__ in done.err and "bug in flashar" in done.err and "FLASHAR_TRACEBACK=1" in done.err
    assert "\x1b" not in done.err


def test_the_traceback_can_be_had(run_cli, failing, monkeypatch) -> None:
    failing(raiser(KeyError("x")))
    monkeypatch.setenv("FLASHAR_TRACEBACK", "0")
    assert run_cli("ls").code == 70
    monkeypatch.setenv("FLASHAR_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run_cli("ls")


@pytest.mark.parametrize(
    "act",
    (
        raiser(MemoryError()),
        raiser(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")),
        lambda: torch.empty(2**45),
        lambda: np.empty(2**55),
    ),
)
def test_out_of_memory_is_the_machines(run_cli, failing, act) -> None:
    failing(act)
    done = run_cli("ls")
    assert done.code == 2 and "out of memory" in done.err and "--batch-size" in done.err, done.err
    assert done.err.count("\n") == 1


def test_warnings_are_one_line_each(run_cli, failing) -> None:
    def act() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("much\nof it " * 1000, stacklevel=1)

    failing(act)
    done = run_cli("ls")
    assert done.code == 0 and done.err.startswith("warning: much of it") and done.err.count("\n") == 1


def test_nobody_reads_on(tmp_path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "flashar_cli", "ls"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("argument", ("caf\udce9", "\ud800"))
def test_arguments_that_are_no_text(run_cli, argument) -> None:
    done = run_cli("inspect", argument)
    assert done.code == 2 and "is not valid" in done.err and done.err.count("\n") == 1


def test_what_is_printed_is_fit_for_any_terminal(capsys) -> None:
    output.document({"name": "caf\udce9\x1b[31m", "loss": float("nan")})
    output.note("a\x07b\nc")
    output.table("", ["\x1b[2Jname"], [["\x1b[31mred"]])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "caf\\udce9\x1b[31m", "loss": None}
    assert "\x1b" not in captured.err and "a\\x07b\nc" in captured.err and "\\x1b[31mred" in captured.err


def test_ascii_terminals(tmp_path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    code = r"from flashar_cli.cli import output; output.prepare(); output.result('\xe9\u597d'); output.error('\xfc')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"\\xe9\\u597d\n", b"error: \\xfc\n")
