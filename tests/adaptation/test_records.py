"""Times, rates and remaining time, against figures by hand."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.adaptation import records
from flashar_cli.config.recipe import Stage, StageSettings
from flashar_cli.training.flops import training_flops
from tests.adaptation.runs import BATCH_SIZE, STEP_S, run_records
from tests.tiny_models import random_config


def test_pauses_are_not_training() -> None:
    assert records.training_s(run_records()) == pytest.approx(10 * STEP_S)
    assert records.training_s(run_records(resumed_at=6)) == pytest.approx(10 * STEP_S)


def test_rates_and_time_left() -> None:
    run = run_records()
    start, steps = run[0], [record for record in run if record["kind"] == "step"]
    assert records.flops_per_s(start, steps[0]) == BATCH_SIZE / STEP_S * 1e9
    assert records.peak_share(start, steps[0]) == pytest.approx(0.25)
    assert records.peak_share(start | {"num_processes": 2}, steps[0]) == pytest.approx(0.125)
    # Three steps of stage 1 are left, and six of stage 2 at twice the operations.
    assert records.remaining_s(start, steps[0]) == pytest.approx((3 + 6 * 2) * STEP_S)
    assert records.remaining_s(start, steps[5]) == pytest.approx(4 * STEP_S)
    assert records.remaining_s(start, steps[-1]) == 0


def test_start_record() -> None:
    stages = [Stage("stage1", 2, StageSettings(backbone_lr_factor=0.0)), Stage("stage2", 3, StageSettings())]
    config = random_config(3, 5)
    record = records.start_record(config, stages, 4, 1, torch.device("cpu"), torch.float32)
    assert record["stage_steps"] == {"stage1": 2, "stage2": 3} and record["step"] == 1
    assert record["flops_per_image"] == {stage.name: training_flops(config, stage.settings) for stage in stages}
    assert record["matmul_flops_per_s"] > 1e7
    stamped = records.stamped(record, torch.device("cpu"))
    assert stamped["peak_memory_bytes"] > 2**20 and stamped["wall_time"] > 1.7e9


def test_rates_are_readable() -> None:
    assert records.flops_text(2.5e12) == "2.5 TFLOP/s" and records.flops_text(72.8e9) == "72.8 GFLOP/s"
