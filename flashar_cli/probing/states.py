"""Hidden states of a frozen backbone on whole grids.

Letters: B batch, H grid rows, W grid columns, S sequence, D model dim, L backbone blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
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
    drop = torch.zeros(len(tokens_BHW), dtype=torch.bool, device=tokens_BHW.device)
    x_BSD, valid_BP = model.embed(order.from_raster(tokens_BHW), conditions, drop)
    length, prefix = x_BSD.shape[1], model.prefix.length(conditions)
    mask = model.attention_mask(order, prefix, valid_BP, length)
    with _collected(model, layers) as states:
        run_blocks(model.backbone.blocks, x_BSD, model.rope(order, prefix)[:length], mask, None, 0)
    return [order.to_raster(F.pad(states[layer][:, prefix:], (0, 0, 0, 1)), trailing=1) for layer in layers]


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
