"""Speed-up over the batch size, and cost over the resolution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import BatchReport, BenchReport
from flashar_cli.files import atomic_file
from flashar_cli.reporting.figures import COLOURS, INK, add_legend, new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = tuple(COLOURS.values())


def speedup_figure(report: BenchReport) -> Figure:
    """One line for each pair of arms and grid; dotted where two ideal decoders would be."""
    figure, axes = new_figure()
    lines: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {}
    for batch in report.batches:
        for ratio in batch.speedups:
            point = (batch.batch_size, ratio.token_generation, ratio.floor)
            lines.setdefault((batch.grid, ratio.arm, ratio.over), []).append(point)
    several_grids = len({grid for grid, _, _ in lines}) > 1
    for index, ((grid, arm, over), points) in enumerate(lines.items()):
        sizes, ratios, floors = zip(*points, strict=True)
        colour = PALETTE[index % len(PALETTE)]
        label = f"{arm} over {tables.label(over)}" + (f", {grid}" if several_grids else "")
        axes.plot(sizes, ratios, "o-", color=colour, label=label, markersize=4, linewidth=1.2)
        axes.plot(sizes, floors, ":", color=colour, linewidth=1.2)
    axes.plot([], [], ":", color=INK, label="ratio of the floors")
    _powers_of_two(axes, sorted({batch.batch_size for batch in report.batches}))
    axes.set_xlabel("batch size")
    axes.set_ylabel("times as fast")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def cost_figure(report: BenchReport) -> Figure:
    """Seconds of token generation over the number of tokens of a picture, at the smallest batch size. An arm may be
    missing on some grids.
    """
    figure, axes = new_figure()
    size = min(batch.batch_size for batch in report.batches)
    batches = sorted((batch for batch in report.batches if batch.batch_size == size), key=num_cells)
    for index, name in enumerate(report.settings.arms):
        found = [(num_cells(batch), arm) for batch in batches for arm in batch.arms if arm.name == name]
        seconds = [arm.token_generation_s.median_s for _, arm in found]
        colour = PALETTE[index % len(PALETTE)]
        axes.plot([cells for cells, _ in found], seconds, "o-", color=colour, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([num_cells(batch) for batch in batches], [batch.grid for batch in batches])
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"seconds for a batch of {size}")
    add_legend(axes)
    return figure


def num_cells(batch: BatchReport) -> int:
    """Tokens of one picture."""
    height, _, width = batch.grid.partition("x")
    return int(height) * int(width)


def write_plot(report: BenchReport, path: Path) -> None:
    """Writes the speed-ups as a PNG, or nothing."""
    settings = {"Title": f"flashar bench {report.model.name}", "Source": report.date}
    data = to_png(speedup_figure(report), settings)
    with atomic_file(path) as file:
        file.write(data)


def _powers_of_two(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
