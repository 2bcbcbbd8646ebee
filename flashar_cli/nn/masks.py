"""Attention masks from an order of decoding, or from the sizes of scales.

Letters: B batch, P prefix tokens, S = P + slots sequence. True means: may attend.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashar_cli.grid import Order

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def sequence_ranks(order: Order, prefix_length: int, device: torch.device) -> Tensor:
    """int64 [S]: the rank of every slot; a token attends to those of its rank or a lower one. Each prefix token has a
    rank of its own, below those of the image.
    """
    return torch.tensor([*range(-prefix_length, 0), *order.ranks], device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # shared with training, and autograd refuses inference tensors
def order_mask(order: Order, prefix_length: int, device: torch.device) -> Tensor:
    """bool [S, S], made once and shared: prefix tokens are causal among themselves; an image token attends to the whole
    prefix and to every image token of its own step or an earlier one (paper: section 3, the diagonal mask). In the
    raster order this is the ordinary causal mask, also among a row's last token and the end-of-line token after it.
    """
    ranks = sequence_ranks(order, prefix_length, device)
    return ranks[None, :] <= ranks[:, None]


def with_valid_keys(mask_SS: Tensor, valid_BS: Tensor) -> Tensor:
    """bool [B, 1, S, S]: ``mask_SS`` without the keys that are not valid, but with the diagonal, so that a padded
    position attends to itself.
    """
    # Kept for parity: FoundationVision/LlamaGen autoregressive/models/generate.py masks caption padding this way.
    diagonal = torch.eye(mask_SS.shape[0], dtype=torch.bool, device=mask_SS.device)
    return (mask_SS & valid_BS[:, None, None, :]) | diagonal


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def scale_mask(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """bool [L, L] for maps of these numbers of tokens, one map after the other, made once and shared: a token attends
    to all of its own map and of those before it (VAR, arXiv 2404.02905: section 3.2, the block-wise causal mask).
    """
    ranks = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
    return ranks[None, :] <= ranks[:, None]


def order_block_mask(ranks_S: Tensor, valid_BS: Tensor | None) -> BlockMask:
    """``order_mask``, or ``with_valid_keys`` of it, for FlexAttention, which skips blocks that are all False."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_order = ranks_S[key] <= ranks_S[query]
        return in_order if valid_BS is None else (in_order & valid_BS[batch, key]) | (query == key)

    batch = None if valid_BS is None else len(valid_BS)
    return create_block_mask(may_attend, batch, None, len(ranks_S), len(ranks_S), device=str(ranks_S.device))
