"""Block diffusion: the tokens of a block are drawn over a few forwards, in an order of their own for each image.

Source: BD3-LM (arXiv 2503.09573: section 3), for text; FlashAR's authors compare with such a decoder of images.

Letters: B images, R rows (B, or 2B with guidance), K cells of a block, C tokens of a forward, N = H*W cells, V codebook
size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flashar_cli.config import ModelConfig, RasterConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload, forward_cost, prefix_cost
from flashar_cli.decoding.decoder import PlanKey, StepHook
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import RASTER, RasterDecoder
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.nn.sampling import guide, sample

_TURN = 1  # what a random number is for: when a cell is drawn


class DiffusionDecoder(RasterDecoder):
    """So many forwards for each block. The first cell of a block is drawn in the first of them, the others in a random
    order, about as many in each forward.
    """

    def __init__(self, num_turns: int) -> None:
        self.name, self.num_turns = f"block-diffusion:{num_turns}", num_turns

    def obstacle(self, config: ModelConfig) -> str | None:
        if not isinstance(config, RasterConfig):
            return super().obstacle(config)
        if config.diffusion is not None:
            return None
        return "this model knows no block diffusion; adapt a raster base with `flashar adapt --method block-diffusion`"

    def num_forwards(self, config: RasterConfig, grid: Grid) -> int:
        return 1 + sum(len(turns) for turns in self._turns(config, grid))

    def plan(self, model: FlasharModel, tokenizer: object, key: PlanKey) -> DiffusionPlan:
        return DiffusionPlan(RASTER.plan(model, tokenizer, key), self._turns(model.config, key.grid))

    def _turns(self, config: RasterConfig, grid: Grid) -> list[list[int]]:
        """For each block how many of its cells each forward draws."""
        assert config.diffusion is not None
        starts = range(0, grid.num_cells, config.diffusion.block)
        sizes = [min(config.diffusion.block, grid.num_cells - start) for start in starts]
        return [[len(part) for part in np.array_split(range(size), min(size, self.num_turns))] for size in sizes]

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        costs, previous = [prefix_cost(config, work)], 0
        for turns in self._turns(config, work.grid):
            block = sum(turns)
            fed = [block + previous, *[block] * (len(turns) - 1)]
            costs += [forward_cost(config, work, num_tokens, block) for num_tokens in fed]
            previous = block
        return costs


class DiffusionPlan:
    """One batch, on the buffers of its raster plan. The keys and values of a block are those of its unknown tokens
    until all are drawn; then the drawn ones are fed together with the next block.
    """

    def __init__(self, raster: DecodePlan, turns: list[list[int]]) -> None:
        self.key, self.raster, self.turns = raster.key, raster, turns

    def load(self, conditions: Conditions, sampling: Sampling, uniform: Tensor) -> None:
        self.raster.load(conditions, sampling, uniform)
        bits_BN = (uniform.double().cpu().numpy() * 2**24).astype(np.int64)
        order_BN = hash_uniform(bits_BN, np.arange(bits_BN.shape[1]), 0, _TURN)
        self.order_BN = torch.from_numpy(order_BN).to(self.key.device)

    def tokens(self) -> Tensor:
        return self.raster.tokens()

    @torch.inference_mode()
    def run(self, on_step: StepHook | None = None) -> None:
        raster, tokens_BN = self.raster, self.raster.tokens_BN
        first_B1V = raster.prefix()
        begin = first = step = 0  # the cell from which tokens are fed, and the block's first
        for turns in self.turns:
            last = first + sum(turns)
            ranks_BK, drawn = self._ranks(first, last), 0
            for count in turns:
                step += 1
                logits_BCV = self._forward(begin, first, last, ranks_BK >= drawn)
                if begin == first:
                    logits_BCV = torch.cat([first_B1V, logits_BCV], dim=1)
                first_B1V, begin = logits_BCV[:, :1], first
                if on_step is not None:
                    on_step(step, logits_BCV)
                sampled_BK = sample(logits_BCV, raster.uniform_BN[:, first:last], self.key.kind, raster.values)
                now_BK = (drawn <= ranks_BK) & (ranks_BK < drawn + count)
                tokens_BN[:, first:last] = torch.where(now_BK, sampled_BK, tokens_BN[:, first:last])
                drawn += count
            begin, first = first, last

    def _ranks(self, first: int, last: int) -> Tensor:
        """int64 [B, K]: the place of each cell of a block in the order in which they are drawn; the first is 0."""
        order_BK = self.order_BN[:, first:last].clone()
        order_BK[:, 0] = -1
        return order_BK.argsort(dim=1).argsort(dim=1)

    def _forward(self, begin: int, first: int, last: int, unknown_BK: Tensor) -> Tensor:
        """Feeds the tokens of the cells from ``begin`` on, those of the block ``first`` .. ``last - 1`` as far as they
        are known, and predicts all cells of the block that follow a fed token: logits [B, C, V] after guidance.
        """
        raster, model, prefix = self.raster, self.raster.model, self.key.prefix_length
        assert model.diffusion is not None
        x_BCD = model.embed_step(raster.tokens_BN[:, begin:last], False)
        known_BCD, block_BKD = x_BCD.split([first - begin, last - first], dim=1)
        x_BCD = torch.cat([known_BCD, model.diffusion.embed(block_BKD, unknown_BK)], dim=1)
        start, end = prefix + begin, prefix + last
        mask = None if raster.key_mask is None else raster.key_mask[..., :end]
        if begin < first:  # tokens of the block before see what is before them, those of the block see all
            places = torch.arange(end, device=self.key.device)
            sees = places[start:, None].where(places[start:, None] < prefix + first, end)
            causal = torch.zeros(end - start, end, dtype=model.dtype, device=self.key.device)
            causal.masked_fill_(places > sees, -math.inf)
            mask = causal if mask is None else mask + causal
        x_RCD, rope = x_BCD.repeat(self.raster.num_rows // len(x_BCD), 1, 1), raster.rope[..., start:end, :, :]
        hidden = model.hidden_states(x_RCD, rope, mask, False, raster.cache, start)
        num_targets = last - max(first, begin + 1)
        logits_RCV = model.backbone.head(hidden.horizontal[:, -1 - num_targets : -1]).float()
        if not self.key.kind.guided:
            return logits_RCV
        conditional, unconditional = logits_RCV.chunk(2)
        return guide(conditional, unconditional, raster.cfg_scales[last - num_targets : last, None])
