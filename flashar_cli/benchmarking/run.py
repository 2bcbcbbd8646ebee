"""The protocol: all arms in one process, on one model, in turn.

Letters: B images, N = H*W cells, P prefix tokens, F text-feature dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking import environment, timing
from flashar_cli.benchmarking.arms import LEVELS, UPSTREAM, Sampler, split_arm
from flashar_cli.benchmarking.floor import Floor, Rates, forward_costs
from flashar_cli.benchmarking.launches import count_launches
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.benchmarking.published.upstream import Upstream
from flashar_cli.benchmarking.reports.document import (
    Agreement,
    ArmReport,
    BatchReport,
    BenchReport,
    Launches,
    RatesReport,
    Seconds,
    Settings,
    Speedup,
    Subject,
)
from flashar_cli.benchmarking.subject import BenchModel, set_grid
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams, uniform_table


@dataclass(frozen=True)
class Plan:
    """What takes turns, how often, how many pictures at once, and with which sampling.

    ``grids`` empty: the model's own. ``sweep_end`` says why a sweep has no larger batch sizes; a size that does not fit
    ends a sweep on its grid, while it fails a bench of chosen sizes.
    """

    batch_sizes: tuple[int, ...]
    repeats: int
    warmup: int
    params: SamplingParams
    seed: int
    arms: tuple[str, ...] = ("raster-eager", "flashar-eager")
    grids: tuple[Grid, ...] = ()
    sweep_end: str | None = None


@dataclass
class Measured:
    """One arm at one batch size, and what was measured of it so far. Each run is (prefix, decode, token decode)."""

    sampler: Sampler
    prepare_s: float
    runs_s: list[list[float]] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    num_forwards: int = 0
    launches: Launches | None = None
    peak_memory_bytes: int | None = None


@torch.inference_mode()
def bench(
    subject: BenchModel,
    plan: Plan,
    rates: Rates,
    on_run: Callable[[], None] = lambda: None,
    upstream: Upstream | None = None,
    agreements: tuple[Agreement, ...] = (),
) -> BenchReport:
    """Measures every arm on every grid at every batch size. ``on_run`` is called after each run, warm-up included;
    ``agreements`` go into the report as they are.

    Raises FlasharError for a batch that does not fit into memory, unless it ends a sweep.
    """
    model = subject.model
    batches: list[BatchReport] = []
    grids = plan.grids or (model.config.order_grid,)
    agreement, sweep_end = None, plan.sweep_end
    for grid in grids:
        set_grid(subject, grid)
        if upstream is not None and agreement is None:
            conditions = example_conditions(model.config, 1, plan.seed).to(model.device)
            agreement = upstream.check(subject, conditions, plan.params.cfg_scale)
        for size in plan.batch_sizes:
            try:
                batches.append(_bench_batch(subject, plan, size, rates, on_run, upstream))
            except torch.OutOfMemoryError:
                if plan.sweep_end is None or size == plan.batch_sizes[0]:
                    message = f"a batch of {size} on {grid} tokens does not fit into memory; use smaller ones"
                    raise FlasharError(message) from None
                sweep_end = f"out of memory at batch {size} on {grid} tokens"
                torch.cuda.empty_cache()
                break
    return BenchReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=environment.command(),
        variables=environment.variables(),
        hardware=environment.hardware(model.device),
        software=environment.software(),
        model=_describe(subject, grids),
        settings=_settings(subject, plan),
        rates=RatesReport(
            copy_bytes_per_s=rates.copy_bytes_per_s,
            matmul_flops_per_s=rates.matmul_flops_per_s,
        ),
        peak_rss_bytes=timing.peak_rss_bytes(),
        upstream=agreement,
        agreements=agreements,
        sweep_end=sweep_end,
        batches=tuple(batches),
    )


def num_runs(plan: Plan) -> int:
    """Whole decodes that ``bench`` will do."""
    return max(1, len(plan.grids)) * len(plan.batch_sizes) * len(plan.arms) * (plan.warmup + plan.repeats)


def example_conditions(config: ModelConfig, batch_size: int, seed: int) -> Conditions:
    """Something to draw: classes in turn, or random caption features of full length."""
    prefix = config.prefix
    if isinstance(prefix, ClassPrefix):
        return Conditions(labels=torch.arange(batch_size) % prefix.num_classes)
    generator = torch.Generator().manual_seed(seed)
    features_BPF = torch.randn(batch_size, prefix.length, prefix.feature_dim, generator=generator)
    return Conditions(features=features_BPF, mask=torch.ones(batch_size, prefix.length))


def floor_of(model: FlasharModel, arm: str, batch_size: int, params: SamplingParams, rates: Rates) -> Floor:
    """What an arm can't do without for one batch."""
    order = choose_order(model, decoder_of(arm, model.config.family))
    rows = batch_size * (2 if params.guided else 1)
    costs = forward_costs(model.config, order, rows, model.dtype.itemsize, is_quantized(model))
    return Floor.of(costs, rates)


