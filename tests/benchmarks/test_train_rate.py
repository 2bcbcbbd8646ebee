"""Training's utilisation: operations really done, by PyTorch's own counter, in seconds really taken."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_rate
from flashar_cli.config.recipe import EngineSettings
from tests.tiny_models import random_config

CPU = torch.device("cpu")
SIZE = 4


def run(steps: int) -> tuple[dict[str, Any], int]:
    """An arm, and the operations of all that it ran."""
    config = random_config(4, 4, branch=False, tokenizer=False)
    with FlopCounterMode(display=False) as counter:
        arm = train_rate.measure(config, EngineSettings(micro_batch_size=SIZE), steps, CPU, torch.float32, peak=1e12)
    return arm, counter.get_total_flops()


def test_share_of_the_peak_is_work_over_time() -> None:
    (_, fewer), (arm, more) = run(1), run(4)
    seconds = statistics.median(arm["step_s"])
    assert len(arm["step_s"]) == 4 and seconds > 0
    assert arm["images_per_s"] == pytest.approx(SIZE / seconds)
    # Attention in PyTorch's kernel for CPUs is not counted, norms' gains neither.
    assert arm["share_of_matmul"] == pytest.approx((more - fewer) / 3 / seconds / 1e12, rel=0.2)
    assert arm["share_of_matmul"] < 1
