"""The static plan of one batch: every buffer and table that decoding touches, made once, at addresses that stay.

Between ``load`` and ``tokens`` nothing waits for the device, nothing's shape depends on data, and no table is made, so
the same methods run eagerly and under CUDA graph capture (design: one decoder, whatever runs it).

Letters: B images, R rows (B, or 2B with guidance: conditional rows first), C cells of a step, P prefix tokens,
N = H*W cells, S = P + N, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flashar_cli.config import CaptionPrefix
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import step_targets
from flashar_cli.nn.masks import with_valid_keys
from flashar_cli.nn.sampling import SamplingKind, SamplingParams, SamplingValues, sample

StepHook = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class PlanKey:
    """What decides the shapes and operations of a whole decode. Two batches of one key can share a plan."""

    batch: int
    order: Order
    prefix_length: int
    kind: SamplingKind
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: FlasharModel, batch: int, order: Order, kind: SamplingKind) -> PlanKey:
        return cls(batch, order, model.config.prefix.length, kind, model.dtype, model.device)


class DecodePlan:
    """Buffers and tables of one :class:`PlanKey`. Inputs are copied in by ``load``, codes are read by ``tokens``."""

    @torch.inference_mode()
    def __init__(self, model: FlasharModel, key: PlanKey) -> None:
        self.model, self.key = model, key
        order, device, batch = key.order, key.device, key.batch
        self.num_rows = 2 * batch if key.kind.guided else batch
        num_cells = len(order.cells)

        self.conditions = _blank_conditions(model, batch)
        self.drop_B = torch.zeros(batch, dtype=torch.bool, device=device)
        self.keep_B = ~self.drop_B
        self.uniform_BN = torch.zeros(batch, num_cells, device=device)
        self.codes_BN = torch.zeros(batch, num_cells, dtype=torch.int64, device=device)
        self.values = SamplingValues.of(SamplingParams(), device)
        self.cfg_scales = torch.ones(order.num_steps, device=device)  # of each step; 1 is no guidance
        self.cache = model.new_cache(self.num_rows)

        # Held here as well as in the models' own caches, which may drop them while a captured graph reads them.
        self.rope = model.rope(order)
        self.prefix_mask = model.attention_mask(order, None, key.prefix_length)
        self.targets = [step_targets(order, step, device) for step in range(order.num_steps)]
        self.bounds = list(pairwise(order.step_starts))
        self.cells = torch.tensor(order.cells, device=device)
        self.positions = torch.tensor(order.positions, device=device)
        self.key_mask: Tensor | None = None
        if isinstance(model.config.prefix, CaptionPrefix):
            # Added to scores: what SDPA makes of a bool mask in every layer. Its memory-efficient kernel copies a mask
            # whose rows start elsewhere than at every eighth number.
            length = -(-(key.prefix_length + num_cells) // 8) * 8
            self.key_mask = torch.zeros(self.num_rows, 1, 1, length, dtype=model.dtype, device=device)

    @torch.inference_mode()
    def load(self, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor) -> None:
        """Copies a batch's inputs into place; ``uniform_BN`` float32 [B, N] is in raster order."""
        assert params.kind == self.key.kind, "a plan of another kind of sampling"
        for own, given in zip(self.conditions.parts(), conditions.parts(), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.uniform_BN.copy_(uniform_BN.to(self.key.device).index_select(1, self.cells))
        self.values.temperature.fill_(params.temperature)
        self.values.top_p.fill_(params.top_p)
        guides = [params.guides_cell(start, len(self.key.order.cells)) for start, _ in self.bounds]
        self.cfg_scales.copy_(torch.tensor([params.cfg_scale if acts else 1.0 for acts in guides]))

    def prefix(self) -> Tensor:
        """Runs the prefix and predicts the cells of step 0: logits [B, C, V] after guidance."""
        model, length = self.model, self.key.prefix_length
        prefix_RPD, valid_RP = model.prefix(self.conditions, self.drop_B)
        if self.key.kind.guided:
            uncond_BPD, _ = model.prefix(self.conditions, self.keep_B)
            prefix_RPD = torch.cat([prefix_RPD, uncond_BPD])
            valid_RP = None if valid_RP is None else valid_RP.repeat(2, 1)
        mask = self.prefix_mask
        if valid_RP is not None:
            assert self.key_mask is not None
            self.key_mask[..., :length] = torch.where(valid_RP, 0.0, -math.inf)[:, None, None]
            mask = with_valid_keys(mask, valid_RP)
        targets = self.targets[0]
        hidden = model.hidden_states(prefix_RPD, self.rope[:length], mask, targets.uses_branch, self.cache)
        return self._predict(0, hidden.since(-1))

    def step(self, step: int, codes_RC: Tensor) -> Tensor:
        """Feeds the codes of the step before and predicts the cells of ``step``: logits [B, C, V] after guidance."""
        model, targets = self.model, self.targets[step]
        first, last = self.bounds[step - 1]
        start, end = self.key.prefix_length + first, self.key.prefix_length + last
        # Every key stored so far is at or before this step, so no mask is needed among image tokens.
        mask = None if self.key_mask is None else self.key_mask[..., :end]
        x_RCD = model.backbone.embedding(codes_RC)
        hidden = model.hidden_states(x_RCD, self.rope[start:end], mask, targets.uses_branch, self.cache, start)
        return self._predict(step, hidden)

    def draw(self, step: int, logits_BCV: Tensor, on_step: StepHook | None = None) -> None:
        """Samples the cells of ``step`` and stores their codes."""
        first, last = self.bounds[step]
        if on_step is not None:
            on_step(step, logits_BCV)
        self.codes_BN[:, first:last] = sample(logits_BCV, self.uniform_BN[:, first:last], self.key.kind, self.values)

    def advance(self, first: int, last: int, on_step: StepHook | None = None) -> None:
        """Predicts and draws the steps ``first`` .. ``last - 1``, from 1 on; ``on_step`` as in ``decode``."""
        for step in range(first, last):
            self.draw(step, self.step(step, self._fed(step, self.codes_BN)), on_step)

    def teacher_forced(self, codes_BN: Tensor) -> Iterator[Tensor]:
        """Each step's logits [B, C, V] after guidance when these codes, int64 in this order, are fed and none drawn."""
        yield self.prefix()
        for step in range(1, self.key.order.num_steps):
            yield self.step(step, self._fed(step, codes_BN))

    def tokens(self) -> Tensor:
        """The drawn codes, a fresh int64 [B, H, W]."""
        grid = self.key.order.grid
        return self.codes_BN.index_select(1, self.positions).unflatten(1, (grid.height, grid.width))

    def _fed(self, step: int, codes_BN: Tensor) -> Tensor:
        first, last = self.bounds[step - 1]
        return codes_BN[:, first:last].repeat(2, 1) if self.key.kind.guided else codes_BN[:, first:last]

    def _predict(self, step: int, hidden: HiddenStates) -> Tensor:
        scale = self.cfg_scales[step] if self.key.kind.guided else None
        return self.model.guided_logits(hidden, self.targets[step], scale)

    def buffers(self) -> list[Tensor]:
        """Every tensor that is written from ``load`` on."""
        own = [self.uniform_BN, self.codes_BN, *self.values, self.cfg_scales, self.cache.memory]
        return own + [part for part in (*self.conditions.parts(), self.key_mask) if part is not None]


def _blank_conditions(model: FlasharModel, batch: int) -> Conditions:
    prefix, device = model.config.prefix, model.device
    if not isinstance(prefix, CaptionPrefix):
        return Conditions(labels=torch.zeros(batch, dtype=torch.int64, device=device))
    features = torch.zeros(batch, prefix.length, prefix.feature_dim, device=device, dtype=model.dtype)
    return Conditions(features=features, mask=torch.ones(batch, prefix.length, device=device))