def run_once(sampler: Sampler, device: torch.device) -> list[float]:
    """Draws one batch; seconds of prefix, decode and, with a tokenizer, token decode."""
    watch = timing.Stopwatch(device)
    watch.mark()
    codes_BHW = sampler.draw(watch.mark)
    watch.mark()
    if sampler.to_pixels is not None:
        sampler.to_pixels(codes_BHW)
        watch.mark()
    return watch.durations_s()


@contextmanager
def counted_calls(module: nn.Module) -> Iterator[list[int]]:
    """Counts forwards of a module in the one entry of the list."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    handle = module.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _bench_batch(
    subject: BenchModel,
    plan: Plan,
    batch_size: int,
    rates: Rates,
    on_run: Callable[[], None],
    upstream: Upstream | None,
) -> BatchReport:
    model = subject.model
    device = model.device
    conditions = example_conditions(model.config, batch_size, plan.seed).to(device)
    uniform_BN = uniform_table(plan.seed, 0, batch_size, model.config.order_grid.num_cells).to(device)
    arms = {name: _prepared(name, subject, conditions, plan, uniform_BN, upstream) for name in plan.arms}

    for arm in arms.values():
        _warm_up(arm, plan, device, on_run)
    for _ in range(plan.repeats):
        for arm in arms.values():
            timing.reset_peak_memory(device)
            arm.runs_s.append(run_once(arm.sampler, device))
            peak = timing.peak_memory_bytes(device)
            arm.peak_memory_bytes = None if peak is None else max(peak, arm.peak_memory_bytes or 0)
            on_run()

    reports = tuple(
        _arm_report(name, arm, batch_size, floor_of(model, name, batch_size, plan.params, rates), rates)
        for name, arm in arms.items()
    )
    speedups = tuple(_speedups(reports, arms))
    headline = next((ratio for ratio in reversed(speedups) if split_arm(ratio.over)[0] == "raster"), None)
    return BatchReport(
        grid=str(model.config.order_grid),
        batch_size=batch_size,
        speedup=headline.token_generation if headline else None,
        speedup_with_token_decode=headline.with_token_decode if headline else None,
        speedups=speedups,
        arms=reports,
    )


def _prepared(
    name: str,
    subject: BenchModel,
    conditions: Conditions,
    plan: Plan,
    uniform_BN: Tensor,
    upstream: Upstream | None,
) -> Measured:
    decoder, level = split_arm(name)
    start = time.perf_counter()
    if level is None:
        assert upstream is not None, "the arm upstream is only planned with its sampler"
        sampler = upstream.prepare(subject, conditions, plan.params, plan.seed)
    else:
        order = choose_order(subject.model, decoder)
        sampler = LEVELS[level].prepare(subject, order, conditions, plan.params, uniform_BN)
    if subject.model.device.type == "cuda":
        torch.cuda.synchronize(subject.model.device)
    return Measured(sampler, time.perf_counter() - start)


def _warm_up(arm: Measured, plan: Plan, device: torch.device, on_run: Callable[[], None]) -> None:
    """The first run also counts forwards and launches, which makes it slower."""

    def first() -> None:
        arm.warmup_s.append(sum(run_once(arm.sampler, device)))

    def counted() -> None:
        if arm.sampler.launches_seen:
            arm.launches = count_launches(first, device)
        else:
            first()

    if isinstance(arm.sampler.forwards, int):
        arm.num_forwards = arm.sampler.forwards
        counted()
    else:
        with counted_calls(arm.sampler.forwards) as count:
            counted()
        arm.num_forwards = count[0]
    on_run()
    for _ in range(plan.warmup - 1):
        arm.warmup_s.append(sum(run_once(arm.sampler, device)))
        on_run()


def _arm_report(name: str, arm: Measured, batch_size: int, floor: Floor, rates: Rates) -> ArmReport:
    decoder, level = split_arm(name)
    generation_s = Seconds.of([prefix + decode for prefix, decode, *_ in arm.runs_s])
    token_decode_s = [run[2] for run in arm.runs_s if len(run) > 2]
    read_bytes_per_s = floor.read_bytes / generation_s.median_s
    return ArmReport.model_validate(
        {
            "name": name,
            "decoder": decoder,
            "level": level,
            "forwards_per_image": arm.num_forwards,
            "launches": arm.launches,
            "prepare_s": arm.prepare_s,
            "token_generation_s": generation_s,
            "prefix_s": Seconds.of([run[0] for run in arm.runs_s]),
            "decode_s": Seconds.of([run[1] for run in arm.runs_s]),
            "token_decode_s": Seconds.of(token_decode_s) if token_decode_s else None,
            "images_per_s": batch_size / generation_s.median_s,
            "warmup_s": tuple(arm.warmup_s),
            "peak_memory_bytes": arm.peak_memory_bytes,
            "read_bytes": floor.read_bytes,
            "flops": floor.flops,
            "read_bytes_per_s": read_bytes_per_s,
            "share_of_copy": read_bytes_per_s / rates.copy_bytes_per_s,
            "floor_s": floor.seconds,
            "times_floor": generation_s.median_s / floor.seconds,
        }
    )


def _speedups(reports: tuple[ArmReport, ...], arms: Mapping[str, Measured]) -> Iterator[Speedup]:
    """FlashAR over raster at the same level, from the worst level on; then everything over upstream."""
    named = {report.name: report for report in reports}
    pairs = [(f"flashar-{level}", f"raster-{level}") for level in LEVELS]
    pairs += [(name, UPSTREAM) for name in named if name != UPSTREAM]
    for fast, slow in pairs:
        if fast in named and slow in named:
            yield Speedup(
                arm=fast,
                over=slow,
                token_generation=named[slow].token_generation_s.median_s / named[fast].token_generation_s.median_s,
                with_token_decode=_with_token_decode(arms[slow], arms[fast]),
                floor=named[slow].floor_s / named[fast].floor_s,
            )


def _with_token_decode(slow: Measured, fast: Measured) -> float | None:
    if slow.sampler.to_pixels is None or fast.sampler.to_pixels is None:
        return None
    slow_s, fast_s = (Seconds.of([sum(run) for run in arm.runs_s]).median_s for arm in (slow, fast))
    return slow_s / fast_s


def _describe(subject: BenchModel, grids: tuple[Grid, ...]) -> Subject:
    config = subject.model.config
    assert config.branch is not None, "a branch is added where the checkpoint has none"
    branch = config.branch
    return Subject(
        name=subject.name,
        family=config.family,
        weights=subject.weights,
        grid=", ".join(map(str, grids)),
        num_parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        branch=f"layer {branch.layer}, depth {branch.depth}, gate {branch.gate}",
        branch_added=subject.branch_added,
    )


def _settings(subject: BenchModel, plan: Plan) -> Settings:
    model = subject.model
    return Settings(
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        quantize=subject.quantize,
        num_threads=torch.get_num_threads(),
        arms=plan.arms,
        batch_sizes=plan.batch_sizes,
        repeats=plan.repeats,
        warmup=plan.warmup,
        cfg_scale=plan.params.cfg_scale,
        temperature=plan.params.temperature,
        top_k=plan.params.top_k,
        top_p=plan.params.top_p,
        seed=plan.seed,
        num_interop_threads=torch.get_num_interop_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        tf32=torch.backends.cuda.matmul.allow_tf32,
    )
