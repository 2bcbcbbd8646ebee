"""Batch sizes up to the limit of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flashar_cli.benchmarking import plan as planning
from flashar_cli.config import Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from tests.benchmarking.test_run import plan, subject


def test_sweep_stops_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    benched, chosen = subject(), plan()
    each = planning.bytes_per_image(benched, chosen)
    assert each > planning.bytes_per_image(replace(benched, tokenizer=None), chosen), "images take memory"
    assert each > planning.bytes_per_image(benched, replace(chosen, sampling=Sampling())), "guidance doubles the rows"
    assert each < planning.bytes_per_image(benched, replace(chosen, grids=(Grid(2, 2), Grid(9, 9))))
    assert each < planning.bytes_per_image(benched, replace(chosen, arms=("raster-eager",) * 99)), "each has a cache"
    monkeypatch.setattr(planning, "free_bytes", lambda device: 11 * each)
    assert planning.sizes_that_fit(benched, chosen)[0] == (1, 2, 4, 8)
    monkeypatch.setattr(planning, "free_bytes", lambda device: 0)
    sizes, end = planning.sizes_that_fit(benched, chosen)
    assert sizes == (1,) and "batch 2 on 3x5 tokens" in end


def test_what_cannot_fit_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    benched = subject()
    each = planning.bytes_per_image(benched, plan())
    monkeypatch.setattr(planning, "free_bytes", lambda device: 5 * each)
    planning.refuse_what_cannot_fit(benched, plan((1, 5)))
    with pytest.raises(FlasharError, match="--batch-sizes has 6, .* enough for 5"):
        planning.refuse_what_cannot_fit(benched, plan((6, 1)))
