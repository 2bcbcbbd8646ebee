"""Curves of a run over its steps, from the records of ``metrics.jsonl``, and of a probe over the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flashar_cli.reporting.figures import COLOURS, INK, add_legend, new_figure, whole_numbers
from flashar_cli.training.metrics import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 400
Series = tuple[list[float], list[float]]


def series(records: Sequence[Record], kind: str, key: str) -> Series:
    """Steps done and values of ``key`` in the records of this kind that have it."""
    # A step record counts from 0 and is written when its step is done, so one is added.
    found = [record for record in records if record["kind"] == kind and key in record]
    return [float(record["step"] + (kind == "step")) for record in found], [float(record[key]) for record in found]


def thinned(line: Series, most: int = MOST_POINTS) -> Series:
    """At most ``most`` points: means of neighbours."""
    xs, ys = line
    if len(xs) <= most:
        return line
    means = [[float(part.mean()) for part in np.array_split(np.array(values), most)] for values in (xs, ys)]
    return means[0], means[1]


def stage_starts(records: Sequence[Record]) -> dict[str, int]:
    """Steps done when each stage after the first began."""
    starts: dict[str, int] = {}
    for record in records:
        if record["kind"] == "step":
            starts.setdefault(record["stage"], record["step"])
    return dict(list(starts.items())[1:])


def resumptions(records: Sequence[Record]) -> list[int]:
    """Steps done when the run was resumed."""
    return [record["step"] for record in records[1:] if record["kind"] == "start"]


def loss_figure(records: Sequence[Record]) -> Figure:
    """Training losses as lines, validation losses as dots."""
    figure, axes = new_figure()
    for name in ("horizontal", "vertical", "fused", "diffusion", "raster"):
        _line(axes, series(records, "step", name), COLOURS[name], alpha=0.45)
        xs, ys = series(records, "validation", name)
        axes.plot(xs, ys, "o-", color=COLOURS[name], markersize=4, linewidth=1.2, label=name)
    _line(axes, series(records, "step", "distill"), COLOURS["other"], "distillation", linestyle=":")
    return _finished(figure, axes, records, "nats per token")


def learning_rate_figure(records: Sequence[Record]) -> Figure:
    """Learning rate of what the method adds."""
    figure, axes = new_figure()
    _line(axes, series(records, "step", "lr"), COLOURS["fused"])
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:.2g}")
    return _finished(figure, axes, records, "learning rate")


def gate_figure(records: Sequence[Record]) -> Figure:
    """Mean gate with one standard deviation either side."""
    figure, axes = new_figure()
    xs, means = thinned(series(records, "step", "gate_mean"))
    _, spreads = thinned(series(records, "step", "gate_std"))
    low, high = np.subtract(means, spreads), np.add(means, spreads)
    style: Any = {"color": COLOURS["fused"], "alpha": 0.2, "linewidth": 0}
    axes.fill_between(xs, low, high, label="± one standard deviation", **style)
    axes.plot(xs, means, color=COLOURS["fused"], linewidth=1.2, label="mean")
    axes.set_ylim(0, 1)
    return _finished(figure, axes, records, "gate, 1 = horizontal")


def speed_figure(records: Sequence[Record]) -> Figure:
    """Images trained on per second."""
    figure, axes = new_figure()
    _line(axes, series(records, "step", "images_per_s"), COLOURS["fused"])
    axes.set_ylim(bottom=0)
    return _finished(figure, axes, records, "images/s")


def probe_figure(report: dict[str, Any]) -> Figure:
    """Validation loss of the probes of a ``probe.json`` over index m, for both neighbours."""
    figure, axes = new_figure(6.0, 3.6)
    layers = [row["layer"] for row in report["layers"]]
    for way, colour in (("right", COLOURS["horizontal"]), ("lower", COLOURS["vertical"])):
        losses = [row.get(f"{way}_loss", math.nan) for row in report["layers"]]
        axes.plot(layers, losses, "o-", color=colour, label=f"{way} neighbour")
    axes.axvline(report["recommended_layer"], color=COLOURS["other"], linestyle=":", label="recommended")
    axes.set_xlabel("hidden state before block m")
    axes.set_ylabel("validation loss, nats per token")
    whole_numbers(axes.xaxis)
    add_legend(axes)
    return figure


def _line(axes: Axes, line: Series, colour: str, label: str | None = None, **style: Any) -> None:
    if line[0]:
        axes.plot(*thinned(line), color=colour, label=label, linewidth=1.2, **style)


def _finished(figure: Figure, axes: Axes, records: Sequence[Record], unit: str) -> Figure:
    """Marks where stages begin and runs were resumed, and names the axes."""
    for name, step in stage_starts(records).items():
        axes.axvline(step, color=INK, linewidth=1, alpha=0.5)
        place: Any = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "left"}
        axes.annotate(f" {name}", (step, 1), color=INK, fontsize=8, **place)
    for index, step in enumerate(resumptions(records)):
        axes.axvline(step, color=INK, linewidth=1, alpha=0.4, linestyle="--", label=None if index else "resumed")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(unit)
    whole_numbers(axes.xaxis)
    add_legend(axes, ncols=2)
    return figure
