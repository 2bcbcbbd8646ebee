"""FastVAR (arXiv 2503.23367): parts of blocks that run on some tokens of a map, and what the others get.

Letters: R rows, S tokens of a map, K of them that are kept, D model dim, E head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.config import Pruning
from flashar_cli.config.pruning import KeptOrder
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.blocks import Block, Given, Part
from flashar_cli.models.next_scale.model import NextScaleModel


def select(x_RSD: Tensor, num_kept: int, order: KeptOrder) -> Tensor:
    """The tokens that differ most from their row's mean token, int64 [R, K]: by falling squared distance, or as they
    lie in the map (csguoh/FastVAR Infinity/infinity/models/fastvar_utils.py masked_previous_scale_cache).
    """
    scores_RS = (x_RSD - x_RSD.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    kept_RK = scores_RS.topk(num_kept, dim=1).indices
    return kept_RK if order == "score" else kept_RK.sort(dim=1).values


def restore(output_RSD: Tensor, size: Grid, new_size: Grid) -> Tensor:
    """A map [R, S', D] of ``new_size``: each token is the plain mean of those of a map of ``size`` that it overlaps."""
    output_RDHW = output_RSD.unflatten(1, (size.height, size.width)).permute(0, 3, 1, 2)
    resized_RDHW = F.interpolate(output_RDHW, size=(new_size.height, new_size.width), mode="area")
    return resized_RDHW.permute(0, 2, 3, 1).flatten(1, 2)


class PrunedBlocks:
    """Runs a model's blocks on an image of these scales as ``pruning`` says. Only ``outputs`` is written to.

    Raises FlasharError where model or image have no such layers or scales.
    """

    def __init__(self, model: NextScaleModel, pruning: Pruning, scales: tuple[Grid, ...], num_rows: int) -> None:
        part = model.config.transformer
        pruning.check(part.num_layers, max(model.config.schedules.lengths))
        self.pruning, self.scales = pruning, scales
        self.layers = pruning.layers(part.num_layers)
        kept = {scale: pruning.num_kept(scale, each.num_cells) for scale, each in enumerate(scales)}
        self.num_kept = {scale: count for scale, count in kept.items() if count < scales[scale].num_cells}
        num_cached = scales[pruning.source_scale].num_cells if self.num_kept else 0
        # What each part of these layers adds to the cached scale, in the dtype of the weights.
        self.outputs = torch.zeros(
            (len(self.layers), len(model.blocks[0].parts), num_rows, num_cached, part.dim),
            device=model.device,
            dtype=model.dtype,
        )

    def num_keys(self, layer: int, scale: int) -> int:
        """Tokens of a scale whose keys and values a layer computes."""
        num_tokens = self.scales[scale].num_cells
        return self.num_kept.get(scale, num_tokens) if layer in self.layers else num_tokens

    def run(self, layer: int, scale: int, block: Block, x_RSD: Tensor, given: Given) -> Tensor:
        """The residual stream of a map after a block, float32 [R, S, D]."""
        prunes, caches = scale in self.num_kept, bool(self.num_kept) and scale == self.pruning.source_scale
        if layer not in self.layers or not (prunes or caches):
            return block(x_RSD, given)
        for part, output_RSD in zip(block.parts, self.outputs[layer - self.layers.start], strict=True):
            if prunes:
                update_RSD = self._pruned(scale, part, output_RSD, x_RSD, given)
            else:
                update_RSD = part(x_RSD, given)
                output_RSD.copy_(update_RSD)
            x_RSD = x_RSD + update_RSD
        return x_RSD

    def _pruned(self, scale: int, part: Part, output_RSD: Tensor, x_RSD: Tensor, given: Given) -> Tensor:
        """What a part adds where it runs on the kept tokens of this residual stream alone."""
        kept_RK = select(x_RSD, self.num_kept[scale], self.pruning.order)
        kept_RKD = kept_RK[..., None].expand(-1, -1, x_RSD.shape[-1])
        rope = None if given.rope is None else given.rope[kept_RK]
        fresh_RKD = part(x_RSD.gather(1, kept_RKD), given._replace(rope=rope))
        restored_RSD = restore(output_RSD, self.scales[self.pruning.source_scale], self.scales[scale])
        return restored_RSD.to(fresh_RKD.dtype).scatter(1, kept_RKD, fresh_RKD)
