"""Block diffusion: the tokens of a block are drawn over a few forwards, in an order of their own for each image.

Source: BD3-LM (arXiv 2503.09573), for text; FlashAR's authors compare with such a decoder of images.

Letters: B images, R rows (B, or 2B with guidance), K cells of a block, C cells that a step predicts, N = H*W cells, P
prefix tokens, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.config import DiffusionConfig, ModelConfig, RasterConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload, forward_cost, prefix_cost
from flashar_cli.decoding.decoder import PlanKey, StaticPlan, StepHook
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import RASTER, RasterDecoder
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.nn.sampling import guide, sample, uniform_bits

_TURN = 1  # what a random number is for: when a cell is drawn


class Step(NamedTuple):
    """One forward: the tokens of the cells from ``begin`` on are fed, of which ``first`` .. ``last - 1`` are a block,
    and the cells ``predicted`` .. ``end - 1`` are predicted. ``drawn`` cells of the block are known before, and
    ``num_new`` more afterwards. Step 0 feeds the prefix alone.
    """

    begin: int
    first: int
    last: int
    predicted: int
    end: int
    drawn: int
    num_new: int


def steps_of(num_cells: int, block: int, num_turns: int) -> list[Step]:
    """The prefix draws the first cell. The cells of each block are drawn over so many forwards, or one each where it
    has fewer, as evenly as can be; the first forward of a block feeds the block before too.
    """
    steps = [Step(0, 0, min(block, num_cells), 0, 1, 0, 1)]
    for first in range(0, num_cells, block):
        last, drawn, begin = min(first + block, num_cells), int(first == 0), max(0, first - block)
        left = last - first - drawn
        for part in np.array_split(range(left), min(left, num_turns)) if left else ():
            predicted = max(first, begin + 1)
            steps.append(Step(begin, first, last, predicted, last, drawn, len(part)))
            drawn, begin = drawn + len(part), first
    return steps


class DiffusionDecoder(RasterDecoder):
    """So many forwards for each block. The first cell of a block is drawn in the first of them, the others in a random
    order.
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
        return len(self._steps(config, grid))

    def longest_step(self, config: RasterConfig, grid: Grid) -> int:
        return max(step.end - step.predicted for step in self._steps(config, grid))

    def plan(self, model: FlasharModel, tokenizer: object, key: PlanKey) -> DiffusionPlan:
        return DiffusionPlan(RASTER.plan(model, tokenizer, key), self._steps(model.config, key.grid))

    def logits(
        self, model: FlasharModel, tokenizer: object, tokens: Tensor, conditions: Conditions, grid: Grid
    ) -> Tensor:
        """As in ``Decoder``; the cells are drawn in one of their orders, the same for all images."""
        plan = self.plan(model, tokenizer, self.key(model, conditions, Sampling(), grid))
        logits_BNV = plan.logits(tokens, conditions)
        places_BN1 = plan.cells_as_drawn().argsort(dim=1)[..., None]
        return logits_BNV.take_along_dim(places_BN1, dim=1).unflatten(1, (grid.height, grid.width))

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        fed = [(step.last - step.begin, step.end - step.predicted) for step in self._steps(config, work.grid)[1:]]
        return [prefix_cost(config, work), *(forward_cost(config, work, *each) for each in fed)]

    def _steps(self, config: RasterConfig, grid: Grid) -> list[Step]:
        assert config.diffusion is not None
        return steps_of(grid.num_cells, config.diffusion.block, self.num_turns)


