"""`flashar compare`: two reports of `flashar bench`, and whether something became slower."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.benchmarking.compare import Change

EXAMPLES = """Examples:

flashar compare old.json new.json --tolerance 5%

flashar compare old.json new.json --markdown
"""
HEADER = ["batch", "what", "old", "new", "change", "verdict"]


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The report to measure against.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The report that is judged.")],
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="PERCENT", help="Changes up to this are noise, e.g. 5% or 0.05.")
    ] = "5%",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a CI summary.")] = False,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="Compare across hardware, settings or models all the same.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare two bench reports; exit code 1 on a regression.

    A regression is a speed-up or a time that became worse by more than the tolerance.
    """
    allowed = parse_tolerance(tolerance)
    from flashar_cli.benchmarking.compare import compare, differences, version_changes
    from flashar_cli.benchmarking.report import read_report

    old_report, new_report = read_report(old), read_report(new)
    changes = compare(old_report, new_report, allowed, allow_different)
    notes = [f"different {line}" for line in differences(old_report, new_report)]
    notes += version_changes(old_report, new_report)
    num_worse = sum(change.verdict == "worse" for change in changes)
    verdict = f"{num_worse} of {len(changes)} numbers became worse by more than {allowed:.2%}"
    rows = [_row(change) for change in changes]
    if markdown and json:
        raise FlasharError("--markdown and --json were both passed; expected one of them")
    if json:
        output.document({"notes": notes, "num_worse": num_worse, "changes": [asdict(change) for change in changes]})
    elif markdown:
        output.result(_markdown(rows, notes, verdict))
    else:
        output.table("", HEADER, rows, to_stdout=True)
        output.result("\n".join([*notes, verdict]))
    if num_worse:
        raise typer.Exit(1)


def parse_tolerance(text: str) -> float:
    """``'5%'`` or ``'0.05'`` -> 0.05. Raises FlasharError for anything else, a bare 5 included."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value < 1:
        raise FlasharError(f"--tolerance is '{text}'; expected a percentage or a fraction below 1, e.g. 5% or 0.05")
    return value


def _row(change: Change) -> list[str]:
    if change.unit == "s":
        old, new = f"{change.old * 1000:.1f} ms", f"{change.new * 1000:.1f} ms"
    else:
        old, new = f"{change.old:.2f} {change.unit}", f"{change.new:.2f} {change.unit}"
    return [str(change.batch_size), change.what, old, new, f"{change.change:+.1%}", change.verdict]


def _markdown(rows: list[list[str]], notes: list[str], verdict: str) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|--:|---|--:|--:|--:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), *([""] if notes else []), verdict])
