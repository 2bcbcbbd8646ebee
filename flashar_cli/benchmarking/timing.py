"""Clocks: device events on CUDA, so that queued work is not mistaken for done work; ``perf_counter`` on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from flashar_cli.benchmarking.floor import Rates

MIB = 2**20
MOST_PRODUCT_S = 0.5


class Stopwatch:
    """Marks points in a run; the durations between them are read once, after the run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Ends one phase and begins the next, without waiting for the device."""
        if self.device.type != "cuda":
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._events.append(event)

    def durations_s(self) -> list[float]:
        """Seconds between each mark and the next; waits for the device."""
        if self.device.type != "cuda":
            return [end - start for start, end in zip(self._times, self._times[1:], strict=False)]
        torch.cuda.synchronize(self.device)
        pairs = zip(self._events, self._events[1:], strict=False)
        return [start.elapsed_time(end) / 1000 for start, end in pairs]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25th percentile, median, 75th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def best_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of a few timed runs, after one that is not timed."""
    work()
    seconds = []
    for _ in range(repeats):
        watch = Stopwatch(device)
        watch.mark()
        work()
        watch.mark()
        seconds += watch.durations_s()
    return min(seconds)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy and matrix-product rates of this machine at this moment, in this dtype. Takes about a second."""
    return Rates(_copy_bytes_per_s(device), matmul_flops_per_s(device, dtype))


def _copy_bytes_per_s(device: torch.device) -> float:
    num_bytes = (2048 if device.type == "cuda" else 128) * MIB
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_s(lambda: target.copy_(source), device, repeats=5)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a square matrix product on this machine at this moment, in this dtype, on random numbers: where power
    limits a GPU, constant ones are multiplied faster than any model's. The largest product that takes no longer than
    MOST_PRODUCT_S counts: a CPU without instructions for a dtype would need minutes for one that fills others.
    """
    side, largest = 256, 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    while True:
        left, right = (torch.randn(side, side, dtype=dtype, device=device, generator=generator) for _ in range(2))
        seconds = best_s(partial(torch.matmul, left, right), device, repeats=5)
        if side == largest or 8 * seconds > MOST_PRODUCT_S:
            return 2 * side**3 / seconds
        side *= 2
