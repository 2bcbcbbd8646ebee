"""Clocks and quartiles."""

import time

import pytest
import torch

from flashar_cli.machine import rates
from flashar_cli.machine.peaks import peak_memory_bytes, peak_rss_bytes
from flashar_cli.machine.rates import measure_rates
from flashar_cli.machine.timing import Stopwatch, quartiles

CPU = torch.device("cpu")


def test_quartiles() -> None:
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


def test_stopwatch_times_each_phase() -> None:
    watch = Stopwatch(CPU)
    watch.mark()
    time.sleep(0.02)
    watch.mark()
    watch.mark()
    first, second = watch.durations_s()
    assert first >= 0.02 > second


def test_memory_of_this_process() -> None:
    assert peak_memory_bytes(CPU) is None
    assert 10 * 2**20 < peak_rss_bytes() < 2**40


def test_rates_are_those_of_a_real_machine() -> None:
    rates = measure_rates(CPU, torch.float32)
    assert 1e7 < rates.copy_bytes_per_s < 1e14
    assert 1e7 < rates.matmul_flops_per_s < 1e17


@pytest.mark.gpu
def test_device_events_wait_for_the_work() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    matrix = torch.ones(8192, 8192, device=device)
    _ = matrix @ matrix
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(10):
        _ = matrix @ matrix
    watch.mark()
    # 11 TFLOP: no device does them in a millisecond, though queueing them takes less.
    assert watch.durations_s()[0] > 1e-3


@pytest.mark.parametrize(("flops_per_s", "num_sizes"), ((1e8, 1), (5e9, 3), (1e15, 4)))
def test_a_slow_product_is_a_small_one(flops_per_s, num_sizes, monkeypatch):
    timed = []

    def best_s(work, device, repeats):
        timed.append(len(work()))
        return 2 * timed[-1] ** 3 / flops_per_s

    monkeypatch.setattr(rates, "best_s", best_s)
    assert rates.matmul_flops_per_s(torch.device("cpu"), torch.float32) == pytest.approx(flops_per_s)
    assert timed == [256, 512, 1024, 2048][:num_sizes]
