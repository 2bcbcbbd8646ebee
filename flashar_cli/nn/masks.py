"""Attention masks from an order of decoding.

Letters: B batch, P prefix tokens, S = P + N sequence. True means: may attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.grid import Order


def order_mask(order: Order, prefix_length: int, device: torch.device) -> Tensor:
    """bool [S, S]: prefix tokens are causal among themselves; an image token attends to the whole prefix and to every
    image token whose step is not after its own (paper: section 3, the diagonal mask). With the raster order this is
    the ordinary causal mask.
    """
    # Each prefix token is a step of its own before the image's first.
    steps = torch.tensor([*range(-prefix_length, 0), *order.step_of_position], device=device)
    return steps[None, :] <= steps[:, None]


def with_valid_keys(mask_SS: Tensor, valid_BS: Tensor) -> Tensor:
    """bool [B, 1, S, S]: ``mask_SS`` without the keys that are not valid; the diagonal is kept, so that a padded
    position attends to itself.
    """
    # Kept for parity: FoundationVision/LlamaGen autoregressive/models/generate.py masks caption padding this way.
    diagonal = torch.eye(mask_SS.shape[0], dtype=torch.bool, device=mask_SS.device)
    return (mask_SS & valid_BS[:, None, None, :]) | diagonal
