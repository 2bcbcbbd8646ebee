"""The roofline card: what each decoder can't do without, before anything is run."""

from __future__ import annotations

from flashar_cli.benchmarking.arms import split_arm
from flashar_cli.benchmarking.floor import Floor, Rates
from flashar_cli.benchmarking.plan import Plan, floor_of
from flashar_cli.benchmarking.reports.tables import Table, short
from flashar_cli.benchmarking.subject import BenchModel, set_grid


def roofline(subject: BenchModel, plan: Plan, rates: Rates) -> Table:
    """What each decoder can't do without, before anything is run."""
    header = [
        "grid",
        "batch",
        "decoder",
        "forwards",
        "reads GB",
        "computes TFLOP",
        "waits for",
        "floor ms",
        "floor img/s",
    ]
    own = subject.model.config.order_grid
    rows = []
    for grid in plan.grids or (own,):
        set_grid(subject, grid)
        for size in plan.batch_sizes:
            for decoder in dict.fromkeys(split_arm(arm)[0] for arm in plan.arms):
                floor = floor_of(subject.model, decoder, size, plan.params, rates)
                rows.append([str(grid), str(size), decoder, *_floor_numbers(floor, size)])
    set_grid(subject, own)
    return header, rows


def _floor_numbers(floor: Floor, batch_size: int) -> list[str]:
    bound = floor.num_memory_bound
    waits = "memory" if bound == floor.num_forwards else "products" if bound == 0 else f"memory in {bound}"
    return [
        str(floor.num_forwards),
        short(floor.read_bytes / 1e9),
        short(floor.flops / 1e12),
        waits,
        short(floor.seconds * 1000),
        short(batch_size / floor.seconds),
    ]
