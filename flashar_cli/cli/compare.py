"""`flashar compare`: two reports of `flashar bench`, and whether something became slower."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.benchmarking.reports.compare import Change

EXAMPLES = """Examples:

flashar compare old.json new.json --tolerance 5%

flashar compare old.json new.json --markdown

flashar compare old.json new.json --gate ratios --tolerance 20%
"""
Gate = Literal["all", "ratios"]
LOWER = "lower: the speed-up fell, while the faster arm is about as near to its own floor as before"
HEADER = ["batch", "what", "old", "new", "change", "verdict"]


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The report to measure against.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The report that is judged.")],
    tolerance: Annotated[
        str, typer.Option(metavar="PERCENT", help="Changes up to this are noise, e.g. 5% or 0.05.")
    ] = "5%",
    gate: Annotated[Gate, typer.Option(help="ratios, for noisy machines: times are shown and fail nothing.")] = "all",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a CI summary.")] = False,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="Compare across hardware, settings or models all the same.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare two bench reports; exit code 1 on a regression.

    A regression is a speed-up or a time that became worse by more than the tolerance, more forwards, more launches, or
    a number of the old report that the new one lacks. A speed-up that fell fails only where the faster arm also moved
    away from its own floor by more than the tolerance: a faster raster is no regression. With `--gate ratios` times
    fail nothing, and the hardware may differ, the number of threads with it.
    """
    allowed = parse_tolerance(tolerance)
    if markdown and json:
        raise FlasharError("--markdown and --json were both passed; expected one of them")
    from flashar_cli.benchmarking.reports.compare import compare, differences, hardware_changes, version_changes
    from flashar_cli.benchmarking.reports.document import read_report

    old_report, new_report = read_report(old), read_report(new)
    changes = compare(old_report, new_report, allowed, allow_different, gate)
    different = differences(old_report, new_report, gate)
    different += [line for line in hardware_changes(old_report, new_report) if line not in different]
    notes = [f"different {line}" for line in different] + version_changes(old_report, new_report)
    notes += [LOWER] if any(change.verdict == "lower" for change in changes) else []
    judged = [change for change in changes if change.gates]
    num_worse, num_missing = (sum(change.verdict == verdict for change in judged) for verdict in ("worse", "missing"))
    verdict = f"{num_worse} of {len(judged)} numbers became worse by more than {allowed:.2%}"
    if num_missing:
        verdict += f"; {num_missing} are missing from {new}"
    several_grids = len({change.grid for change in changes}) > 1
    rows = [_row(change, several_grids) for change in changes]
    if json:
        counts = {"num_worse": num_worse, "num_missing": num_missing}
        output.document({"notes": notes, **counts, "changes": [asdict(change) for change in changes]})
    elif markdown:
        output.result(_markdown(rows, notes, verdict))
    else:
        output.table("", HEADER, rows, to_stdout=True)
        output.result("\n".join([*notes, verdict]))
    if any(change.fails for change in changes):
        raise typer.Exit(1)


def parse_tolerance(text: str) -> float:
    """``'5%'`` or ``'0.05'`` -> 0.05. Raises FlasharError for anything else, a bare 5 included."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value < 1:
        raise FlasharError(f"--tolerance is '{text}'; expected a percentage or a fraction below 1, e.g. 5% or 0.05")
    return value


def _row(change: Change, with_grid: bool) -> list[str]:
    place = f"{change.grid}, {change.batch_size}" if with_grid else str(change.batch_size)
    verdict = change.verdict if change.gates or change.verdict == "same" else f"{change.verdict}, not judged"
    numbers = [_value(number, change.unit) for number in (change.old, change.new)]
    return [place, change.what, *numbers, "-" if change.change is None else f"{change.change:+.1%}", verdict]


def _value(number: float | None, unit: str) -> str:
    if number is None:
        return "-"
    if unit == "s":
        return f"{number * 1000:.1f} ms"
    return f"{number:.2f} x" if unit == "x" else f"{number:.0f}"


def _markdown(rows: list[list[str]], notes: list[str], verdict: str) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|--:|---|--:|--:|--:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), *([""] if notes else []), verdict])
