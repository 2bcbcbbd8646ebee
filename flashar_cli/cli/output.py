"""The only place that prints: results on stdout, the rest on stderr; all processes but the first print only errors."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from flashar_cli.inputs.text import one_line, plain, printable
from flashar_cli.machine.world import current_world

_resume_command: list[str] = []


def prepare() -> None:
    """Has characters that the terminal's encoding lacks escaped, so that printing never fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class NobodyReads(Exception):
    """The reader of stdout has left, as ``| head`` does."""


def note(line: str) -> None:
    """One line for the person at the terminal, on stderr."""
    if current_world().is_main:
        _print(printable(line), sys.stderr)


def error(message: str) -> None:
    """One line of at most ``MOST_CHARACTERS``, whatever the message holds."""
    _print(one_line(f"error: {message}"), sys.stderr)


def result(text: str) -> None:
    """What the command was asked for, on stdout."""
    if current_world().is_main:
        _print(printable(text), sys.stdout)


def document(data: Any) -> None:
    """One JSON document on stdout, valid whatever names and numbers it holds."""
    result(json.dumps(plain(data), indent=2))


def warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A library's warning, as a note: replaces ``warnings.showwarning``."""
    note(one_line(f"warning: {message}"))


def table(title: str, header: list[str], rows: list[list[str]], to_stdout: bool = False) -> None:
    """A plain table; on stderr unless it is the result itself."""
    if not current_world().is_main:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = sys.stdout if to_stdout else sys.stderr
    drawn = Table(
        title=printable(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for index, name in enumerate(header):
        drawn.add_column(printable(name), justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        drawn.add_row(*map(printable, row))
    console = Console(file=stream, width=None if stream.isatty() else 160, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(drawn)
    _print(captured.get().rstrip("\n"), stream)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Any]:
    """A progress bar with ``.update(count)`` and ``.advance_to(total)``; silent unless stderr is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not (current_world().is_main and sys.stderr.isatty()), transient=True) as bar:
        task = bar.add_task("", total=total, speed="")

        class Handle:
            def update(self, count: int) -> None:
                self.advance_to(int(bar.tasks[0].completed) + count)

            def advance_to(self, completed: int) -> None:
                speed = bar.tasks[0].speed
                bar.update(task, completed=completed, speed=f"{speed:.2f} {unit}/s" if speed else "")

        yield Handle()


@contextmanager
def later_progress(unit: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """What begins a progress bar once the total is known, and returns its ``update``."""
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(progress(total, unit)).update


def terminal() -> Any:
    """A Rich console on stderr for a view that redraws itself; None without a terminal or in a later process."""
    if not (current_world().is_main and sys.stderr.isatty()):
        return None
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def set_resume_command(arguments: list[str]) -> None:
    """Sets the command to type after an interruption."""
    _resume_command[:] = arguments


def resume_hint() -> str:
    """``; resume with: ...`` where a command can be resumed, else nothing."""
    return f"; resume with: {shlex.join(_resume_command)}" if _resume_command else ""


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # a type of our own, as Typer would end the process with 1
        raise NobodyReads from None
