"""The protocol: all arms in one process, on one model, in turn."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from flashar_cli.benchmarking.measure import arm_report, floor_of, prepared, speedups_of
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.reports.document import (
    Agreement,
    BatchReport,
    BenchReport,
    Settings,
    Subject,
    headline_of,
)
from flashar_cli.benchmarking.subject import BenchModel, dtype_name
from flashar_cli.decoding.failures import is_out_of_memory
from flashar_cli.decoding.pixels import pixel_dtype
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine import environment, peaks
from flashar_cli.machine.rates import Rates


@torch.inference_mode()
def bench(
    subject: BenchModel,
    plan: Plan,
    rates: Rates,
    on_run: Callable[[], None] = lambda: None,
    upstream: Upstream | None = None,
    agreements: tuple[Agreement, ...] = (),
    on_batch: Callable[[BenchReport], None] = lambda report: None,
) -> BenchReport:
    """Measures every arm on every grid at every batch size. ``on_run`` is called after each run, ``on_batch`` with the
    report so far after each batch size.

    A batch that does not fit into memory ends the batch sizes of its grid. Raises FlasharError where none fits.
    """
    model, end = subject.model, plan.sweep_end
    batches: list[BatchReport] = []
    hardware, software = environment.hardware(model.device), environment.software()
    checked = None if upstream is None else upstream.check(subject, Batch.of(plan, model, plan.grids[0], 1))

    def report() -> BenchReport:
        return BenchReport(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=environment.command(),
            variables=environment.variables(),
            hardware=hardware,
            software=software,
            model=describe(subject, plan),
            settings=settings_of(subject, plan),
            rates=rates,
            peak_rss_bytes=peaks.peak_rss_bytes(),
            upstream=checked,
            agreements=agreements,
            sweep_end=end,
            batches=tuple(batches),
        )

    for grid in plan.grids:
        for size in plan.batch_sizes:
            counts = counts_at(model.device, (grid, size) == (plan.grids[-1], plan.batch_sizes[-1]))
            work = partial(_bench_batch, subject, plan, grid, size, rates, on_run, upstream, counts)
            measured = _unless_full(work, model.device)
            if measured is None:
                end = f"out of memory at batch {size} on {grid} tokens"
                break
            batches.append(measured)
            on_batch(report())
    if not batches:
        raise FlasharError(f"{end}; use smaller --batch-sizes or a smaller --res")
    return report()


def counts_at(device: torch.device, is_last: bool) -> bool:
    """Whether launches are counted at a batch size."""
    # A profiler may stay attached to a GPU and slow what is timed after it.
    return is_last or device.type != "cuda"


def describe(subject: BenchModel, plan: Plan) -> Subject:
    """What is benched."""
    config, branch = subject.model.config, getattr(subject.model.config, "branch", None)
    fastvar = getattr(config, "fastvar", None)
    return Subject(
        name=subject.name,
        family=config.family,
        weights=subject.weights,
        grid=", ".join(map(str, plan.grids)),
        num_parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        branch=branch and f"layer {branch.layer}, depth {branch.depth}, gate {branch.gate}",
        fastvar=fastvar and fastvar.in_words,
        branch_added=subject.branch_added,
    )


def settings_of(subject: BenchModel, plan: Plan) -> Settings:
    """How it is benched."""
    model, with_pixels = subject.model, subject.makes_pixels
    return Settings(
        **plan.sampling.model_dump(),
        device=model.device.type,
        dtype=dtype_name(model.dtype),
        quantize=subject.quantize,
        num_threads=torch.get_num_threads(),
        arms=plan.arms,
        batch_sizes=plan.batch_sizes,
        repeats=plan.repeats,
        warmup=plan.warmup,
        seed=plan.seed,
        pixel_dtype=dtype_name(pixel_dtype(model.device, model.dtype)) if with_pixels else None,
        num_interop_threads=torch.get_num_interop_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        tf32=torch.backends.cuda.matmul.allow_tf32,
        sdpa_backends=environment.sdpa_backends(),
        with_pixels=with_pixels,
    )


def _unless_full(work: Callable[[], BatchReport], device: torch.device) -> BatchReport | None:
    """None where it does not fit into memory."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # After the handler: until it is left, the error's frames hold every arm.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _bench_batch(
    subject: BenchModel,
    plan: Plan,
    grid: Grid,
    size: int,
    rates: Rates,
    on_run: Callable[[], None],
    upstream: Upstream | None,
    counts_launches: bool,
) -> BatchReport:
    model, batch = subject.model, Batch.of(plan, subject.model, grid, size)
    memories = {name: peaks.ArmMemory(model.device) for name in plan.arms}
    arms = {name: prepared(name, subject, batch, upstream, memories[name]) for name in plan.arms}
    for arm in arms.values():
        for _ in range(plan.warmup):
            arm.warm_up()
            on_run()
    for _ in range(plan.repeats):
        for arm in arms.values():
            arm.run()
            on_run()
    for arm in arms.values():
        if counts_launches:
            arm.count_launches()
        on_run()

    work = batch.workload(model)
    floors = {name: floor_of(model, name, work, rates) for name in arms}
    reports = tuple(arm_report(name, arm, size, floors[name], rates) for name, arm in arms.items())
    speedups = tuple(speedups_of(reports, arms))
    pair = headline_of(reports)
    headline = next((ratio for ratio in speedups if (ratio.arm, ratio.over) == pair), None)
    return BatchReport(
        grid=str(grid),
        batch_size=size,
        speedup=headline.token_generation if headline else None,
        speedup_with_token_decode=headline.with_token_decode if headline else None,
        speedups=speedups,
        arms=reports,
    )
