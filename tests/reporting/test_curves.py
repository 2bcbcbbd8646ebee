"""Curves from the records of a run."""

from __future__ import annotations

import json

import pytest

from flashar_cli.reporting import curves
from flashar_cli.reporting.figures import to_png, to_svg
from flashar_cli.training.metrics import MetricsFile, read_records
from tests.adaptation.runs import PROBE, run_records

FIGURES = (curves.loss_figure, curves.gate_figure, curves.learning_rate_figure, curves.speed_figure)


@pytest.mark.parametrize("resumed_at", (None, 0, 6))
def test_figures_of_a_run(resumed_at) -> None:
    records = run_records(resumed_at)
    for draw in FIGURES:
        assert to_png(draw(records)).startswith(b"\x89PNG")
    svg = to_svg(curves.loss_figure(records), "loss", 'losses "all"')
    assert svg.startswith("<svg role=") and svg.endswith("</svg>") and "losses &quot;all&quot;" in svg
    assert ("resumed" in svg) == (resumed_at is not None)
    assert "stage2" in svg and "stage1" not in svg


def test_lines_hold_the_records() -> None:
    axes = curves.loss_figure(run_records()).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["raster"].get_xdata()) == [0, 4, 10]
    assert list(lines["raster"].get_ydata()) == pytest.approx([2.0, 2.3, 2.9])
    training = next(line for line in axes.get_lines() if len(line.get_xdata()) == 10)
    assert list(training.get_xdata()) == list(range(1, 11))


def test_stages_and_resumptions() -> None:
    assert curves.stage_starts(run_records()) == {"stage2": 4}
    assert curves.resumptions(run_records()) == []
    assert curves.resumptions(run_records(resumed_at=6)) == [6]


def test_what_a_resumed_file_says(tmp_path) -> None:
    """A killed run's last steps are done again; each is drawn once."""
    path = tmp_path / "metrics.jsonl"
    before = [record for record in run_records() if record["kind"] != "step" or record["step"] < 8]
    path.write_text("".join(json.dumps(record) + "\n" for record in before) + '{"kind": "st')
    metrics = MetricsFile(path, resume_at=6)
    for record in run_records(resumed_at=6)[-6:]:
        metrics(record["kind"], {key: value for key, value in record.items() if key != "kind"})
    records = read_records(path)
    assert curves.series(records, "step", "fused")[0] == list(range(1, 11))
    assert curves.resumptions(records) == [6]
    assert len(curves.loss_figure(records).axes) == 1


def test_long_lines_are_thinned_to_means() -> None:
    xs, ys = curves.thinned((list(range(1000)), [float(k % 2) for k in range(1000)]), most=100)
    assert len(xs) == len(ys) == 100
    assert set(ys) == {0.5} and xs[0] == 4.5 and xs[-1] == 994.5
    assert curves.thinned(([1.0], [2.0])) == ([1.0], [2.0])


def test_probe_figure() -> None:
    axes = curves.probe_figure(PROBE).axes[0]
    lower = next(line for line in axes.get_lines() if line.get_label() == "lower neighbour")
    assert list(lower.get_ydata()) == [4.0, 3.0, 2.0]
