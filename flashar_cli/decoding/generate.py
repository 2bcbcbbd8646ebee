"""Many pictures: batches of token grids from a list of conditions.

Letters: B pictures of a batch, H grid rows, W grid columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flashar_cli import bounds
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.memory import decoding_bytes
from flashar_cli.grid import Order
from flashar_cli.machine import require_memory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams, uniform_table


def generate_tokens(
    model: FlasharModel,
    conditions: Conditions,
    num_images: int,
    order: Order,
    params: SamplingParams,
    seed: int,
    batch_size: int,
    engine: Engine | None = None,
) -> Iterator[Tensor]:
    """Yields token grids int64 [B, H, W], picture k under condition ``k mod len(conditions)``.

    Picture k depends on the seed and on k alone, not on the batch it is in. ``engine``, one of this model, says how to
    decode; None: eagerly. Raises FlasharError for conditions that don't fit the model, before anything is drawn.
    """
    check_request(model, conditions, num_images, order, params, batch_size)
    engine = engine or Engine(model)
    for index in range(-(-num_images // batch_size)):
        yield draw_batch(engine, conditions, num_images, order, params, seed, batch_size, index)


def check_request(
    model: FlasharModel, conditions: Conditions, num_images: int, order: Order, params: SamplingParams, batch_size: int
) -> None:
    """Raises FlasharError for conditions that don't fit the model, and for more pictures, in all or at a time, than can
    be drawn here.
    """
    bounds.IMAGES.check("--num-images", num_images)
    bounds.BATCH.check("--batch-size", batch_size)
    if model.device.type == "cpu":  # on a GPU running out is an error, on a CPU the system ends the process
        largest = min(batch_size, num_images)
        each = decoding_bytes(model.config, order.grid, model.dtype.itemsize, params.guided)
        require_memory(f"a batch of {largest} pictures (--batch-size)", largest * each)
    model.prefix.check(conditions)


def draw_batch(
    engine: Engine,
    conditions: Conditions,
    num_images: int,
    order: Order,
    params: SamplingParams,
    seed: int,
    batch_size: int,
    index: int,
) -> Tensor:
    """Batch ``index`` of those that ``generate_tokens`` yields, whichever were drawn before: pictures
    ``index * batch_size`` and on. The conditions must fit the model.
    """
    first = index * batch_size
    count = min(batch_size, num_images - first)
    # A size of its own would be captured or compiled for this one batch.
    size = batch_size if engine.pads_batches and num_images > batch_size else count
    rows = torch.arange(first, first + size) % len(conditions)
    uniform = uniform_table(seed, first, size, len(order.cells))
    return engine.decode(conditions[rows], order, params, uniform)[:count]
