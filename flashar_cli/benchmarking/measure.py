"""One arm at one batch size: made ready, warmed up, timed, and its launches counted.

Letters: B images, N = H*W cells.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashar_cli.benchmarking.arms import Sampler, prepare, split_arm
from flashar_cli.benchmarking.launches import count_launches, counted_calls
from flashar_cli.benchmarking.memory import ArmMemory
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.published.upstream import Upstream
from flashar_cli.benchmarking.reports.document import Launches
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.benchmarking.timing import Stopwatch
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.models.prefix import Conditions


@dataclass
class Measured:
    """One arm, and what was measured of it so far. Each run is (prefix, decode, token decode) in seconds."""

    sampler: Sampler
    device: torch.device
    memory: ArmMemory
    prepare_s: float
    runs_s: list[list[float]] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    num_forwards: int = 0
    launches: Launches | None = None

    def warm_up(self) -> None:
        """A whole run that is not among the timed ones; counts forwards where they can be seen."""
        if isinstance(self.sampler.forwards, int):
            self.num_forwards = self.sampler.forwards
            self.warmup_s.append(sum(run_once(self.sampler, self.device)))
            return
        with counted_calls(self.sampler.forwards) as count:
            self.warmup_s.append(sum(run_once(self.sampler, self.device)))
        self.num_forwards = count[0]

    def run(self) -> None:
        """One timed run."""
        with self.memory.counted():
            self.runs_s.append(run_once(self.sampler, self.device))

    def count_launches(self) -> None:
        """One more run, slower than it is: after all timed ones, as a profiler may stay attached to the device."""
        if self.sampler.launches_seen:
            self.launches = count_launches(lambda: run_once(self.sampler, self.device), self.device)


def prepared(
    name: str,
    subject: BenchModel,
    conditions: Conditions,
    plan: Plan,
    uniform_BN: Tensor,
    upstream: Upstream | None,
    memory: ArmMemory,
) -> Measured:
    """Makes an arm ready: builds, compiles and captures. ``uniform_BN`` float32 [B, N] feeds its sampling."""
    decoder, level = split_arm(name)
    device = subject.model.device
    start = time.perf_counter()
    with memory.counted(keeps=True):
        if level is None:
            assert upstream is not None, "the arm upstream is only planned with its sampler"
            sampler = upstream.prepare(subject, conditions, plan.params, plan.seed)
        else:
            order = choose_order(subject.model, decoder)
            sampler = prepare(subject, level, order, conditions, plan.params, uniform_BN)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Measured(sampler, device, memory, time.perf_counter() - start)


def run_once(sampler: Sampler, device: torch.device) -> list[float]:
    """Draws one batch; seconds of prefix, decode and, with a tokenizer, token decode."""
    watch = Stopwatch(device)
    watch.mark()
    codes_BHW = sampler.draw(watch.mark)
    watch.mark()
    if sampler.to_pixels is not None:
        sampler.to_pixels(codes_BHW)
        watch.mark()
    return watch.durations_s()
