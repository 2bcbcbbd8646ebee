"""Batch sizes 1, 2, 4, ... as far as memory goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import SamplingParams

# The estimate leaves out what allocators waste, so it may fill this share of what is free.
SHARE = 0.8
# Copies of the largest tensors that are alive at once: both heads' logits, the fused ones, and those of sampling; in
# the tokenizer a convolution's input, output and what its algorithm needs.
NUM_LOGITS, NUM_PICTURES = 6, 4
FLOAT_BYTES = 4


def sizes_that_fit(
    subject: BenchModel, params: SamplingParams, grids: Sequence[Grid], num_arms: int
) -> tuple[tuple[int, ...], str]:
    """Doubled batch sizes whose estimated memory is free on the largest grid, at least 1, and why there are no more."""
    own = subject.model.config.order_grid
    largest = max(grids or (own,), key=lambda grid: grid.num_cells)
    each, free = bytes_per_image(subject, largest, params, num_arms), free_bytes(subject.model.device)
    sizes = [1]
    while 2 * sizes[-1] * each <= SHARE * free:
        sizes.append(2 * sizes[-1])
    needed = 2 * sizes[-1] * each
    where = f"batch {2 * sizes[-1]} on {largest} tokens"
    return tuple(sizes), f"{where} would need about {needed / 2**30:.1f} of {free / 2**30:.1f} GiB"


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
    if config.tokenizer is not None:
        pixels = grid.num_cells * config.tokenizer.downsample**2
        pictures = NUM_PICTURES * pixels * config.tokenizer.channels * FLOAT_BYTES
    return caches + max(logits, pictures)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had: of the GPU, or of the machine."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    # Elsewhere than on Linux: half of what is built in.
    return available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
