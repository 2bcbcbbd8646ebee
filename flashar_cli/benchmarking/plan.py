"""What a bench is to do: what takes turns, on which batches, and how large they can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import Sampling
from flashar_cli.decoding.costs import Workload
from flashar_cli.decoding.decoders import decoders_of
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine.memory import free_bytes, gib
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import uniform_table

# The share of free memory that the estimate may fill. It leaves out what allocators waste; on a GPU, where running out
# of memory ends the sweep anyway, it only bounds the search.
SHARES = {"cpu": 0.8, "cuda": 4.0}


@dataclass(frozen=True)
class Plan:
    """What takes turns, how often, how many images at once, on which grids, and with which sampling."""

    batch_sizes: tuple[int, ...]
    repeats: int
    warmup: int
    sampling: Sampling
    seed: int
    arms: tuple[str, ...]
    grids: tuple[Grid, ...]
    sweep_end: str | None = None  # why a sweep has no larger batch sizes

    @property
    def num_runs(self) -> int:
        """Whole decodes of ``bench`` at most; in the last of each arm launches are counted."""
        return len(self.grids) * len(self.batch_sizes) * len(self.arms) * (self.warmup + self.repeats + 1)

    @property
    def largest_grid(self) -> Grid:
        return max(self.grids, key=lambda grid: grid.num_cells)


@dataclass(frozen=True)
class Batch:
    """What every arm decodes: B images of a grid."""

    grid: Grid
    conditions: Conditions
    sampling: Sampling
    uniform_BN: Tensor  # float32, for the sampling of our arms
    seed: int  # for that of a published sampler

    @classmethod
    def of(cls, plan: Plan, model: Any, grid: Grid, size: int) -> Batch:
        """So many of the model's example images."""
        conditions = model.prefix.example(size, plan.seed).to(model.device)
        uniform_BN = uniform_table(plan.seed, 0, size, model.config.num_draws(grid)).to(model.device)
        return cls(grid, conditions, plan.sampling, uniform_BN, plan.seed)

    def uniform_of(self, run: int) -> Tensor:
        """As ``uniform_BN``, for a run of its own images; run 0 has those of ``uniform_BN``."""
        size, num_draws = self.uniform_BN.shape
        return uniform_table(self.seed, run * size, size, num_draws).to(self.uniform_BN.device)

    def workload(self, model: Any) -> Workload:
        """What a decoder needs to know of the batch to tell its costs."""
        return Workload(
            grid=self.grid,
            rows=len(self.conditions) * (2 if self.sampling.guided else 1),
            prefix_length=model.prefix.length(self.conditions),
            weight_bytes=model.dtype.itemsize,
            quantized=is_quantized(model),
        )


def sizes_that_fit(subject: BenchModel, plan: Plan) -> tuple[tuple[int, ...], str]:
    """1, 2, 4 and so on, as long as the estimated memory is free on the largest grid; and why there are no more."""
    each, free = bytes_per_image(subject, plan), free_bytes(subject.model.device)
    sizes = [1]
    while 2 * sizes[-1] * each <= SHARES.get(subject.model.device.type, 1.0) * free:
        sizes.append(2 * sizes[-1])
    needed = 2 * sizes[-1] * each
    where = f"batch {2 * sizes[-1]} on {plan.largest_grid} tokens"
    return tuple(sizes), f"{where} would need about {gib(needed)} of {gib(free)}"


def refuse_what_cannot_fit(subject: BenchModel, plan: Plan) -> None:
    """Raises FlasharError for a batch size that would take more than a CPU's free memory."""
    # There the system would end the process; on a GPU running out of memory is an error like others.
    device = subject.model.device
    if device.type == "cuda":
        return
    each, free, size = bytes_per_image(subject, plan), free_bytes(device), max(plan.batch_sizes)
    if size * each > free:
        raise FlasharError(
            f"--batch-sizes has {size}, which needs about {gib(size * each)} on {plan.largest_grid} tokens; "
            f"{gib(free)} are free, enough for {max(1, free // each)}"
        )


def bytes_per_image(subject: BenchModel, plan: Plan) -> int:
    """An estimate of what each image of a batch takes on the largest grid, with the caches of all arms."""
    model, with_pixels = subject.model, subject.makes_pixels
    work = Batch.of(plan, model, plan.largest_grid, 1).workload(model)
    decoders = decoders_of(model.config)
    return max(decoder.image_bytes(model.config, work, len(plan.arms), with_pixels) for decoder in decoders)
