"""Clocks: device events on CUDA, so that queued work is not mistaken for done work; ``perf_counter`` on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


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
