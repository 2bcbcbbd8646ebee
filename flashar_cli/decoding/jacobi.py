"""Speculative Jacobi decoding of a raster model: drafts of the next tokens are checked in one forward.

Source: arXiv 2410.01699; tyshiwo1/Accelerating-T2I-AR-with-SJD scheduler/jacobi_iteration_lumina_mgpt.py.

Letters: B images, R rows (B, or 2B with guidance), C cells of a window, N = H*W cells, V codebook size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.config import FLOAT_BYTES, ModelConfig, RasterConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload, forward_costs
from flashar_cli.decoding.decoder import PlanKey, StepHook
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import RASTER, RasterDecoder, no_line_ends
from flashar_cli.grid import NO_SOURCE, Grid, Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.nn.kv_cache import KVCache, LayerCache
from flashar_cli.nn.sampling import draw, guide, probabilities, uniform_bits

# What a random number is for.
ACCEPT, RESAMPLE, DRAFT, FIRST_DRAFT = range(4)


class JacobiDecoder(RasterDecoder):
    """Windows of so many tokens. Tokens have the distribution of raster decoding, and an image does not depend on its
    batch; how many forwards a batch takes depends on its slowest image.
    """

    trained = False

    def __init__(self, window: int) -> None:
        self.name, self.window = f"jacobi:{window}", window

    def obstacle(self, config: ModelConfig) -> str | None:
        return no_line_ends(config) if isinstance(config, RasterConfig) else super().obstacle(config)

    def num_forwards(self, config: RasterConfig, grid: Grid) -> None:
        return None

    def longest_step(self, config: RasterConfig, grid: Grid) -> int:
        return min(self.window, max(1, grid.num_cells - 1))

    def image_bytes(self, config: RasterConfig, work: Workload, num_caches: int = 1, with_images: bool = True) -> int:
        chances = work.grid.num_cells * config.backbone.vocab_size * FLOAT_BYTES  # that every draft was drawn from
        return chances + super().image_bytes(config, work, num_caches, with_images)

    def plan(self, model: FlasharModel, tokenizer: object, key: PlanKey) -> JacobiPlan:
        return JacobiPlan(RASTER.plan(model, tokenizer, key), self.window)

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        """Of drafts that are all accepted."""
        cells = tuple(range(work.grid.num_cells))
        windows = tuple(cells[start : start + self.window] for start in range(1, len(cells), self.window))
        none = (NO_SOURCE,) * len(cells)
        return forward_costs(config, Order(self.name, work.grid, (cells[:1], *windows), none, none), work)


class JacobiPlan:
    """One batch, on the buffers of its raster plan. Each image is as far as its drafts have brought it."""

    def __init__(self, raster: DecodePlan, window: int) -> None:
        self.key, self.raster = raster.key, raster
        num_cells = raster.tokens_BN.shape[1]
        self.window = min(window, num_cells - 1)
        self.cache = _RowCache(raster.cache)

    def load(self, conditions: Conditions, sampling: Sampling, uniform: Tensor) -> None:
        self.raster.load(conditions, sampling, uniform)
        self.bits_BN = uniform_bits(uniform)  # every random number of a cell follows from its one number

    def tokens(self) -> Tensor:
        return self.raster.tokens()

    @torch.inference_mode()
    def run(self, on_step: StepHook | None = None) -> None:
        """The first ``known`` tokens of a row are those of its image. Behind them are drafts, each with the
        distribution that it was drawn from.
        """
        raster, tokens_BN = self.raster, self.raster.tokens_BN
        raster.sample(0, raster.prefix(), on_step)
        (batch, num_cells), device = tokens_BN.shape, tokens_BN.device
        vocab_size, every_N = raster.model.config.backbone.vocab_size, np.arange(num_cells)
        chances_BNV = torch.full((batch, num_cells, vocab_size), 1 / vocab_size, device=device)
        first = self._uniform(np.broadcast_to(every_N, (batch, num_cells)), 0, FIRST_DRAFT)
        tokens_BN[:, 1:] = (first[:, 1:] * vocab_size).long()
        known_B = torch.ones(batch, dtype=torch.int64, device=device)
        iteration = 0
        while int(known_B.min()) < num_cells:
            iteration += 1
            # A row near its end repeats its last cell; one that is done makes it again, and nothing of it is kept.
            wanted_BC = known_B[:, None] + torch.arange(self.window, device=device)
            cells_BC, is_new_BC = wanted_BC.clamp(max=num_cells - 1), wanted_BC < num_cells
            logits_BCV = self._forward(cells_BC - 1)
            if on_step is not None:
                on_step(iteration, logits_BCV)
            new_BCV = probabilities(logits_BCV, self.key.kind, raster.values)
            rows_B1 = torch.arange(batch, device=device)[:, None]
            old_BCV, drafts_BC = chances_BNV[rows_B1, cells_BC], tokens_BN[rows_B1, cells_BC]
            checked_BC, accepted_B = self._check(cells_BC, is_new_BC, drafts_BC, old_BCV, new_BCV, iteration)
            row_of, place_of = is_new_BC.nonzero(as_tuple=True)
            cell_of = cells_BC[row_of, place_of]
            tokens_BN[row_of, cell_of] = checked_BC[row_of, place_of]
            chances_BNV[row_of, cell_of] = new_BCV[row_of, place_of]
            # The first rejected draft has been replaced, so that its cell is known too.
            known_B = (known_B + (accepted_B + 1).clamp(max=self.window)).clamp(max=num_cells)

    def _check(
        self,
        cells_BC: Tensor,
        is_new_BC: Tensor,
        drafts_BC: Tensor,
        old_BCV: Tensor,
        new_BCV: Tensor,
        iteration: int,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, C] for the cells of a window: drafts that are accepted, then one from what the new distribution
        has more than the old, then new drafts; and the numbers [B] of accepted ones.
        """
        cells = cells_BC.cpu().numpy()
        new_BC, old_BC = (each.gather(2, drafts_BC[..., None])[..., 0] for each in (new_BCV, old_BCV))
        is_good_BC = self._uniform(cells, iteration, ACCEPT) * old_BC < new_BC
        accepted_B = (is_good_BC & is_new_BC).long().cumprod(dim=1).sum(dim=1)
        rest_BCV = (new_BCV - old_BCV).clamp(min=0)
        # Nothing is left where the two are the same, and then no draft is rejected.
        rest_BCV = torch.where(rest_BCV.sum(dim=-1, keepdim=True) > 0, rest_BCV, new_BCV)
        again_BC = draw(rest_BCV, self._uniform(cells, iteration, RESAMPLE))
        fresh_BC = draw(new_BCV, self._uniform(cells, iteration, DRAFT))
        place_C = torch.arange(cells_BC.shape[1], device=cells_BC.device)
        behind_BC = torch.where(place_C == accepted_B[:, None], again_BC, fresh_BC)
        return torch.where(place_C < accepted_B[:, None], drafts_BC, behind_BC), accepted_B

    def _forward(self, cells_BC: Tensor) -> Tensor:
        """Feeds the tokens of these cells and predicts what follows each: logits [B, C, V] after guidance."""
        raster, model, guided, first = self.raster, self.raster.model, self.key.kind.guided, self.key.prefix_length
        cells_RC = cells_BC.repeat(2, 1) if guided else cells_BC
        slots_RC, end = first + cells_RC, first + int(cells_BC.max()) + 1
        tokens_RC = raster.tokens_BN.repeat(2, 1) if guided else raster.tokens_BN
        x_RCD = model.embed_step(tokens_RC.gather(1, cells_RC), False)
        mask = torch.zeros(*slots_RC.shape, end, device=self.key.device, dtype=model.dtype)
        mask.masked_fill_(torch.arange(end, device=self.key.device) > slots_RC[..., None], -math.inf)
        mask = mask[:, None] if raster.key_mask is None else mask[:, None] + raster.key_mask[..., :end]
        rows_R1 = torch.arange(len(slots_RC), device=self.key.device)[:, None]
        rope = raster.rope[slots_RC] if raster.rope.ndim == 3 else raster.rope[rows_R1, slots_RC]
        self.cache.place(slots_RC, end)
        hidden = model.hidden_states(x_RCD, rope, mask, False, self.cache)
        logits_RCV = model.backbone.head(hidden.horizontal).float()
        if not guided:
            return logits_RCV
        conditional, unconditional = logits_RCV.chunk(2)
        return guide(conditional, unconditional, raster.cfg_scales[cells_BC + 1, None])

    def _uniform(self, cells_BC: NDArray[np.int64], iteration: int, purpose: int) -> Tensor:
        """float32 [B, C] in [0, 1), one number for each of these cells."""
        bits_BC = np.take_along_axis(self.bits_BN, cells_BC, axis=1)
        return torch.from_numpy(hash_uniform(bits_BC, cells_BC, iteration, purpose)).to(self.key.device)


class _RowCache(KVCache):
    """The memory of another cache, in which each row has places of its own for what is stored next."""

    def __init__(self, cache: KVCache) -> None:
        self.memory = cache.memory
        self.layers = [_RowLayer(layer, self) for layer in cache.layers]
        self.slots_RC, self.end = torch.empty(0, 0, dtype=torch.int64), 0

    def place(self, slots_RC: Tensor, end: int) -> None:
        """Where the next tokens are stored, and up to where keys are returned."""
        self.slots_RC, self.end = slots_RC, end


class _RowLayer(LayerCache):
    def __init__(self, layer: LayerCache, cache: _RowCache) -> None:
        super().__init__(layer.keys, layer.values)
        self._cache = cache

    def update(self, start: int, keys_BACE: Tensor, values_BACE: Tensor) -> tuple[Tensor, Tensor]:
        index = self._cache.slots_RC[:, None, :, None].expand_as(keys_BACE)
        self.keys.scatter_(2, index, keys_BACE)
        self.values.scatter_(2, index, values_BACE)
        return self.keys[:, :, : self._cache.end], self.values[:, :, : self._cache.end]
