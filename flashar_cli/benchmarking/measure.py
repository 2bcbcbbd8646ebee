"""One arm at one batch size: made ready, warmed up, timed, its launches counted; and what of it is reported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median, median_low

import torch

from flashar_cli.benchmarking.arms import UPSTREAM, Sampler, our_arms, prepare, split_arm
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.reports.document import ArmReport, Seconds, Speedup
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.costs import Floor, Workload
from flashar_cli.decoding.decoders import get_decoder
from flashar_cli.decoding.levels import LEVELS
from flashar_cli.machine.launches import Launches, count_launches, counted_calls
from flashar_cli.machine.peaks import ArmMemory
from flashar_cli.machine.rates import Rates
from flashar_cli.machine.timing import Stopwatch
from flashar_cli.models.base import TokenModel


@dataclass(frozen=True)
class Run:
    """The seconds of the parts of one run: to the logits of the prefix, from there to those of each further step that
    is marked and to the end of sampling, and of tokens to pixels (0 without a tokenizer).
    """

    prefix: float
    steps: tuple[float, ...]
    pixels: float

    @property
    def generation(self) -> float:
        """Prefix and all steps."""
        return self.prefix + sum(self.steps)

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.generation + self.pixels


@dataclass
class Measured:
    """One arm, and what was measured of it so far."""

    sampler: Sampler
    device: torch.device
    memory: ArmMemory
    prepare_s: float
    runs: list[Run] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    num_forwards: list[int] = field(default_factory=list)
    launches: Launches | None = None

    def warm_up(self) -> None:
        """A run before the timed ones, in which forwards are counted."""
        self.warmup_s.append(self._counted().seconds)

    def run(self) -> None:
        """One timed run. Forwards are counted too where they vary."""
        with self.memory.counted():
            self.runs.append(self._counted() if self.sampler.forwards_vary else run_once(self.sampler, self.device))

    def _counted(self) -> Run:
        forwards = self.sampler.forwards
        with nullcontext([forwards]) if isinstance(forwards, int) else counted_calls(forwards) as count:
            run = run_once(self.sampler, self.device)
        self.num_forwards.append(count[0])
        return run

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


def run_once(sampler: Sampler, device: torch.device) -> Run:
    """Samples one batch and makes its pixels."""
    watch = Stopwatch(device)
    watch.mark()
    tokens = sampler.sample(watch.mark)
    watch.mark()
    if sampler.to_pixels is not None:
        sampler.to_pixels(tokens)
        watch.mark()
    prefix, *steps = watch.durations_s()
    pixels = 0.0 if sampler.to_pixels is None else steps.pop()
    return Run(prefix, tuple(steps), pixels)


def floor_of(model: TokenModel, arm: str, work: Workload, rates: Rates) -> Floor:
    """The least time that an arm needs for one batch, and why."""
    return Floor.of(get_decoder(decoder_of(arm, model.config.family)).costs(model.config, work), rates)


def arm_report(name: str, arm: Measured, batch_size: int, floor: Floor, rates: Rates) -> ArmReport:
    """All numbers of an arm."""
    decoder, level = split_arm(name)
    generation_s = Seconds.of([run.generation for run in arm.runs])
    has_pixels = arm.sampler.to_pixels is not None
    by_step = zip(*((run.prefix, *run.steps[:-1]) for run in arm.runs), strict=True)
    read_bytes_per_s = floor.read_bytes / generation_s.median_s
    return ArmReport(
        name=name,
        decoder=decoder,
        level=level,
        forwards_per_image=median_low(arm.num_forwards),
        launches=arm.launches,
        prepare_s=arm.prepare_s,
        token_generation_s=generation_s,
        prefix_s=Seconds.of([run.prefix for run in arm.runs]),
        decode_s=Seconds.of([sum(run.steps) for run in arm.runs]),
        step_s=tuple(map(median, by_step)) if arm.sampler.marks_steps else None,
        token_decode_s=Seconds.of([run.pixels for run in arm.runs]) if has_pixels else None,
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
    """Decoders over their baselines at the same level, from the worst level on; then everything over upstream."""
    named = {report.name: report for report in reports}
    decoders = dict.fromkeys(decoder for _, decoder, _ in our_arms(list(named)))
    compared = [(name, slow) for name in decoders for slow in get_decoder(name).baselines if slow != name]
    pairs = [(f"{fast}-{level}", f"{slow}-{level}") for level in LEVELS for fast, slow in compared]
    pairs += [(name, UPSTREAM) for name in named if name != UPSTREAM]
    for fast, slow in pairs:
        if fast in named and slow in named:
            has_pixels = all(arms[name].sampler.to_pixels is not None for name in (slow, fast))
            slow_s, fast_s = (median(run.seconds for run in arms[name].runs) for name in (slow, fast))
            yield Speedup(
                arm=fast,
                over=slow,
                token_generation=named[slow].token_generation_s.median_s / named[fast].token_generation_s.median_s,
                with_token_decode=slow_s / fast_s if has_pixels else None,
                floor=named[slow].floor_s / named[fast].floor_s,
            )
