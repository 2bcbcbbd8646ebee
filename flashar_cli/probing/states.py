"""Hidden states of a frozen backbone on whole grids.

Letters: B batch, H grid rows, W grid columns, S sequence, D model dim, L backbone blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor

from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.transformer import run_blocks


def hidden_grids(
    model: FlasharModel, tokens_BHW: Tensor, conditions: Conditions, order: Order, layers: Sequence[int]
) -> list[Tensor]:
    """Hidden states [B, H, W, D] before each of these blocks; the last cell, which predicts nothing, is zero."""
    given = model.inputs(order.from_raster(tokens_BHW), conditions, order)
    with _collected(model, layers) as states:
        run_blocks(model.backbone.blocks, given.x_BSD, given.rope, given.mask, None, 0)
    images = (F.pad(states[layer][:, given.num_prefix :], (0, 0, 0, 1)) for layer in layers)
    return [order.to_raster(image_BMD[:, order.slots], trailing=1) for image_BMD in images]


@contextmanager
def _collected(model: FlasharModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collects the hidden states [B, S, D] before these blocks, L: after the last, of the forward in the context."""
    states: dict[int, Tensor] = {}
    blocks, handles = model.backbone.blocks, []

    def keep(layer: int) -> Callable[..., None]:
        return lambda block, inputs, output=None: states.update({layer: inputs[0] if output is None else output})

    try:
        for layer in layers:
            last = layer == len(blocks)
            hook = blocks[-1].register_forward_hook if last else blocks[layer].register_forward_pre_hook
            handles.append(hook(keep(layer)))
        yield states
    finally:
        for handle in handles:
            handle.remove()
