"""A view of a running adaptation on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flashar_cli.adaptation.records import VALIDATION_LOSSES, flops_per_s, flops_text, peak_share, remaining_s
from flashar_cli.training.metrics import Record

LOSSES = ("total", "fused", "vertical", "horizontal", "distill", "gate_entropy")


class LiveView:
    """Shows the last records: stage, step, losses, gate, speed, memory and remaining time.

    It draws on ``console`` within its context, and then removes itself. Call it with every record.
    """

    def __init__(self, console: Console) -> None:
        self._last: dict[str, Record] = {}
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=2, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, kind: str, record: Record) -> None:
        """Takes a record of kind ``start``, ``step`` or ``validation``."""
        self._last = {**self._last, kind: record}  # replaced, not changed: another thread draws

    def render(self) -> Group:
        """The present view."""
        last = self._last
        start, step, validation = last.get("start"), last.get("step"), last.get("validation")
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right", no_wrap=True)
        table.add_column()
        if start is not None and step is not None:
            _add_position(table, start, step)
        if step is not None:
            table.add_row("loss", _values(step, LOSSES))
        if validation is not None:
            after = f"after {validation['step']:,} steps:  "
            table.add_row("validation", Text(after) + _values(validation, VALIDATION_LOSSES))
        gate = next((record for record in (step, validation) if record and "gate_mean" in record), None)
        if gate is not None:
            table.add_row("gate", f"mean {gate['gate_mean']:.3f}   spread {gate['gate_std']:.3f}")
        if start is not None and step is not None:
            table.add_row("speed", _speed(start, step))
            table.add_row("memory", f"{step['peak_memory_bytes'] / 2**30:.2f} GiB at the peak")
            table.add_row("left", _clock(remaining_s(start, step)))
        elif start is not None:
            table.add_row("", "validating, then the first step")
        return Group(table)


def _add_position(table: Table, start: Record, step: Record) -> None:
    stages, total = start["stage_steps"], sum(start["stage_steps"].values())
    number = list(stages).index(step["stage"]) + 1
    done = step["step"] + 1
    table.add_row("stage", f"{step['stage']} ({number} of {len(stages)})   learning rate {step['lr']:.3g}")
    bar: Any = ProgressBar(total=total, completed=done, width=36)
    line = Table.grid(padding=(0, 1))
    line.add_row(bar, f"{done:,} / {total:,}")
    table.add_row("step", line)


def _values(record: Record, names: tuple[str, ...]) -> Text:
    present = [name for name in names if name in record]
    return Text("   ").join(Text(f"{name.replace('_', ' ')} {record[name]:.4f}") for name in present)


def _speed(start: Record, step: Record) -> str:
    achieved = f"{flops_text(flops_per_s(start, step))}, {peak_share(start, step):.0%} of the measured peak"
    return f"{step['images_per_s']:.4g} images/s   {achieved}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
