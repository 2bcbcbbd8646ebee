"""What is reported of an arm, from made-up times."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.benchmarking.arms import Sampler
from flashar_cli.benchmarking.measure import Measured, Run, arm_report, speedups_of
from flashar_cli.decoding.costs import Floor
from flashar_cli.machine.peaks import ArmMemory
from flashar_cli.machine.rates import Rates

RATES = Rates(copy_bytes_per_s=1000.0, matmul_flops_per_s=1.0)
RUNS = {
    "scale-eager": [Run(1.0, (2.0, 3.0, 4.0), 5.0), Run(1.0, (2.0, 3.0, 4.0), 5.0)],
    "truncate-eager": [Run(1.0, (1.0, 0.5), 1.5)],
}
FLOORS = {"scale-eager": Floor(3, 600, 60, 2.0, 3), "truncate-eager": Floor(2, 400, 40, 0.5, 2)}


def measured(name: str, with_pixels: bool = True) -> Measured:
    sampler = Sampler(
        lambda mark: torch.zeros(1), (lambda tokens: tokens) if with_pixels else None, 3, marks_steps=True
    )
    device = torch.device("cpu")
    arm = Measured(sampler, device, ArmMemory(device), 0.25)
    arm.runs, arm.num_forwards = RUNS[name], [3]
    return arm


@pytest.mark.parametrize("batch_size", (1, 4))
def test_an_arm_by_hand(batch_size: int) -> None:
    report = arm_report("scale-eager", measured("scale-eager"), batch_size, FLOORS["scale-eager"], RATES)
    assert (report.decoder, report.level, report.prepare_s, report.forwards_per_image) == ("scale", "eager", 0.25, 3)
    assert report.token_generation_s.raw_s == (10.0, 10.0) and report.prefix_s.median_s == 1.0
    assert report.decode_s.median_s == 9.0 and report.token_decode_s is not None
    assert report.token_decode_s.median_s == 5.0
    # From the logits of a scale to those of the next; the last mark is the end of sampling.
    assert report.step_s == (1.0, 2.0, 3.0)
    assert report.images_per_s == batch_size / 10
    assert (report.read_bytes, report.read_bytes_per_s, report.share_of_copy) == (600, 60.0, 0.06)
    assert (report.floor_s, report.times_floor) == (2.0, 5.0)


@pytest.mark.parametrize("with_pixels", (True, False))
def test_a_speed_up_by_hand(with_pixels: bool) -> None:
    arms = {name: measured(name, with_pixels) for name in RUNS}
    reports = tuple(arm_report(name, arm, 1, FLOORS[name], RATES) for name, arm in arms.items())
    (found,) = speedups_of(reports, arms)
    assert (found.arm, found.over) == ("truncate-eager", "scale-eager")
    assert found.token_generation == 10 / 2.5 and found.floor == 2.0 / 0.5
    assert found.with_token_decode == (15 / 4 if with_pixels else None)