class DiffusionPlan(StaticPlan):
    """One batch, on the buffers of its raster plan. The keys and values of a block are those of its unknown tokens
    until all are drawn; then the drawn ones are fed together with the next block.
    """

    @torch.inference_mode()
    def __init__(self, raster: DecodePlan, steps: list[Step]) -> None:
        assert raster.model.config.diffusion is not None
        self.model: FlasharModel = raster.model
        self.key, self.raster, self.steps, self.num_steps = raster.key, raster, steps, len(steps)
        self.config: DiffusionConfig = raster.model.config.diffusion
        self.ranks_BN = torch.zeros_like(raster.tokens_BN)  # the place of each cell among those of its block, as drawn
        self.masks = [self._mask(step) for step in steps]

    @torch.inference_mode()
    def load(self, conditions: Conditions, sampling: Sampling, uniform: Tensor) -> None:
        self.raster.load(conditions, sampling, uniform)
        bits_BN = uniform_bits(uniform)
        order_BN = hash_uniform(bits_BN, np.arange(bits_BN.shape[1]), 0, _TURN)
        order_BN[:, :: self.config.block] = -1
        for first in range(0, order_BN.shape[1], self.config.block):
            part = slice(first, first + self.config.block)
            ranks_BK = order_BN[:, part].argsort(axis=1).argsort(axis=1)
            self.ranks_BN[:, part] = torch.from_numpy(ranks_BK).to(self.key.device)

    def prefix(self) -> Tensor:
        return self.raster.prefix()

    def sample(self, step: int, logits_BCV: Tensor, on_step: StepHook | None = None) -> None:
        if on_step is not None:
            on_step(step, logits_BCV)
        each, raster = self.steps[step], self.raster
        cells = slice(each.predicted, each.end)
        sampled_BC = sample(logits_BCV, raster.uniform_BN[:, cells], self.key.kind, raster.values)
        ranks_BC = self.ranks_BN[:, cells]
        now_BC = (ranks_BC >= each.drawn) & (ranks_BC < each.drawn + each.num_new)
        raster.tokens_BN[:, cells] = torch.where(now_BC, sampled_BC, raster.tokens_BN[:, cells])

    def advance(self, first: int, last: int, on_step: StepHook | None = None) -> None:
        for step in range(first, last):
            self.sample(step, self._step(step, self.raster.tokens_BN), on_step)

    def teacher_forced(self, tokens: Tensor) -> Iterator[Tensor]:
        """The logits of the cells that each step draws, in the order of ``cells_as_drawn``."""
        tokens_BN = tokens.to(self.key.device).flatten(1)
        yield self.prefix()
        as_drawn_BN = self.cells_as_drawn()
        for number, step in enumerate(self.steps[1:], start=1):
            logits_BCV = self._step(number, tokens_BN)
            first = step.first + step.drawn
            cells_BD = as_drawn_BN[:, first : first + step.num_new]
            yield logits_BCV.take_along_dim((cells_BD - step.predicted)[..., None], dim=1)

    def cells_as_drawn(self) -> Tensor:
        """int64 [B, N]: the cells of each image in the order in which they are drawn."""
        blocks_N = torch.arange(self.ranks_BN.shape[1], device=self.key.device) // self.config.block
        return (blocks_N * self.config.block + self.ranks_BN).argsort(dim=1)

    def tokens(self) -> Tensor:
        return self.raster.tokens()

    def buffers(self) -> list[Tensor]:
        return [*self.raster.buffers(), self.ranks_BN]

    def _step(self, number: int, tokens_BN: Tensor) -> Tensor:
        """Feeds tokens, those of the block as far as they are known, and predicts: logits [B, C, V] after guidance."""
        step, raster, model, prefix = self.steps[number], self.raster, self.model, self.key.prefix_length
        repeats = raster.num_rows // len(tokens_BN)
        unknown_BK = self.ranks_BN[:, step.first : step.last] >= step.drawn
        unknown_BC = F.pad(unknown_BK, (step.first - step.begin, 0))
        tokens_RC = tokens_BN[:, step.begin : step.last].repeat(repeats, 1)
        x_RCD = model.embed_step(tokens_RC, False, unknown_BC.repeat(repeats, 1))
        start, end = prefix + step.begin, prefix + step.last
        mask = self.masks[number]
        if raster.key_mask is not None:
            keys = raster.key_mask[..., :end]
            mask = keys if mask is None else keys + mask
        rope = raster.rope[..., start:end, :, :]
        hidden = model.hidden_states(x_RCD, rope, mask, False, raster.cache, start)
        # The place before a cell predicts it.
        sources = slice(step.predicted - 1 - step.begin, step.end - 1 - step.begin)
        logits_RCV = model.backbone.head(hidden.horizontal[:, sources]).float()
        if not self.key.kind.guided:
            return logits_RCV
        conditional, unconditional = logits_RCV.chunk(2)
        return guide(conditional, unconditional, raster.cfg_scales[step.predicted : step.end, None])

    def _mask(self, step: Step) -> Tensor | None:
        """What is added to the scores, [tokens fed, P + last], where the block before is fed too: its tokens see what
        is before them, those of the block see all.
        """
        if step.begin == step.first:
            return None
        prefix, device = self.key.prefix_length, self.key.device
        places = torch.arange(prefix + step.last, device=device)
        queries = places[prefix + step.begin :, None]
        hidden = (places > queries) & (queries < prefix + step.first)
        return torch.zeros(hidden.shape, dtype=self.model.dtype, device=device).masked_fill(hidden, -math.inf)
