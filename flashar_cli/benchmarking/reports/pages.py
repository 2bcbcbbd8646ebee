"""The report for people, from the JSON document alone: one Markdown or HTML file, and figures of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import BatchReport, BenchReport
from flashar_cli.config import Config
from flashar_cli.files.writing import atomic_file
from flashar_cli.reporting import html
from flashar_cli.reporting.figures import COLOURS, INK, add_legend, has_matplotlib, new_figure, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = tuple(COLOURS.values())


def write_page(report: BenchReport, path: Path) -> None:
    """Writes the report, or nothing; the name's ending says in which form."""
    text = as_html(report) if path.suffix == ".html" else as_markdown(report)
    with atomic_file(path) as file:
        file.write(text.encode())


def as_markdown(report: BenchReport) -> str:
    """Tables only; the plot is a file of its own."""
    heading, subtitle = heads(report)
    parts = [f"# {heading}", "", subtitle, ""]
    for name, table, remarks in _tables(report):
        parts += [f"## {name}", "", tables.markdown(table), "", *(f"- {line}" for line in remarks), ""]
    return "\n".join(parts).rstrip() + "\n"


def as_html(report: BenchReport) -> str:
    """One page without network, with drawings where matplotlib is installed."""
    sections = [
        html.section(name, html.number_table(*table), *(html.paragraph(line) for line in remarks))
        for name, table, remarks in _tables(report)
    ]
    return html.page(*heads(report), [*_drawings(report), *sections])


def heads(report: BenchReport) -> tuple[str, str]:
    """The heading, and what, where and when in one paragraph."""
    return f"Decoding speed of {report.model.name}", f"{tables.title(report)}; {report.model.weights}; {report.date}"


def _tables(report: BenchReport) -> list[tuple[str, tables.Table, list[str]]]:
    ratio_remarks = [tables.SPEEDUP_REMARK] + ([] if report.upstream is None else [tables.UPSTREAM_REMARK])
    found = [
        ("Arms", tables.arms(report), tables.remarks(report)),
        ("One arm over another", tables.speedups(report), ratio_remarks),
        ("Floor", tables.floors(report), []),
    ]
    if (by_scale := tables.steps(report))[1]:
        found.append((tables.STEPS_TITLE.capitalize(), by_scale, []))
    if report.agreements:
        agreed = tables.agreements(report.agreements)
        found.insert(1, (tables.AGREEMENT_TITLE.capitalize(), agreed, [tables.AGREEMENT_REMARK]))
    published = tables.published(report.model.name)
    if published[1]:
        found.append(("Published, 256x256 (copied)", published, [tables.PUBLISHED_REMARK]))
    return [*found, ("How to reproduce", (["what", "value"], _facts(report)), [])]


def _facts(report: BenchReport) -> list[list[str]]:
    parts: list[Config] = [report.model, report.settings, report.hardware, report.software]
    rows = [[key, _text(value)] for part in parts for key, value in part.model_dump().items() if value is not None]
    if report.command is not None:
        rows.insert(0, ["command", " ".join(report.command)])
    return rows + [[name, value] for name, value in (report.variables or {}).items()]


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _drawings(report: BenchReport) -> list[str]:
    if not has_matplotlib():
        return [html.paragraph("There are no figures, as the matplotlib package is not installed.")]
    drawn = []
    if any(batch.speedups for batch in report.batches):
        title = "Speed-up over the batch size"
        svg = to_svg(speedup_figure(report), "speedup", title)
        caption = "Dotted: the ratio of the floors, which is no ceiling where the slower arm is far from its own."
        drawn.append(html.figure(svg, title, caption))
    if len({batch.grid for batch in report.batches}) > 1:
        title = "Cost over the resolution"
        drawn.append(html.figure(to_svg(cost_figure(report), "cost", title), title))
    return [html.columns(*drawn, broad=True)] if drawn else []


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
    batch_sizes = sorted({batch.batch_size for batch in report.batches})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_ylabel("times as fast")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def cost_figure(report: BenchReport) -> Figure:
    """Seconds of token generation over the tokens of an image, at the smallest batch size."""
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
    """Tokens of one image."""
    height, _, width = batch.grid.partition("x")
    return int(height) * int(width)


def write_plot(report: BenchReport, path: Path) -> None:
    """Writes the speed-ups as a PNG, or nothing."""
    data = to_png(speedup_figure(report), {"Title": f"flashar bench {report.model.name}", "Source": report.date})
    with atomic_file(path) as file:
        file.write(data)
