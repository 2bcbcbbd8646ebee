"""Errors that no command expects, in one line."""

from __future__ import annotations

import os
import sys

from flashar_cli.cli import output
from flashar_cli.inputs.text import one_line

BUG = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it of other commands
TRACEBACK = "FLASHAR_TRACEBACK"
MOST_OF_A_CAUSE = 200  # characters


def wants_traceback() -> bool:
    """Whether the environment asks for the traceback of unexpected errors."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def explain(error: Exception) -> int:
    """Prints one line for an error that nobody expected; returns the exit code: 2 where the machine is too small."""
    what = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, MOST_OF_A_CAUSE)
    if _is_out_of_memory(error):
        output.error(
            f"out of memory ({what}); take a smaller --batch-size, fewer or smaller images, a smaller model, or "
            "--dtype bfloat16, or close other programs"
        )
        return 2
    output.error(
        f"{what}; this is a bug in flashar, not a mistake of yours; {TRACEBACK}=1 in the environment shows where it "
        "happened, for the report"
    )
    return BUG


def give_up_stdout() -> None:
    """Sends what Python still holds for stdout nowhere, so that its exit brings no further error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from flashar_cli.decoding.failures import is_out_of_memory

    return is_out_of_memory(error)
