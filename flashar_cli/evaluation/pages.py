"""What an evaluation writes: ``eval.json``, and ``eval.html`` with samples side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashar_cli.evaluation.report import PAGE_FILE, REPORT_FILE, ArmReport, EvalReport, FigureReport
from flashar_cli.files.arrays import NpzArray
from flashar_cli.files.kinds import ANYTHING, NPZ, FolderKind, json_object
from flashar_cli.files.writing import atomic_files
from flashar_cli.reporting import html
from flashar_cli.reporting.figures import COLOURS, add_legend, has_matplotlib, new_figure, to_svg

SHOWN, MOST_PIXELS = 40, 192
Table = tuple[str, list[str], list[list[str]]]
FOLDER = FolderKind(
    "an evaluation",
    {
        r"eval\.json": json_object("a report", "arms", "seed"),
        r"eval\.html": ANYTHING,
        r"[^/]*\.npz": NPZ,
        r"[^/]*\.json": json_object("a record", "samples", "sha256"),
        r"[^/]*\.npz\.part/.*": ANYTHING,
    },
)


def tables(report: EvalReport) -> list[Table]:
    """The figures as text: of the samples, and the code lengths."""
    found = []
    if names := list(dict.fromkeys(figure.name for arm in report.arms for figure in arm.figures)):
        rows = [[arm.name, str(arm.num_images), *(_figure(arm, name) for name in names)] for arm in report.arms]
        found.append(("figures of samples", ["arm", "images", *(name.replace("_", " ") for name in names)], rows))
    rows = [
        [arm.name, length.head, f"{length.total:.4f}", str(arm.validation)]
        for arm in report.arms
        for length in arm.code_lengths
    ]
    return [*found, ("nats per token", ["arm", "head", "all cells", "of"], rows)] if rows else found


def write(report: EvalReport, out: Path) -> None:
    """Writes report and page, or neither."""
    contents = {REPORT_FILE: report.model_dump_json(indent=2) + "\n", PAGE_FILE: page(report, out)}
    with atomic_files(*(out / name for name in contents)) as files:
        for file, text in zip(files, contents.values(), strict=True):
            file.write(text.encode())


def page(report: EvalReport, out: Path) -> str:
    """The HTML document, with samples from the archives in ``out``."""
    names = ", ".join(dict.fromkeys(Path(arm.model).name for arm in report.arms))
    sections = [
        html.section(title.capitalize(), html.number_table(header, rows)) for title, header, rows in tables(report)
    ]
    for judge in dict.fromkeys(arm.judge for arm in report.arms if arm.num_images):
        sampled = [arm for arm in report.arms if arm.judge == judge]  # which all show the same, in the same order
        sections.append(html.section("Side by side", *_samples(sampled, out)))
    if has_matplotlib() and any(arm.code_lengths for arm in report.arms):
        sections.append(html.section("Nats per token by place", html.columns(*_curves(report), broad=True)))
    sections.append(html.section("Settings", *(html.value_table(arm.name, _settings(arm)) for arm in report.arms)))
    return html.page(f"Quality of {names}", f"seed {report.seed}; {report.hardware.cpu}; {report.date}", sections)


def _samples(arms: list[ArmReport], out: Path) -> list[str]:
    """The first images of every arm, those of the same number beside each other."""
    count = min(SHOWN, *(arm.num_images for arm in arms))
    groups: list[NDArray[np.uint8]] = []
    for arm in arms:
        images = next(NpzArray(out / f"{arm.name}.npz", "arr_0").batches(count))
        groups.append(images.astype(np.uint8, copy=False))
    order = "From left to right: " + ", ".join(arm.name for arm in arms) + "; the same subjects and seed."
    names = [f"image {index}" for index in range(count)]
    return [html.paragraph(order), html.image_groups(groups, names, [arm.name for arm in arms], MOST_PIXELS)]


def _curves(report: EvalReport) -> list[str]:
    drawn = []
    for part, label in (("by_row", "row"), ("by_column", "column")):
        figure, axes = new_figure()
        lines = [(f"{arm.name}, {length.head}", length) for arm in report.arms for length in arm.code_lengths]
        for index, (name, length) in enumerate(lines):
            values = [np.nan if value is None else value for value in getattr(length, part)]
            colour = list(COLOURS.values())[index % len(COLOURS)]
            axes.plot(range(len(values)), values, label=name, color=colour, linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel("nats per token")
        add_legend(axes)
        title = f"By {label}"
        drawn.append(html.figure(to_svg(figure, label, title), title))
    return drawn


def _settings(arm: ArmReport) -> list[tuple[str, str]]:
    own = {"weights": arm.weights_sha256, "judged by": arm.judge, "samples": arm.samples_sha256, **arm.settings}
    return [(name.replace("_", " "), str(value)) for name, value in own.items() if value is not None]


def _figure(arm: ArmReport, name: str) -> str:
    figure = next((each for each in arm.figures if each.name == name), None)
    return "-" if figure is None else in_words(figure)


def in_words(figure: FigureReport) -> str:
    """``12.34 ± 0.05``"""
    return f"{figure.value:.4g}" if figure.error is None else f"{figure.value:.4g} ± {figure.error:.2g}"
