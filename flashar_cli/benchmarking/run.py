"""The protocol: all arms in one process, on one model, in turn.

Letters: B images, N = H*W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from flashar_cli.benchmarking import environment, memory
from flashar_cli.benchmarking.floor import Rates
from flashar_cli.benchmarking.measure import prepared
from flashar_cli.benchmarking.plan import Plan, example_conditions, floor_of
from flashar_cli.benchmarking.published.upstream import Upstream
from flashar_cli.benchmarking.reports.document import (
    Agreement,
    BatchReport,
    BenchReport,
    RatesReport,
    UpstreamReport,
    best_common_level,
)
from flashar_cli.benchmarking.subject import BenchModel, set_grid
from flashar_cli.benchmarking.summary import arm_report, describe, settings_of, speedups_of
from flashar_cli.decoding.failures import is_out_of_memory
from flashar_cli.errors import FlasharError
from flashar_cli.nn.sampling import uniform_table


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
    report so far after each batch size; ``agreements`` go into the report as they are.

    A batch that does not fit into memory ends the batch sizes of its grid, and the report says so. Raises FlasharError
    where none fits.
    """
    model = subject.model
    grids = plan.grids or (model.config.order_grid,)
    batches: list[BatchReport] = []
    checked: UpstreamReport | None = None
    end = plan.sweep_end
    hardware, software = environment.hardware(model.device), environment.software()

    def report() -> BenchReport:
        return BenchReport(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=environment.command(),
            variables=environment.variables(),
            hardware=hardware,
            software=software,
            model=describe(subject, grids),
            settings=settings_of(subject, plan),
            rates=RatesReport(
                copy_bytes_per_s=rates.copy_bytes_per_s,
                matmul_flops_per_s=rates.matmul_flops_per_s,
            ),
            peak_rss_bytes=memory.peak_rss_bytes(),
            upstream=checked,
            agreements=agreements,
            sweep_end=end,
            batches=tuple(batches),
        )

    for grid in grids:
        set_grid(subject, grid)
        if upstream is not None and checked is None:
            conditions = example_conditions(model.config, 1, plan.seed).to(model.device)
            checked = upstream.check(subject, conditions, plan.params.cfg_scale)
        for size in plan.batch_sizes:
            counts = counts_at(model.device, (grid, size) == (grids[-1], plan.batch_sizes[-1]))
            work = partial(_bench_batch, subject, plan, size, rates, on_run, upstream, counts)
            batch = _unless_full(work, model.device)
            if batch is None:
                end = f"out of memory at batch {size} on {grid} tokens"
                break
            batches.append(batch)
            on_batch(report())
    if not batches:
        raise FlasharError(f"{end}; use smaller --batch-sizes or a smaller --res")
    return report()


def counts_at(device: torch.device, is_last: bool) -> bool:
    """Whether launches are counted at a batch size: on CUDA at the last one, as a profiler may stay attached to the
    device and slow what is timed after it.
    """
    return is_last or device.type != "cuda"


def _unless_full(work: Callable[[], BatchReport], device: torch.device) -> BatchReport | None:
    """None where it does not fit into memory, all of which is free again then."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Not before the handler is left: until then the error's frames hold every arm.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _bench_batch(
    subject: BenchModel,
    plan: Plan,
    batch_size: int,
    rates: Rates,
    on_run: Callable[[], None],
    upstream: Upstream | None,
    counts_launches: bool,
) -> BatchReport:
    model = subject.model
    device = model.device
    conditions = example_conditions(model.config, batch_size, plan.seed).to(device)
    uniform_BN = uniform_table(plan.seed, 0, batch_size, model.config.order_grid.num_cells).to(device)
    memories = {name: memory.ArmMemory(device) for name in plan.arms}
    arms = {name: prepared(name, subject, conditions, plan, uniform_BN, upstream, memories[name]) for name in plan.arms}
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

    reports = tuple(
        arm_report(name, arm, batch_size, floor_of(model, name, batch_size, plan.params, rates), rates)
        for name, arm in arms.items()
    )
    speedups = tuple(speedups_of(reports, arms))
    best = best_common_level(reports)
    headline = next((ratio for ratio in speedups if ratio.over == f"raster-{best}"), None)
    return BatchReport(
        grid=str(model.config.order_grid),
        batch_size=batch_size,
        speedup=headline.token_generation if headline else None,
        speedup_with_token_decode=headline.with_token_decode if headline else None,
        speedups=speedups,
        arms=reports,
    )
