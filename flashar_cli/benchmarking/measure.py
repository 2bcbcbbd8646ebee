"""One arm at one batch size: made ready, warmed up, timed, its launches counted; and what of it is reported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median

import torch

from flashar_cli.benchmarking.arms import UPSTREAM, Sampler, prepare, split_arm
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.benchmarking.published.upstream import Upstream
from flashar_cli.benchmarking.reports.document import SLOWER, ArmReport, Seconds, Speedup
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.costs import Floor, Workload
from flashar_cli.decoding.decoders import DECODERS
from flashar_cli.decoding.levels import LEVELS
from flashar_cli.machine.launches import Launches, count_launches, counted_calls
from flashar_cli.machine.peaks import ArmMemory
from flashar_cli.machine.rates import Rates
from flashar_cli.machine.timing import Stopwatch
from flashar_cli.models.flashar import FlasharModel


@dataclass
class Measured:
    """One arm, and what was measured of it so far."""

    sampler: Sampler
    device: torch.device
    memory: ArmMemory
    prepare_s: float
    runs_s: list[list[float]] = field(default_factory=list)  # of each: prefix, decode, with a tokenizer token decode
    warmup_s: list[float] = field(default_factory=list)
    num_forwards: int = 0
    launches: Launches | None = None

    def warm_up(self) -> None:
        """A run before the timed ones, in which forwards are counted."""
        forwards = self.sampler.forwards
        with nullcontext([forwards]) if isinstance(forwards, int) else counted_calls(forwards) as count:
            self.warmup_s.append(sum(run_once(self.sampler, self.device)))
        self.num_forwards = count[0]

    def run(self) -> None:
        """One timed run."""
        with self.memory.counted():
            self.runs_s.append(run_once(self.sampler, self.device))

    def count_launches(self) -> None:
        """One more, slower run, after all timed ones: a profiler may stay attached to the device."""
        if self.sampler.launches_seen:
            self.launches = count_launches(lambda: run_once(self.sampler, self.device), self.device)


def prepared(name: str, subject: BenchModel, batch: Batch, upstream: Upstream | None, memory: ArmMemory) -> Measured:
    """Makes an arm ready: builds, compiles and captures."""
    device, start = subject.model.device, time.perf_counter()
    with memory.counted(keeps=True):
        if name == UPSTREAM:
            assert upstream is not None, "the arm upstream is only planned with its sampler"
            sampler = upstream.prepare(subject, batch)
        else:
            sampler = prepare(subject, name, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Measured(sampler, device, memory, time.perf_counter() - start)


def run_once(sampler: Sampler, device: torch.device) -> list[float]:
    """Samples one batch; seconds of prefix, decode and, with a tokenizer, token decode."""
    watch = Stopwatch(device)
    watch.mark()
    tokens_BHW = sampler.sample(watch.mark)
    watch.mark()
    if sampler.to_pixels is not None:
        sampler.to_pixels(tokens_BHW)
        watch.mark()
    return watch.durations_s()


def floor_of(model: FlasharModel, arm: str, work: Workload, rates: Rates) -> Floor:
    """The least time that an arm needs for one batch, and why."""
    return Floor.of(DECODERS[decoder_of(arm, model.config.family)].costs(model.config, work), rates)


def arm_report(name: str, arm: Measured, batch_size: int, floor: Floor, rates: Rates) -> ArmReport:
    """All numbers of an arm."""
    decoder, level = split_arm(name)
    generation_s = Seconds.of([prefix + decode for prefix, decode, *_ in arm.runs_s])
    token_decode_s = [run[2] for run in arm.runs_s if len(run) > 2]
    read_bytes_per_s = floor.read_bytes / generation_s.median_s
    return ArmReport(
        name=name,
        decoder=decoder,
        level=level,
        forwards_per_image=arm.num_forwards,
        launches=arm.launches,
        prepare_s=arm.prepare_s,
        token_generation_s=generation_s,
        prefix_s=Seconds.of([run[0] for run in arm.runs_s]),
        decode_s=Seconds.of([run[1] for run in arm.runs_s]),
        token_decode_s=Seconds.of(token_decode_s) if token_decode_s else None,
        images_per_s=batch_size / generation_s.median_s,
        warmup_s=tuple(arm.warmup_s),
        peak_memory_bytes=arm.memory.peak_bytes,
        read_bytes=floor.read_bytes,
        flops=floor.flops,
        read_bytes_per_s=read_bytes_per_s,
        share_of_copy=read_bytes_per_s / rates.copy_bytes_per_s,
        floor_s=floor.seconds,
        times_floor=generation_s.median_s / floor.seconds,
    )


def speedups_of(reports: tuple[ArmReport, ...], arms: Mapping[str, Measured]) -> Iterator[Speedup]:
    """Every decoder over raster at the same level, from the worst level on; then everything over upstream."""
    named = {report.name: report for report in reports}
    pairs = [(f"{fast}-{level}", f"{SLOWER}-{level}") for level in LEVELS for fast in DECODERS if fast != SLOWER]
    pairs += [(name, UPSTREAM) for name in named if name != UPSTREAM]
    for fast, slow in pairs:
        if fast in named and slow in named:
            has_pixels = all(arms[name].sampler.to_pixels is not None for name in (slow, fast))
            slow_s, fast_s = (median(map(sum, arms[name].runs_s)) for name in (slow, fast))
            yield Speedup(
                arm=fast,
                over=slow,
                token_generation=named[slow].token_generation_s.median_s / named[fast].token_generation_s.median_s,
                with_token_decode=slow_s / fast_s if has_pixels else None,
                floor=named[slow].floor_s / named[fast].floor_s,
            )
