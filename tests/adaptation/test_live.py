"""What the live view shows at each moment of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flashar_cli.adaptation.live import LiveView
from tests.adaptation.runs import run_records


def screen(view: LiveView, width: int = 100) -> str:
    console = Console(file=io.StringIO(), record=True, force_terminal=True, width=width)
    console.print(view.render())
    return console.export_text()


def fed(count: int) -> LiveView:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=100))
    for record in run_records()[:count]:
        view(record["kind"], {key: value for key, value in record.items() if key != "kind"})
    return view


def test_before_the_first_step() -> None:
    assert screen(fed(0)).strip() == ""
    assert "first step" in screen(fed(1))
    assert "raster 2.0000" in screen(fed(2))


def test_in_the_middle_of_a_run() -> None:
    text = screen(fed(9))  # start, validation, four steps, validation, two steps
    assert "stage2 (2 of 2)" in text and "6 / 10" in text
    assert "fused 3.5000" in text and "vertical 4.0000" in text and "total 4.0000" in text
    assert "after 4 steps" in text and "raster 2.3000" in text
    assert "mean 0.550" in text and "spread 0.050" in text
    assert "16 images/s" in text and "32 GFLOP/s, 50% of the measured peak" in text
    assert "1.00 GiB" in text and "0:00:02" in text


@pytest.mark.parametrize("width", (40, 200))
def test_any_width(width: int) -> None:
    assert max(len(line) for line in screen(fed(9), width).splitlines()) <= width


def test_it_draws_and_removes_itself() -> None:
    file = io.StringIO()
    with LiveView(Console(file=file, force_terminal=True, width=100)) as view:
        for record in run_records():
            view(record["kind"], record)
    assert "10 / 10" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the last line is erased
