"""Batch sizes: 1, 2, 4, ... as far as memory goes, and which can't fit."""

from __future__ import annotations

from collections.abc import Sequence

from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.memory import decoding_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine import free_bytes, gib
from flashar_cli.nn.sampling import SamplingParams

# The share of what is free that the estimate may fill. It leaves out what allocators waste; on a GPU, where running out
# of memory is an error that can be caught, it only bounds the search.
SHARES = {"cpu": 0.8, "cuda": 4.0}


def sizes_that_fit(
    subject: BenchModel, params: SamplingParams, grids: Sequence[Grid], num_arms: int
) -> tuple[tuple[int, ...], str]:
    """Doubled batch sizes whose estimated memory is free on the largest grid, at least 1, and why there are no more. On
    CUDA some more, so that memory itself ends the sweep.
    """
    own = subject.model.config.order_grid
    largest = max(grids or (own,), key=lambda grid: grid.num_cells)
    each, free = bytes_per_image(subject, largest, params, num_arms), free_bytes(subject.model.device)
    sizes = [1]
    while 2 * sizes[-1] * each <= SHARES.get(subject.model.device.type, 1.0) * free:
        sizes.append(2 * sizes[-1])
    needed = 2 * sizes[-1] * each
    where = f"batch {2 * sizes[-1]} on {largest} tokens"
    return tuple(sizes), f"{where} would need about {gib(needed)} of {gib(free)}"


def refuse_what_cannot_fit(subject: BenchModel, plan: Plan) -> None:
    """Raises FlasharError for a batch size that would take more than a CPU's free memory: the system would end the
    process. On a GPU running out is an error like others.
    """
    device = subject.model.device
    if device.type == "cuda":
        return
    largest = max(plan.grids or (subject.model.config.order_grid,), key=lambda grid: grid.num_cells)
    each, free = bytes_per_image(subject, largest, plan.params, len(plan.arms)), free_bytes(device)
    size = max(plan.batch_sizes)
    if size * each > free:
        raise FlasharError(
            f"--batch-sizes has {size}, which needs about {gib(size * each)} on {largest} tokens; "
            f"{gib(free)} are free, enough for {max(1, free // each)}"
        )


def bytes_per_image(subject: BenchModel, grid: Grid, params: SamplingParams, num_arms: int) -> int:
    """An estimate of what each picture of a batch takes with this many arms, each of which has a cache of its own."""
    model = subject.model
    with_pictures = subject.tokenizer is not None
    return decoding_bytes(model.config, grid, model.dtype.itemsize, params.guided, num_arms, with_pictures)
