"""The report for people: one Markdown or HTML file from the JSON document alone."""

from __future__ import annotations

from pathlib import Path

from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import BenchReport
from flashar_cli.benchmarking.reports.literature import published_for
from flashar_cli.benchmarking.reports.plots import cost_figure, speedup_figure
from flashar_cli.config import Config
from flashar_cli.files import atomic_file
from flashar_cli.reporting import html
from flashar_cli.reporting.figures import has_matplotlib, to_svg

COPIED = "Copied from the source named, not measured here; other hardware, other batch sizes."


def write_page(report: BenchReport, path: Path) -> None:
    """Writes the report, or nothing; the name's ending says in which form."""
    text = as_html(report) if path.suffix == ".html" else as_markdown(report)
    with atomic_file(path) as file:
        file.write(text.encode())


def as_markdown(report: BenchReport) -> str:
    """Tables only; the plot is a file of its own."""
    parts = [f"# {heading(report)}", "", subtitle(report), ""]
    for name, table, remarks in _tables(report):
        parts += [f"## {name}", "", tables.markdown(table), "", *(f"- {line}" for line in remarks), ""]
    return "\n".join(parts).rstrip() + "\n"


def as_html(report: BenchReport) -> str:
    """One page without network, with drawings where matplotlib is installed."""
    sections = [
        html.section(name, html.number_table(*table), *(html.paragraph(line) for line in remarks))
        for name, table, remarks in _tables(report)
    ]
    return html.page(heading(report), subtitle(report), [*_drawings(report), *sections])


def heading(report: BenchReport) -> str:
    """What stands on top."""
    return f"Decoding speed of {report.model.name}"


def subtitle(report: BenchReport) -> str:
    """What, where and when, in one paragraph."""
    return f"{tables.title(report)}; {report.model.weights}; {report.date}"


def _tables(report: BenchReport) -> list[tuple[str, tables.Table, list[str]]]:
    ratio_remarks = [tables.SPEEDUP_REMARK] + ([] if report.upstream is None else [tables.UPSTREAM_REMARK])
    found = [
        ("Arms", tables.arms(report), tables.remarks(report)),
        ("One arm over another", tables.speedups(report), ratio_remarks),
        ("Floor", tables.floors(report), []),
    ]
    if report.agreements:
        agreement = (
            tables.AGREEMENT_TITLE.capitalize(),
            tables.agreements(report.agreements),
            [tables.AGREEMENT_REMARK],
        )
        found.insert(1, agreement)
    literature = published_for(report.model.name)
    if literature:
        header = ["method", "size", "FID", "img/s", "measured on", "source"]
        rows = [
            [row.method, row.size.upper(), f"{row.fid:.2f}", f"{row.images_per_s:.1f}", row.hardware, row.source]
            for row in literature
        ]
        found.append(("Published, 256x256 (copied)", (header, rows), [COPIED]))
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
        drawn.append(
            html.figure(
                svg,
                title,
                "Dotted: the ratio of the floors, which is no ceiling where the slower arm is far from its own.",
            )
        )
    if len({batch.grid for batch in report.batches}) > 1:
        title = "Cost over the resolution"
        drawn.append(html.figure(to_svg(cost_figure(report), "cost", title), title))
    return [html.columns(*drawn, broad=True)] if drawn else []
