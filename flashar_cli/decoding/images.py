"""Many images: batches of token grids from a list of conditions.

Letters: B images of a batch, H grid rows, W grid columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.memory import decoding_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import uniform_table


def choose_grid(config: RasterConfig, wanted: Grid | None) -> Grid:
    """The grid of tokens to make; None: the model's own. Raises FlasharError for another one of a model that has one
    grid, and for more positions than the model knows.
    """
    grid = wanted or config.order_grid
    if grid != config.order_grid and config.backbone.max_positions is None:
        raise FlasharError(f"the grid is {grid}, but this model makes images of {config.order_grid} tokens alone")
    check_positions(config, grid, 1)
    return grid


def check_positions(config: RasterConfig, grid: Grid, prefix_length: int) -> None:
    """Raises FlasharError for more positions than the model knows: of the prefix, and of rows with an end of line."""
    most, needed = config.backbone.max_positions, prefix_length + grid.height * (grid.width + 1)
    if most is not None and needed > most:
        raise FlasharError(
            f"a grid of {grid} after {prefix_length} prefix tokens takes {needed} positions; this model knows {most}; "
            "choose a smaller grid or a shorter prompt"
        )


@dataclass(frozen=True)
class Request:
    """What to make: image k has condition ``k mod len(conditions)``; ``batch_size`` images are made at a time. An image
    depends on the seed and on k, not on its batch.
    """

    decoder: Decoder
    conditions: Conditions
    num_images: int
    sampling: Sampling
    grid: Grid
    seed: int = 0
    batch_size: int = 16

    @property
    def num_batches(self) -> int:
        return -(-self.num_images // self.batch_size)

    def check(self, model: FlasharModel) -> None:
        """Raises FlasharError for conditions that don't fit the model and this grid, and for more images, in all or at
        a time, than this machine can make.
        """
        bounds.IMAGES.check("--num-images", self.num_images)
        bounds.BATCH.check("--batch-size", self.batch_size)
        model.prefix.check(self.conditions)
        length = model.prefix.length(self.conditions)
        check_positions(model.config, self.grid, length)
        if model.device.type == "cpu":  # a GPU that runs out raises an error; a CPU's system kills the process
            largest = min(self.batch_size, self.num_images)
            each = decoding_bytes(model.config, self.grid, length, model.dtype.itemsize, self.sampling.guided)
            require_memory(f"a batch of {largest} images (--batch-size)", largest * each)


def generate_tokens(engine: Engine, request: Request) -> Iterator[Tensor]:
    """Yields the token grids of each batch, int64 [B, H, W]. Raises FlasharError as ``check``, before anything is
    sampled.
    """
    request.check(engine.model)
    for index in range(request.num_batches):
        yield sample_batch(engine, request, index)


def sample_batch(engine: Engine, request: Request, index: int) -> Tensor:
    """Batch ``index`` of those that ``generate_tokens`` yields, independent of the others. The conditions must fit the
    model.
    """
    batch_size, num_images = request.batch_size, request.num_images
    first = index * batch_size
    count = min(batch_size, num_images - first)
    size = batch_size if engine.pads_batches and num_images > batch_size else count
    rows = torch.arange(first, first + size) % len(request.conditions)
    uniform = uniform_table(request.seed, first, size, request.grid.num_cells)
    conditions = request.conditions[rows]
    return engine.decode(request.decoder, conditions, request.sampling, uniform, grid=request.grid)[:count]
