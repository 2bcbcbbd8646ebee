"""Block diffusion of a raster model: blocks are drawn in raster order, the tokens of one block in any order.

A model learns it from a sequence that holds every image twice: as it is, where each token sees what is before it, as in
the base; then with some tokens of every block unknown, where each token sees its own block and the tokens, as they are,
of the blocks before. A cell is predicted from the place before it, as in the base, so the heads keep their meaning; the
first cell of a block is predicted from the last token before the block, which does not see the block.

Sources: BD3-LM (arXiv 2503.09573) for blocks and for the sequence; DiffuLLaMA (arXiv 2410.17891) for predicting from
the place before.

Letters: B batch, P prefix tokens, N = H*W cells, K tokens of a block, S sequence, D model dim.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import DiffusionConfig
from flashar_cli.grid import Grid, Order
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import Targets, aligned_targets
from flashar_cli.nn.masks import with_valid_keys

if TYPE_CHECKING:
    from flashar_cli.models.flashar import FlasharModel, Inputs


class BlockDiffusion(nn.Module):
    """What is added to a raster model: the embedding [D] of a token that is not known yet."""

    def __init__(self, config: DiffusionConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.unknown = nn.Parameter(torch.zeros(dim))

    def embed(self, tokens_BND: Tensor, unknown_BN: Tensor) -> Tensor:
        """Embeddings [B, N, D] in which those of unknown tokens are replaced."""
        return torch.where(unknown_BN[..., None], self.unknown.to(tokens_BND.dtype), tokens_BND)


def diffusion_inputs(
    model: FlasharModel,
    tokens_BN: Tensor,
    conditions: Conditions,
    order: Order,
    unknown_BN: Tensor,
    drop: Tensor | None = None,
    blank_BN: Tensor | None = None,
) -> tuple[Inputs, Targets]:
    """The sequence of a teacher-forced forward, and the places that predict each cell. The arguments are those of
    ``FlasharModel.forward``; ``order`` is the raster order.
    """
    assert model.diffusion is not None, "tokens are unknown in block diffusion alone"
    grid, config = order.grid, model.diffusion.config
    whole = model.inputs(tokens_BN, conditions, order, drop, blank_BN)
    prefix = whole.num_prefix
    first = prefix + config.num_context(grid.num_cells)
    last_B1D = model.backbone.embedding(tokens_BN[:, -1:]).to(whole.x_BSD.dtype)
    if blank_BN is not None:
        last_B1D = last_B1D.masked_fill(blank_BN[:, -1:, None], 0)
    image_BND = torch.cat([whole.x_BSD[:, prefix:], last_B1D], dim=1)
    x_BSD = torch.cat([whole.x_BSD[:, :first], model.diffusion.embed(image_BND, unknown_BN)], dim=1)
    if drop is None:
        drop = torch.zeros(len(tokens_BN), dtype=torch.bool, device=tokens_BN.device)
    valid_BP = model.prefix.valid(conditions, drop)
    rope = model.rope(order, prefix, valid_BP)
    rope = torch.cat([rope[..., :first, :, :], rope[..., prefix:, :, :]], dim=-3)
    mask = diffusion_mask(grid, config, prefix, model.device)
    if valid_BP is not None:
        mask = with_valid_keys(mask, F.pad(valid_BP, (0, len(mask) - prefix), value=True))
    return whole._replace(x_BSD=x_BSD, rope=rope, mask=mask), diffusion_targets(grid, config, model.device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # shared with decoding, and autograd refuses inference tensors
def diffusion_mask(grid: Grid, config: DiffusionConfig, prefix_length: int, device: torch.device) -> Tensor:
    """bool [S, S], True where a query may attend to a key: the prefix, the image as it is but for its last block, then
    the image with unknown tokens.
    """
    num_seen = prefix_length + config.num_context(grid.num_cells)
    places = torch.arange(num_seen + grid.num_cells, device=device)
    is_noisy = places >= num_seen
    # A token of the second image has the place at which its block begins in the first, and sees what is before it.
    begins = prefix_length + (places - num_seen) // config.block * config.block
    in_order = places[None, :] <= places[:, None]  # of the first image, behind which all of the second is
    before, same = places[None, :] < begins[:, None], begins[None, :] == begins[:, None]
    noisy_query = torch.where(is_noisy[None, :], same, before)
    return torch.where(is_noisy[:, None], noisy_query, in_order)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def diffusion_targets(grid: Grid, config: DiffusionConfig, device: torch.device) -> Targets:
    """All N cells, from the hidden states of the last prefix token and of both images behind it."""
    cells = torch.arange(grid.num_cells, device=device)
    is_first = cells % config.block == 0
    every = torch.ones_like(is_first)
    sources = torch.where(is_first, cells, config.num_context(grid.num_cells) + cells)
    return aligned_targets(every, ~every, False)._replace(horizontal=sources)
