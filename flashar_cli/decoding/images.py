"""Many images: batches of tokens from a list of conditions.

Letters: B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashar_cli.config import Sampling
from flashar_cli.decoding.costs import Workload
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import uniform_table


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

    def check(self, model: Any) -> None:
        """Raises FlasharError for conditions that don't fit the model and this grid, and for more images, in all or at
        a time, than this machine can make.
        """
        bounds.IMAGES.check("--num-images", self.num_images)
        bounds.BATCH.check("--batch-size", self.batch_size)
        model.prefix.check(self.conditions)
        self.decoder.check(model, self.conditions, self.grid)
        if model.device.type == "cpu":  # a GPU that runs out raises an error; a CPU's system kills the process
            largest = min(self.batch_size, self.num_images)
            work = Workload(
                grid=self.grid,
                rows=2 if self.sampling.guided else 1,
                prefix_length=model.prefix.length(self.conditions),
                weight_bytes=model.dtype.itemsize,
            )
            each = self.decoder.image_bytes(model.config, work)
            require_memory(f"a batch of {largest} images (--batch-size)", largest * each)


def generate_tokens(engine: Engine, request: Request) -> Iterator[Tensor]:
    """Yields the tokens of each batch, [B, ..] of the decoder's ``token_shape``. Raises FlasharError as ``check``,
    before anything is sampled.
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
    uniform = uniform_table(request.seed, first, size, engine.model.config.num_draws(request.grid))
    conditions = request.conditions[rows]
    return engine.decode(request.decoder, conditions, request.sampling, uniform, grid=request.grid)[:count]
