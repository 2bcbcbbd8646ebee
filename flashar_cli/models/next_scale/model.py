"""A model that predicts a whole map of tokens at a time, from coarse to fine.

Letters: B batch, R rows (B, or 2B with guidance), S tokens of a map, L tokens of all maps, P features of a caption,
D model dim, A heads, E head dim, Z values of the latent that a token stands for, O logits of a token, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import NextScaleConfig
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.models.next_scale.blocks import Block, Given
from flashar_cli.models.next_scale.condition import build_condition
from flashar_cli.models.next_scale.head import Head
from flashar_cli.models.next_scale.layers import FIRST_LOG_SCALE
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.kv_cache import LayerCache
from flashar_cli.nn.masks import scale_mask
from flashar_cli.nn.rope import rope_table_scales


class Context(NamedTuple):
    """What is made of R conditions once for an image: their vectors [R, D], what modulates the N blocks, float32
    [N, R, 6, 1, D], and the head, float32 [R, 2, 1, D], and where blocks ask a caption, its keys and values
    [N, 2, R, A, P, E] and a mask [R, 1, 1, P] (None: no position is padding).
    """

    vector: Tensor
    modulation: Tensor
    head: Tensor
    memory: Tensor | None
    mask: Tensor | None

    def given(
        self,
        layer: int,
        rope: Tensor | None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Given:
        """What one block is given."""
        memory = None if self.memory is None else self.memory[layer]
        return Given(self.modulation[layer], memory, self.mask, rope, mask, cache, start)


class NextScaleModel(TokenModel):
    """VAR (arXiv 2404.02905) and Infinity (arXiv 2412.04431): one transformer, shaped by its config. The first map is
    one token that starts from the condition; the others start from the sum of all codes before them, resized.
    """

    config: NextScaleConfig

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.config = config
        part = config.transformer
        self.prefix = build_condition(config)
        self.start = nn.Parameter(torch.empty(1, 1, part.dim))
        self.embedding = nn.Linear(config.token_dim, part.dim)
        self.levels = nn.Embedding(part.num_levels, part.dim)
        learned = part.positions == "learned"
        self.positions = nn.Parameter(torch.empty(1, config.num_tokens, part.dim)) if learned else None
        self.modulation = nn.Linear(part.dim, 6 * part.dim) if part.shared_modulation else None
        blocks = [Block(part, config.cross_attention) for _ in range(part.num_layers)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.head = Head(part.dim, config.head_outputs, part.norm_eps)

    @property
    def device(self) -> torch.device:
        return self.start.device

    @property
    def dtype(self) -> torch.dtype:
        return self.start.dtype

    def rope(self, grid: Grid) -> Tensor | None:
        """Rotations of the L tokens of an image, float32 [L, E // 2, 2]; None where positions are learned."""
        part, finest = self.config.transformer, self.config.schedules.finest(grid)
        if part.positions == "learned":
            return None
        assert finest is not None
        return rope_table_scales(self.config.scales(grid), finest, part.head_dim, part.rope_base, self.device)

    def new_cache(self, num_rows: int, num_keys: int) -> LayerCache:
        """An empty cache of one block, in the dtype of the weights."""
        part = self.config.transformer
        shape = (2, num_rows, part.num_heads, num_keys, part.head_dim)
        return LayerCache(*torch.zeros(shape, device=self.device, dtype=self.dtype))

    @property
    def every_forward(self) -> nn.Module:
        return self.head

    @property
    def step_layers(self) -> list[nn.Linear]:
        return [layer for block in self.blocks for layer in block.token_layers]

    @torch.no_grad()
    def initialise(self, seed: int, zero_head: bool = True) -> None:
        """VAR's start (FoundationVision/VAR models/var.py init_weights): N(0, 1 / 3D) everywhere, but biases are 0 and
        gains 1, and what a block adds is the smaller, the more blocks there are. Unless ``zero_head`` is False, the
        head is near 0 and so is what gates a block.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, float(name.endswith("norm.weight")))
            elif name.endswith("log_scale"):
                nn.init.constant_(parameter, FIRST_LOG_SCALE)
            else:
                nn.init.normal_(parameter, std=(3 * self.config.width) ** -0.5, generator=generator)
        for block in self.blocks:
            block.scale_start(1 / math.sqrt(2 * len(self.blocks)), closed=zero_head)
        self.head.modulation.weight.mul_(0.5)
        self.head.out.weight.mul_(0.02 if zero_head else 1.0)

    def read(self, conditions: Conditions, drop_R: Tensor, padded: bool) -> Context:
        """What R conditions give to blocks and head; ``drop_R`` and ``padded`` as in ``ConditionEncoder``."""
        condition = self.prefix(conditions, drop_R, padded)
        signal = F.silu(condition.vector)
        if self.modulation is not None:
            signal = self.modulation(signal)
        modulation, memory = torch.stack([block.modulate(signal) for block in self.blocks]), None
        if condition.memory is not None:
            memory = torch.stack([block.read(condition.memory) for block in self.blocks])
        return Context(condition.vector, modulation, self.head.modulate(condition.vector), memory, condition.mask)

    def embed(self, scale: int, scales: tuple[Grid, ...], latent_RSZ: Tensor | None, context: Context) -> Tensor:
        """The residual stream of a map before the first block, float32 [R, S, D], from the sum of all codes before it,
        resized to the map; that of the first map (``latent_RSZ`` None) starts from the condition.
        """
        if latent_RSZ is None:
            x_RSD = context.vector[:, None].float() + self.start
        else:
            x_RSD = self.embedding(latent_RSZ.to(self.dtype)).float()
        x_RSD = x_RSD + self.levels.weight[scale]
        if self.positions is None:
            return x_RSD
        first = sum(each.num_cells for each in scales[:scale])
        return x_RSD + self.positions[:, first : first + scales[scale].num_cells]

    def forward(self, latents_BLZ: Tensor, conditions: Conditions, grid: Grid, drop: Tensor | None = None) -> Tensor:
        """Teacher-forced logits float32 [B, L, O] of all tokens of an image that ends with the map ``grid``.

        ``latents_BLZ`` [B, L - 1, Z] are, for every map but the first, the sums of all codes before it, resized to it;
        ``drop`` bool [B] marks rows to make unconditional.
        """
        scales = self.config.scales(grid)
        sizes = tuple(scale.num_cells for scale in scales)
        if drop is None:
            drop = torch.zeros(len(latents_BLZ), dtype=torch.bool, device=latents_BLZ.device)
        context = self.read(conditions, drop, self.prefix.padded(conditions))
        latents = [None, *latents_BLZ.split(sizes[1:], dim=1)]
        x_BLD = torch.cat([self.embed(k, scales, latent, context) for k, latent in enumerate(latents)], dim=1)
        rope, mask = self.rope(grid), scale_mask(sizes, x_BLD.device)
        for layer, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, context.given(layer, rope, mask))
        return self.head(x_BLD, context.head)
