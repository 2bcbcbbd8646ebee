"""Batch sizes: 1, 2, 4, ... as far as memory goes, and which can't fit."""

from __future__ import annotations

from collections.abc import Sequence

from flashar_cli.benchmarking.memory import free_bytes
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import SamplingParams

# The share of what is free that the estimate may fill. It leaves out what allocators waste; on a GPU, where running out
# of memory is an error that can be caught, it only bounds the search.
SHARES = {"cpu": 0.8, "cuda": 4.0}
# Copies of the largest tensors that are alive at once: both heads' logits, the fused ones, and those of sampling; in
# the tokenizer a convolution's input, output and what its algorithm needs.
NUM_LOGITS, NUM_PICTURES = 6, 4
FLOAT_BYTES = 4


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
    return tuple(sizes), f"{where} would need about {needed / 2**30:.1f} of {free / 2**30:.1f} GiB"


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
            f"--batch-sizes has {size}, which needs about {size * each / 2**30:.1f} GiB on {largest} tokens; "
            f"{free / 2**30:.1f} GiB are free, enough for {max(1, free // each)}"
        )


def bytes_per_image(subject: BenchModel, grid: Grid, params: SamplingParams, num_arms: int) -> int:
    """An estimate of what each picture of a batch takes: caches of all arms, logits of the longest step, pictures."""
    config, itemsize = subject.model.config, subject.model.dtype.itemsize
    backbone = config.backbone
    rows = 2 if params.guided else 1
    num_layers = backbone.num_layers + (config.branch.depth if config.branch else 0)
    positions = config.prefix.length + grid.num_cells
    caches = num_arms * rows * num_layers * 2 * positions * backbone.num_kv_heads * backbone.head_dim * itemsize
    logits = NUM_LOGITS * rows * min(grid.height, grid.width) * backbone.vocab_size * FLOAT_BYTES
    pictures = 0
    if subject.tokenizer is not None and config.tokenizer is not None:
        pixels = grid.num_cells * config.tokenizer.downsample**2
        pictures = NUM_PICTURES * pixels * config.tokenizer.channels * FLOAT_BYTES
    return caches + max(logits, pictures)
